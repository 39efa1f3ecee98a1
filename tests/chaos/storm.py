"""Storms: faults of real processes on top of each other, as in the simulator.

  make storm                 # ten of them, 5 minutes
  make storm ARGS="--storms=60 --seed=5"

In `make chaos` the swarm is whole again before the next fault. Here one comes on
top of the other for a while, with an operator's orders among them; then all is
left alone. The swarm must become whole and commit, whatever was under way; no
island may ever hold other bits than the others, no process may end with an error
of its own, and at the end all hold one state and the ledger adds up. A storm
is drawn from its seed, but what it meets is not: processes take the time they
take.
"""

import argparse
import pathlib
import random
import sys
import tempfile
import time

from chaos import end
from faults import FAULTS, ORDERS
from world import World

_PACE = 0.1  # seconds a step
_STORM = 15.0  # seconds of faults
_PAUSE = 3.0  # seconds between two of them, at most
# Cures of what islands have that is not the run's: here nothing makes it so.
_WRONG = "Traceback", "diverged", "disagree", "was corrupted"
_LEFT_OUT = "two islands join at once", "disk full", "an island flaps"
_RARE = "SIGKILL of everything", "… and the coordinator's disk lost"


def storm(world: World, rng: random.Random) -> None:
  """Faults, and then what comes of them.

  Raises:
    TimeoutError: if the swarm is not whole again in time.
    AssertionError: if a process has said what nothing should make it say.
  """
  kinds = {**FAULTS, **ORDERS}
  names = [kind for kind in kinds if kind not in _LEFT_OUT]
  weights = [0.3 if kind in _RARE else 1.0 for kind in names]
  began = time.monotonic()
  while time.monotonic() < began + _STORM:
    (kind,) = rng.choices(names, weights)
    name = rng.choice(world.names)
    print(f"  {time.monotonic() - began:4.1f} s: {kind}, {name}", flush=True)
    kinds[kind](world, name)
    world.let_pass(rng.uniform(0.0, _PAUSE))
  world.calm()
  calm = time.monotonic()
  whole = world.wait_until(world.all_in, "all islands to be in")
  there = whole.record + 2
  status = world.wait_until(lambda s: s.record >= there, "two more records")
  print(
    f"whole and at record {status.record} of term {status.term} after"
    f" {time.monotonic() - calm:.1f} s; {status.total_tokens:,} tokens committed,"
    f" {status.tokens_lost:,} lost",
    flush=True,
  )
  check_words(world)


def check_words(world: World) -> None:
  """No process has said that something is wrong which no fault explains."""
  for path in world.workdir.glob("*/log.txt"):
    for line in path.read_text(errors="replace").splitlines():
      assert not any(word in line for word in _WRONG), f"{path}: {line}"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--storms", type=int, default=10)
  parser.add_argument("--islands", type=int, default=3)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--outer",
    action="append",
    default=[],
    metavar="FIELD=VALUE",
    help="of run.outer: fragments=2",
  )
  options = parser.parse_args()
  folder = pathlib.Path(tempfile.mkdtemp(prefix="storm-"))
  print(f"logs: {folder}", flush=True)
  with World(folder, options.islands, _PACE, options.outer) as world:
    world.wait_until(world.all_in, "all islands to be in")
    for number in range(options.storms):
      print(f"storm {number} of seed {options.seed}", flush=True)
      storm(world, random.Random(f"{options.seed} {number}"))
    figures = end(world)
  print(
    f"{figures['records']} records, one state; {figures['tokens_committed']:,}"
    f" tokens committed, {figures['tokens_lost']:,} lost with their causes"
  )


if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  main()
