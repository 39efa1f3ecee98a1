"""Times an inner step: this project, plain JAX, PyTorch; same model and batch.

  python -m benchmarks.inner_step --json=benchmarks/results/inner_step.json

Each contestant is a process that sleeps while another has its turn; turns
alternate, and ratios are of neighbours, so that a machine which others load
hurts all alike. CPU seconds count all threads of a process; on a loaded machine
theirs is the ratio to trust, with `--cores=1` most of all: threads that wait for
each other spin, PyTorch's longest. `--profile` adds where the time goes. PyTorch
needs the extra `hf` and is left out, with a word, where it is missing.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import importlib.util
import json
import multiprocessing
from multiprocessing.connection import Connection
import os
import statistics
import time

from absl import app, flags

from benchmarks import machine, profiles
from intellect_jax import config as config_lib

_QUICK = flags.DEFINE_bool("quick", False, "A toy size: does it run?")
_JSON = flags.DEFINE_string("json", None, "File for every figure.")
_TURNS = flags.DEFINE_integer("turns", 5, "Alternations.")
_STEPS = flags.DEFINE_integer("steps", 3, "Steps a turn.")
_PROFILE = flags.DEFINE_bool("profile", False, "Profile a step of each, too.")
_CORES = flags.DEFINE_integer("cores", 0, "Cores for each; 0: all.")
_ONLY = flags.DEFINE_multi_string("only", None, "Names of contestants.")

# What is measured against what, and what is asked of it.
COMPARISONS = [
  ("ours, scanned", "plain JAX, scanned", 0.97),
  ("ours, unrolled", "plain JAX, unrolled", 0.97),
  ("ours, scanned", "PyTorch", 0.7),
  ("ours, unrolled", "PyTorch", 0.7),
  ("plain JAX, unrolled", "PyTorch", None),
  ("ours, in train's loop", "ours, scanned", 0.98),
]


@dataclasses.dataclass
class Turn:
  """Of one contestant: seconds by the clock and of CPU for `steps` steps."""

  wall: float
  cpu: float
  loss: float


def work(connection: Connection, name: str, quick: bool, cores: int) -> None:
  """One contestant's process: warms up, then steps when it is told to."""
  if cores:  # before the thread pools of XLA and PyTorch look
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
  from benchmarks.contestants import CONTESTANTS

  make, scanned = CONTESTANTS[name]
  began = time.monotonic()
  steps = make(load_config(quick), scanned)
  steps(1)
  connection.send(time.monotonic() - began)
  while (told := connection.recv()) is not None:
    kind, n = told
    wall, cpu = time.monotonic(), time.process_time()
    if kind == "profile":
      connection.send(profiles.shares(steps, of_pytorch=name == "PyTorch"))
    else:
      loss = steps(n)
      connection.send(
        Turn(time.monotonic() - wall, time.process_time() - cpu, loss)
      )


def load_config(quick: bool):
  config = config_lib.load(config_lib.base_path().parent / "bench_50m.py")
  config.island.compilation_cache = ""
  if quick:
    config.run.model.update(layers=2, width=128, heads=2, kv_heads=1, ffn=256)
    config.run.model.vocab_size = 512
    config.run.data.update(tokenizer="byte", sequence_length=64)
  return config


@contextlib.contextmanager
def started(names: list[str], quick: bool) -> Iterator[dict[str, Connection]]:
  """A process for each name, ready to step."""
  context = multiprocessing.get_context("spawn")
  connections = {}
  for name in names:  # one by one: none is timed while another compiles
    here, there = context.Pipe()
    process = context.Process(
      target=work, args=(there, name, quick, _CORES.value), daemon=True
    )
    process.start()
    there.close()
    print(f"{name}: ready after {here.recv():.1f} s", flush=True)
    connections[name] = here
  yield connections
  for connection in connections.values():
    connection.send(None)


def ask(connection: Connection, kind: str, n: int = 0):
  connection.send((kind, n))
  return connection.recv()


def main(_) -> None:
  from benchmarks.contestants import CONTESTANTS

  names = _ONLY.value or list(CONTESTANTS)
  if "PyTorch" in names and importlib.util.find_spec("transformers") is None:
    print("PyTorch is left out: it needs pip install 'intellect_jax[hf]'.")
    names.remove("PyTorch")
  quick = _QUICK.value
  turns, steps = (2, 2) if quick else (_TURNS.value, _STEPS.value)
  results: dict[str, list[Turn]] = {name: [] for name in names}
  found = machine.describe()
  profiled = {}
  with started(names, quick) as connections:
    for _turn in range(turns):
      for name in names:
        results[name].append(ask(connections[name], "step", steps))
    if _PROFILE.value:
      for name in names:
        profiled[name] = ask(connections[name], "profile")
  found["load_after"] = machine.load()

  run = load_config(quick).run
  tokens = run.inner.batch_size * run.data.sequence_length * steps
  print(f"\n{found}\n{turns} turns of {steps} steps")
  print(f"{'':24}{'tokens/s':>10}{'tokens/CPU s':>14}{'loss':>9}")
  for name, done in results.items():
    wall = statistics.median(tokens / turn.wall for turn in done)
    cpu = statistics.median(tokens / turn.cpu for turn in done)
    print(f"{name:24}{wall:10,.0f}{cpu:14,.0f}{done[-1].loss:9.4f}")
  ratios = list(compare(results))
  for ratio in ratios:
    bar = f"  bar {ratio['bar']}" if ratio["bar"] else ""
    print(
      f"{ratio['of']} / {ratio['to']}: {ratio['cpu']:.3f} by CPU time"
      f" ({ratio['cpu_low']:.3f} to {ratio['cpu_high']:.3f}),"
      f" {ratio['wall']:.3f} by the clock{bar}"
    )
  for name, shares in profiled.items():
    text = ", ".join(f"{what} {share:.0%}" for what, share in shares.items())
    print(f"{name}: {text}")
  if _JSON.value:
    figures = dict(
      machine=found,
      quick=quick,
      run=run.to_dict(),
      cores=_CORES.value or found["cores"],
      steps_a_turn=steps,
      tokens_a_turn=tokens,
      turns={n: [dataclasses.asdict(t) for t in d] for n, d in results.items()},
      ratios=ratios,
      profiles=profiled,
    )
    with open(_JSON.value, "w") as file:
      json.dump(figures, file, indent=1)
      file.write("\n")


def compare(results: dict[str, list[Turn]]):
  """Ratios of speeds, the medians over turns; above 1 the first is faster."""
  for one, other, bar in COMPARISONS:
    if one in results and other in results:
      pairs = list(zip(results[one], results[other], strict=True))
      cpu = [b.cpu / a.cpu for a, b in pairs]
      wall = [b.wall / a.wall for a, b in pairs]
      yield {
        "of": one,
        "to": other,
        "bar": bar,
        "cpu": statistics.median(cpu),
        "cpu_low": min(cpu),
        "cpu_high": max(cpu),
        "wall": statistics.median(wall),
      }


if __name__ == "__main__":
  app.run(main)
