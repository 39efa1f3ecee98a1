"""How much slower an inner step is while a delta is exchanged.

  python -m benchmarks.overlap --json=benchmarks/results/overlap.json
  python -m benchmarks.overlap --quick      # fewer rounds, in a minute

Bytes and records are real, links uncapped, so that the exchange is all work and
no waiting. The other island has no model, and proposes as soon as it can: the
exchange begins when the island that is measured proposes. A step counts as one
beside it if the proposal was undecided at its beginning. Medians of one run, the
same steps otherwise: a step goes through all parameters and moments, and finds
none of them in a cache anyhow.

apart: the island trains on one core; all threads of its exchange, the other
  island and the coordinator have another one. The bar is 1.05.
together: everything runs where the system puts it: two busy cores.
"""

import argparse
import contextlib
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import jax
import rich.console
import rich.table

from benchmarks import machine
from benchmarks.loopback import Child, Loopback, names_of
from intellect_jax import config as config_lib
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.elastic import rpc
from intellect_jax.elastic.describe import describe
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.mesh import ElasticDeviceMesh
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import sharding
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer import kernels
from intellect_jax.outer.codec import make_codec
from intellect_jax.outer.layout import Layout

_STEPS = 24  # H
_BAR = 1.05
_CONFIG = config_lib.base_path().with_name("tiny.py")
_OTHERS = 1  # islands
_LEASE = 60.0  # seconds: nobody is missed because a core is busy
_SETTINGS = {  # 18M values, and steps of some 50 ms on one core
  "model.layers": 4,
  "model.width": 256,
  "model.vocab_size": 32_000,
  "inner.batch_size": 2,
  "outer.inner_steps": _STEPS,
  "outer.overlap_steps": 1,
  "outer.merge_alpha": 0.5,
  "outer.max_ahead_steps": _STEPS,
  "evaluation.sequences": 0,
}

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
  rounds = 6 if options.quick else 30
  rows = [measured(apart=apart, rounds=rounds) for apart in (True, False)]
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


def measure(apart: bool, rounds: int) -> Row:
  """Trains for so many rounds beside the other islands."""
  cores = sorted(os.sched_getaffinity(0))
  train, exchange = ({cores[0]}, {cores[1]}) if apart else (cores, cores)
  os.sched_setaffinity(0, train)
  config = config_lib.load(_CONFIG)
  run, island = config.run, config.island
  for name, value in _SETTINGS.items():
    section, field = name.split(".")
    run[section][field] = value
  island.checkpoint.every = 0
  step = TrainStep(run, island, sharding.make_mesh(devices=jax.devices()[:1]))
  step.compile()
  kernels.compile_all()
  params, codec = step.abstract_state.params, make_codec(run.outer.codec)
  layout = Layout.of(params, tensor_names(params), codec.block)
  index = GlobalIndex(run.data, tokenizer_of(run))
  settings = [f"{name}={value}" for name, value in _SETTINGS.items()]
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    os.sched_setaffinity(0, exchange)  # what is started inherits it
    others = stack.enter_context(
      Loopback(
        folder, layout.size, names_of(_OTHERS), settings=settings, lease=_LEASE
      )
    )
    description = describe([others.address], rpc.LOOPBACK, patience=_LEASE)
    run = config_lib.from_json(description.run_json)
    identity = Identity(folder / "measured", "measured")
    stack.callback(identity.close)
    about = [others.address], description
    mesh = stack.enter_context(
      ElasticDeviceMesh(run, island, identity, step, index, None, *about)
    )
    for other in others.islands.values():
      threading.Thread(target=_propose, args=(other,), daemon=True).start()
    os.sched_setaffinity(0, train)
    beside, without = _times(mesh, step, rounds)
  row: Row = dict(
    islands=_OTHERS + 1,
    values=layout.size,
    cores="apart" if apart else "together",
    steps_beside=len(beside),
    steps_without=len(without),
    beside=statistics.median(beside),
    without=statistics.median(without),
  )
  return row | dict(ratio=row["beside"] / row["without"])


def _propose(island: Child) -> None:
  """Again and again, until it ends."""
  with contextlib.suppress(RuntimeError, OSError, queue.Empty):
    while True:
      island.order("step")
      island.wait("rested")


def _times(
  mesh: ElasticDeviceMesh, step: TrainStep, rounds: int
) -> tuple[list[float], list[float]]:
  """Seconds of steps beside an exchange, and of those without one."""
  times: dict[bool, list[float]] = {True: [], False: []}
  state, last = mesh.state, None
  for batch in mesh.batches():
    flies = bool(mesh._windows.proposed)
    begin = time.perf_counter()
    state, metrics = step(state, batch, mesh.schedule())
    jax.block_until_ready(state)
    if last is not None:
      times[flies].append(time.perf_counter() - begin)
    state = mesh.after_step(state, metrics)
    if last is None and mesh.record:  # all is compiled by then
      last = mesh.record + rounds
    if last is not None and mesh.record >= last:
      mesh.stop()
  return times[True], times[False]


def table(rows: list[Row]) -> rich.table.Table:
  result = rich.table.Table(title="an inner step beside an exchange")
  for column in (
    *("cores", "islands", "ms beside", "steps", "ms without", "steps"),
    *("x", "bar"),
  ):
    result.add_column(column, justify="right")
  for row in rows:
    result.add_row(
      row["cores"],
      str(row["islands"]),
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
