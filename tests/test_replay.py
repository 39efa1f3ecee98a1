"""Replay: the log alone leads to the bits that training had."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from intellect_jax.checkpoint import durable
from intellect_jax.elastic import history
from intellect_jax.errors import UserError
from intellect_jax.outer import average
from intellect_jax.replay import replay


def run(module: str, *arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", f"intellect_jax.{module}", *arguments],
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
  """Of a lone island that has trained for six records, keeping them all."""
  workdir = tmp_path_factory.mktemp("trained")
  trained = run(
    "train",
    "--config=configs/tiny.py",
    "--config.island.checkpoint.keep=9",
    f"--workdir={workdir}",
  )
  assert trained.returncode == 0, trained.stderr
  return workdir


def test_replay_ends_on_the_state_of_the_training(workdir, tmp_path):
  output = tmp_path / "state.npz"
  replayed = run("replay", f"--workdir={workdir}", f"--output={output}")
  assert replayed.returncode == 0, replayed.stderr
  lines = replayed.stdout.splitlines()
  assert [line.split()[1] for line in lines[:7]] == [*"0123456"]
  assert sum("names it" in line for line in lines) == 6
  summary = json.loads((workdir / "summary.json").read_text())
  (trained,) = summary["theta_hash"].values()
  assert trained.startswith(lines[6].split()[2].rstrip("…"))
  assert np.load(output)["theta"].dtype == np.float32


def test_replay_stops_at_the_record_asked_for(workdir):
  replayed = run("replay", f"--workdir={workdir}", "--to=3")
  assert replayed.stdout.splitlines()[-1].split()[1] == "3"


def test_averages_are_of_the_states_of_the_training(workdir):
  """What replay builds is what each checkpoint has, and goes into the mean."""
  folder = workdir / "checkpoints"
  assert durable.records(folder) == [*range(7)]
  thetas = [durable.read_outer(folder, n).theta for n in range(7)]
  mean, over = history.average(workdir, 6, average.mean, newest=3)
  assert over == [4, 5, 6]
  expected = np.mean(thetas[4:], axis=0, dtype=np.float64)
  np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-8)
  ema, over = history.average(workdir, 5, average.exponential(0.6))
  assert over == [*range(6)]
  expected = np.float64(thetas[0])
  for theta in thetas[1:6]:
    expected = 0.6 * expected + 0.4 * theta
  np.testing.assert_allclose(ema, expected, rtol=1e-5, atol=1e-8)
  newest, _ = history.average(workdir, 6, average.mean, newest=1)
  np.testing.assert_array_equal(newest, thetas[6])


def test_the_log_alone_gives_the_same_average(workdir, tmp_path):
  """An island that kept one old checkpoint has the bits of one with all."""
  shutil.copytree(workdir / "log", tmp_path / "log")
  kept = tmp_path / "checkpoints" / "1"
  shutil.copytree(workdir / "checkpoints" / "1", kept)
  part = average.exponential(0.5)
  mine, over = history.average(tmp_path, 6, average.mean, newest=4)
  whole, _ = history.average(workdir, 6, average.mean, newest=4)
  assert over == [3, 4, 5, 6]
  np.testing.assert_array_equal(mine, whole)
  with pytest.raises(UserError, match="can build again 6 of them"):
    history.average(tmp_path, 6, part, newest=7)


def test_a_gap_in_the_log_ends_a_replay_and_no_average(workdir, tmp_path):
  shutil.copytree(workdir / "log", tmp_path / "log")
  (tmp_path / "log" / "000000003.mean").unlink()
  for number in ("1", "4"):
    kept = tmp_path / "checkpoints" / number
    shutil.copytree(workdir / "checkpoints" / number, kept)
  _, over = history.average(tmp_path, 6, average.mean)
  assert over == [1, 2, 4, 5, 6]
  assert replay(tmp_path, to=None).record == 2


def test_a_record_that_the_log_does_not_reach_is_an_error(workdir):
  replayed = run("replay", f"--workdir={workdir}", "--to=7")
  assert replayed.returncode == 2
  assert "from record 0 to 6" in replayed.stderr


def test_a_damaged_mean_is_found(workdir):
  mean = workdir / "log" / "000000002.mean"
  whole = mean.read_bytes()
  mean.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
  try:
    replayed = run("replay", f"--workdir={workdir}", "--to=6")
    assert replayed.returncode == 2
    assert "to 1, and 6 is not" in replayed.stderr
  finally:
    mean.write_bytes(whole)
