"""A forecast of INTELLECT-1 is INTELLECT-1."""

import io

import pytest
import rich.console

from intellect_jax import config as config_lib
from intellect_jax.errors import UserError
from intellect_jax.observe.forecast import (
  Forecast,
  intellect_1_table,
  schedule_table,
)


def load(name):
  return config_lib.load(config_lib.base_path().with_name(f"{name}.py"))


@pytest.fixture(scope="module")
def intellect_1():
  config = load("intellect_1_10b")
  return Forecast(config, 8, "h100", mfu=0.433, islands=14)


def text(*tables) -> str:
  console = rich.console.Console(width=200, file=io.StringIO())
  with console.capture() as capture:
    console.print(*tables)
  return capture.get()


def test_a_window_takes_38_minutes(intellect_1):
  assert intellect_1.window_seconds / 60 == pytest.approx(38, rel=0.01)


def test_a_link_as_fast_as_theirs_takes_as_long(intellect_1):
  """1.5 Gb/s in the USA and 0.33 around the world, less the host's work."""
  assert intellect_1.round_seconds(1.6) == pytest.approx(103, rel=0.15)
  assert intellect_1.round_seconds(0.34) == pytest.approx(469, rel=0.15)


def test_the_outer_rate_is_that_of_so_many_islands():
  config = load("tiny")
  config.run.outer.learning_rate = "auto"
  plan = Forecast(config, 1, "h100", mfu=0.4, islands=8)
  (row,) = [n for n in text(plan.model_table()).splitlines() if "outer" in n]
  assert "0.8" in row and "run.outer.learning_rate=auto" in row


def test_all_tables_say_where_figures_come_from(intellect_1):
  said = text(
    intellect_1.model_table(),
    intellect_1.memory_table(),
    intellect_1.host_table(),
    intellect_1.round_table([0.5, 10]),
    intellect_1_table(),
  )
  for word in ("10,211,381,248", "formula", "traced", "lowered for CUDA"):
    assert word in said
  for measured, formula in (("95.7", "95.7"), ("85.6", "85.6")):
    assert f"{measured} % │  {formula} %" in said
  assert "83.0 % │  82.9 %" in said


def test_more_devices_hold_less_each():
  one, four = (
    Forecast(load("tiny"), n, "a100", mfu=0.4, islands=2) for n in (1, 4)
  )
  assert four.memory.parameters == one.memory.parameters / 4
  assert four.memory.activations == one.memory.activations / 4
  assert four.step_seconds == pytest.approx(one.step_seconds / 4)
  assert four.sent == one.sent


@pytest.mark.parametrize(
  "devices, device, mfu, words",
  [
    (4, "abacus", 0.4, "--device=abacus is not one of .*h100"),
    (4, "h100", 43.3, "--mfu=43.3 must be above 0 and at most 1"),
    (3, "h100", 0.4, "do not divide among the 3 devices"),
  ],
)
def test_impossible_ones(devices, device, mfu, words):
  with pytest.raises(UserError, match=words):
    Forecast(load("tiny"), devices, device, mfu, islands=2)


def test_the_schedule_shows_where_rate_and_mixture_change():
  run = load("intellect_1_10b").run
  whole = text(schedule_table(run))
  (anneal,) = (line for line in whole.splitlines() if "800,000,000,000" in line)
  assert "another mixture; it falls: sqrt" in anneal and "7.5e-05" in anneal
  assert "fineweb_edu 80 %, fineweb 10 %, stack_v1 10 %" in anneal
  run.tokens = 700_000_000_000  # and nobody thought of the mixture
  (never,) = (
    line
    for line in text(schedule_table(run)).splitlines()
    if "800,000,000,000" in line
  )
  assert "never reached" in never
