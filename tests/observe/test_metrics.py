"""What stands in a metrics file after all that can happen to it."""

import json
import math
import multiprocessing
import os
import resource
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.observe import metrics


def test_events_come_back_in_order_with_their_time(tmp_path):
  path = tmp_path / "new" / "metrics.jsonl"
  began = time.time()
  with metrics.MetricsLog(path) as log:
    log.write(dict(kind="step", loss=4.5))
    log.write(dict(kind="record", time=12.0))
  step, record = metrics.read(path)
  assert step["loss"] == 4.5
  assert began <= step["time"] <= time.time()
  assert record == dict(kind="record", time=12.0)


def test_every_line_is_strict_json_whatever_the_figures(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with metrics.MetricsLog(path) as log:
    log.write(
      dict(
        loss=math.nan,
        grad_norm=np.float32(np.inf),
        step=np.int64(3),
        on_device=jnp.float32(0.5),
        by_island={"island-0": [1.0, -math.inf]},
      )
    )

  def refuse(constant: str):
    raise AssertionError(f"{constant} is not JSON")

  event = json.loads(path.read_text(), parse_constant=refuse)
  del event["time"]
  assert event == dict(
    loss=None,
    grad_norm=None,
    step=3,
    on_device=0.5,
    by_island={"island-0": [1.0, None]},
  )


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_torn_line_costs_only_itself(tmp_path, cut):
  path = tmp_path / "metrics.jsonl"
  with metrics.MetricsLog(path) as log:
    log.write(dict(step=1, time=1))
    log.write(dict(step=2, time=2))
  os.truncate(path, path.stat().st_size - cut)
  assert [e["step"] for e in metrics.read(path)] == [1]
  with metrics.MetricsLog(path) as log:
    log.write(dict(step=3, time=3))
  assert [e["step"] for e in metrics.read(path)] == [1, 3]
  assert path.read_text().endswith("\n")


def test_an_empty_file_and_a_first_torn_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text("")
  assert metrics.read(path) == []
  path.write_text('{"step": 1')
  assert metrics.read(path) == []
  with metrics.MetricsLog(path) as log:
    log.write(dict(step=2, time=0))
  assert metrics.read(path) == [dict(step=2, time=0)]


def test_a_full_disk_costs_events_and_no_more(tmp_path):
  """No file may grow past 1000 bytes: as good as a full disk."""
  path = tmp_path / "metrics.jsonl"
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with metrics.MetricsLog(path) as log:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
      for step in range(100):
        log.write(dict(step=step))
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.write(dict(step=100))
  *steps, last = [event["step"] for event in metrics.read(path)]
  assert steps == list(range(len(steps))) and 10 < len(steps) < 100
  assert last == 100


def _write_forever(path, written):
  with metrics.MetricsLog(path) as log:
    for step in range(1_000_000):
      log.write(dict(step=step))
      written.value = step


def test_a_killed_process_leaves_all_it_wrote(tmp_path):
  path = tmp_path / "metrics.jsonl"
  context = multiprocessing.get_context("spawn")
  written = context.Value("q", -1)
  process = context.Process(target=_write_forever, args=(path, written))
  process.start()
  while written.value < 100:
    assert process.is_alive()
  assert process.pid is not None
  os.kill(process.pid, signal.SIGKILL)
  process.join()
  steps = [event["step"] for event in metrics.read(path)]
  assert steps == list(range(len(steps)))
  assert len(steps) > written.value


def test_a_summary_replaces_the_one_before_or_stays_away(tmp_path):
  path = tmp_path / "summary.json"
  metrics.write_summary(path, dict(rounds=1, final_eval_loss=np.float64("nan")))
  assert json.loads(path.read_text()) == dict(rounds=1, final_eval_loss=None)
  with pytest.raises(TypeError):
    metrics.write_summary(path, dict(rounds=object()))
  assert json.loads(path.read_text())["rounds"] == 1
  metrics.write_summary(path, dict(rounds=2))
  assert json.loads(path.read_text()) == dict(rounds=2)
  assert list(tmp_path.iterdir()) == [path]
