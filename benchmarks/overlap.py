"""How much slower an inner step is while a delta is exchanged.

  python -m benchmarks.overlap --json=benchmarks/results/overlap.json
  python -m benchmarks.overlap --quick      # fewer rounds, in a minute

Bytes and records are real, links uncapped, so that the exchange is all work and
no waiting. A step counts as one beside an exchange if a proposal was undecided
from its beginning to its end; the first step after a proposal or a merge, which
finds other data in the caches, does not count. Medians of one run, the same steps
otherwise.

apart: the island trains on one core; all threads of its exchange, a second island
  and the coordinator have another one. The bar is 1.05.
together: everything runs where the system puts it, and the second island trains
  on the same two cores, so that there is never one free.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import rich.console
import rich.table

from benchmarks import machine
from intellect_jax import config as config_lib
from intellect_jax import swarm
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.elastic import rpc
from intellect_jax.elastic.describe import describe
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.mesh import ElasticDeviceMesh
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import sharding
from intellect_jax.outer import kernels

_STEPS = 24  # H
_BAR = 1.05
_CONFIG = config_lib.base_path().with_name("tiny.py")
_RUN = dict(  # 18M values, and steps of some 50 ms on one core
  model=dict(layers=4, width=256, vocab_size=32_000),
  inner=dict(batch_size=2),
)

Row = dict[str, Any]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true", help="fewer rounds")
  parser.add_argument("--json", help="file for every figure")
  parser.add_argument("--measure", help=argparse.SUPPRESS)  # one row, as JSON
  options = parser.parse_args()
  if options.measure:
    print(json.dumps(measure(**json.loads(options.measure))))
    return
  if len(os.sched_getaffinity(0)) < 2:
    print("Skipped: an island and its exchange need a core each.")
    return
  found = machine.describe()
  rows = [
    measured(fragments=fragments, apart=apart, rounds=rounds)
    for fragments, rounds in ([(1, 4)] if options.quick else [(1, 20), (4, 20)])
    for apart in (True, False)
  ]
  rich.console.Console().print(table(rows))
  if options.json:
    text = json.dumps(dict(machine=found, rows=rows), indent=1)
    pathlib.Path(options.json).write_text(text + "\n")


def measured(**what: Any) -> Row:
  """`measure` in a process of its own: XLA has as many threads as cores then."""
  again = [sys.executable, "-m", "benchmarks.overlap"]
  done = subprocess.run(
    [*again, f"--measure={json.dumps(what)}"],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1]) | dict(load=machine.load())


def measure(fragments: int, apart: bool, rounds: int) -> Row:
  """Trains for so many rounds of all fragments, beside another island."""
  cores = sorted(os.sched_getaffinity(0))
  train, exchange = ({cores[0]}, {cores[1]}) if apart else (cores, cores)
  settings = _settings(fragments)
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    os.sched_setaffinity(0, exchange)  # what is started inherits it
    parts = swarm.Swarm(folder, 1, _flags(settings))
    stack.enter_context(parts)
    description = describe([parts.address], rpc.LOOPBACK, patience=60.0)
    config = config_lib.load(_CONFIG)
    run, island = config_lib.from_json(description.run_json), config.island
    os.sched_setaffinity(0, train)
    devices = sharding.make_mesh(devices=jax.devices()[:1])
    step = TrainStep(run, island, devices)
    step.compile()
    kernels.compile_all()
    index = GlobalIndex(run.data, tokenizer_of(run))
    identity = Identity(folder / "measured", "measured")
    stack.callback(identity.close)
    os.sched_setaffinity(0, exchange)
    about = [parts.address], description
    mesh = stack.enter_context(
      ElasticDeviceMesh(run, island, identity, step, index, None, *about)
    )
    os.sched_setaffinity(0, train)
    beside, without = _times(mesh, step, rounds)
  row = dict(
    fragments=fragments,
    cores="apart" if apart else "together",
    steps_beside=len(beside),
    steps_without=len(without),
    beside=statistics.median(beside),
    without=statistics.median(without),
  )
  return row | dict(ratio=row["beside"] / row["without"])


def _settings(fragments: int) -> dict[str, Any]:
  outer = dict(
    inner_steps=_STEPS,
    fragments=fragments,
    overlap_steps=1,
    merge_alpha=0.5,
    max_ahead_steps=_STEPS,
  )
  settings = dict(tokens=10**9, evaluation=dict(sequences=0), outer=outer)
  return settings | _RUN


def _flags(settings: dict[str, Any], path: str = "run") -> list[str]:
  given = [f"--config={_CONFIG}"] if path == "run" else []
  for name, value in settings.items():
    if isinstance(value, dict):
      given += _flags(value, f"{path}.{name}")
    else:
      given.append(f"--config.{path}.{name}={value}")
  return given


def _times(
  mesh: ElasticDeviceMesh, step: TrainStep, rounds: int
) -> tuple[list[float], list[float]]:
  """Seconds of steps beside an exchange, and of those without one."""
  times: dict[bool, list[float]] = {True: [], False: []}
  state, first, last = mesh.state, True, None
  for batch in mesh.batches():
    flies = bool(mesh._windows.proposed)
    begin = time.perf_counter()
    state, metrics = step(state, batch, mesh.schedule())
    jax.block_until_ready(state)
    seconds = time.perf_counter() - begin
    decided = flies and bool(mesh._news.adopted)
    if last is not None and not (first or decided):
      times[flies].append(seconds)
    before = mesh.record, mesh._windows.proposed
    state = mesh.after_step(state, metrics)
    first = before != (mesh.record, mesh._windows.proposed)
    if last is None and mesh.record and first:  # all is compiled by then
      last = mesh.record + (rounds + 1) * len(mesh._windows.parts)
    if last is not None and mesh.record >= last:
      mesh.stop()
  return times[True], times[False]


def table(rows: list[Row]) -> rich.table.Table:
  result = rich.table.Table(title="an inner step beside an exchange")
  for column in (
    *("cores", "fragments", "ms beside", "steps", "ms without", "steps"),
    *("x", "bar"),
  ):
    result.add_column(column, justify="right")
  for row in rows:
    result.add_row(
      row["cores"],
      str(row["fragments"]),
      f"{1e3 * row['beside']:.1f}",
      str(row["steps_beside"]),
      f"{1e3 * row['without']:.1f}",
      str(row["steps_without"]),
      f"{row['ratio']:.3f}",
      str(_BAR) if row["cores"] == "apart" else "",
    )
  return result


if __name__ == "__main__":
  main()
