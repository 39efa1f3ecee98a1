"""Times an island from its start to its first step: cold, and again.

  python -m benchmarks.startup --json=benchmarks/results/startup.json

Cold: an empty workdir and an empty compilation cache. Again: the same island
after a kill, with the checkpoint and the cache that it left. CPU seconds are
those of all its threads; on a machine that others load, theirs is the ratio to
trust.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from benchmarks import machine

_CONFIG = flags.DEFINE_string("config", "configs/bench_50m.py", "Config file.")
_TIMES = flags.DEFINE_integer("times", 3, "Cold and warm starts, in turns.")
_JSON = flags.DEFINE_string("json", None, "File for every figure.")

_BAR = 0.6  # of the cold start


def start(folder: pathlib.Path) -> dict[str, float]:
  """Starts an island, waits for its next step, kills it; seconds of both."""
  metrics = folder / "island" / "metrics.jsonl"
  before = steps_in(metrics)
  began = time.monotonic()
  island = subprocess.Popen(
    [
      *(sys.executable, "-m", "intellect_jax.train"),
      f"--config={_CONFIG.value}",
      f"--workdir={folder / 'island'}",
      f"--config.island.compilation_cache={folder / 'cache'}",
    ],
    stdout=subprocess.DEVNULL,
  )
  while steps_in(metrics) == before:
    if island.poll() is not None:
      raise SystemExit(f"The island ended with status {island.returncode}.")
    time.sleep(0.01)
  wall = time.monotonic() - began
  island.kill()
  _, _, spent = os.wait4(island.pid, 0)
  return dict(wall=wall, cpu=spent.ru_utime + spent.ru_stime)


def steps_in(metrics: pathlib.Path) -> int:
  return metrics.read_text().count('"step"') if metrics.exists() else 0


def main(_) -> None:
  found = machine.describe()
  starts: dict[str, list[dict[str, float]]] = dict(cold=[], again=[])
  for _turn in range(_TIMES.value):
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
      for kind in starts:
        starts[kind].append(start(pathlib.Path(folder)))
  found["load_after"] = machine.load()

  print(found)
  figures = dict(machine=found, config=_CONFIG.value, bar=_BAR, starts=starts)
  for clock in ("cpu", "wall"):
    cold, again = (
      statistics.median(s[clock] for s in starts[kind]) for kind in starts
    )
    figures[clock] = again / cold
    print(
      f"{clock}: cold {cold:.1f} s, again {again:.1f} s:"
      f" {again / cold:.2f} of it, bar {_BAR}"
    )
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
  app.run(main)
