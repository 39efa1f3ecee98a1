"""Chaos: a swarm of real processes under faults of every kind, one by one.

  make chaos

Steps are paced, so that the cores are mostly idle and what is timed is the
protocol. After each fault the run must commit again, with everybody back; at
the end all islands hold one state hash and the ledger adds up. Prints a table:
seconds from the fault to the next commit, and until all islands are in one
record again, and the tokens that were lost.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
import pathlib
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time

import rich.console
import rich.table

from benchmarks.fault_proxy import FaultProxy
from intellect_jax import config as config_lib
from intellect_jax import swarm as swarm_lib
from intellect_jax.elastic import rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb

_LOOK = 0.05  # seconds
_BOUND = 120.0  # seconds for anything
_LEASE = 3.0  # seconds
_PACE = 0.2  # seconds a step
_STEPS = 5  # inner steps a window
_TOKENS_A_STEP = 8 * 64  # of configs/tiny.py


class World:
  """A swarm whose every connection goes through a proxy of its own."""

  def __init__(self, workdir: pathlib.Path, islands: int, tokens: int):
    flags = [
      "--config=configs/tiny.py",
      f"--config.run.tokens={tokens}",
      f"--config.run.outer.inner_steps={_STEPS}",
      f"--config.run.elastic.lease_seconds={_LEASE}",
      f"--config.run.elastic.fetch_patience={_LEASE}",
      "--config.run.evaluation.sequences=0",
      f"--config.island.inner.paced_step_seconds={_PACE}",
    ]
    self.swarm = swarm_lib.Swarm(workdir, islands, flags)
    self.names = [part.name for part in self.swarm.islands]
    self.control: dict[str, FaultProxy] = {}  # to the coordinator
    self.blobs: dict[str, FaultProxy] = {}  # to this island's blobs
    for part in self.swarm.islands:
      listen = rpc.unused_address()
      self.control[part.name] = FaultProxy(self.swarm.address)
      self.blobs[part.name] = FaultProxy(listen)
      part.arguments += [
        f"--coordinator={self.control[part.name].address}",
        f"--config.island.listen={listen}",
        f"--config.island.advertise={self.blobs[part.name].address}",
      ]

  def __enter__(self) -> "World":
    self.swarm.__enter__()
    return self

  def __exit__(self, *_) -> None:
    self.swarm.__exit__()
    for proxy in (*self.control.values(), *self.blobs.values()):
      proxy.close()

  def look(self) -> pb.Status:
    """Restarts what has died, and returns the newest status."""
    self.swarm.supervise()
    time.sleep(_LOOK)
    return self.swarm.status()

  def wait_until(
    self, holds: Callable[[pb.Status], bool], what: str
  ) -> tuple[pb.Status, float]:
    """Returns the status in which it holds, and the seconds it took."""
    start = time.monotonic()
    while time.monotonic() - start < _BOUND:
      status = self.look()
      if holds(status):
        return status, time.monotonic() - start
    raise TimeoutError(
      f"{what}: not within {_BOUND:g} s; {self.swarm.status()}"
    )

  def all_in(self, status: pb.Status) -> bool:
    states = {i.island: i.state for i in status.islands}
    return all(states.get(name) == "in" for name in self.names)

  def stop_for(self, name: str, seconds: float) -> None:
    """SIGSTOP, and SIGCONT after some seconds."""
    process = self.swarm.parts[name].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    self._pass(seconds)
    process.send_signal(signal.SIGCONT)

  def cut_off(self, proxies: list[FaultProxy], seconds: float) -> None:
    """Black holes for some seconds: bytes are taken and do not arrive."""
    for proxy in proxies:
      proxy.partition()
    self._pass(seconds)
    for proxy in proxies:
      proxy.heal()

  def _pass(self, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      self.look()


def kill_island(world: World, name: str) -> None:
  world.swarm.kill(name)


def kill_two_islands(world: World, name: str) -> None:
  world.swarm.kill(name)
  world.swarm.kill(world.names[world.names.index(name) - 1])


def flap(world: World, name: str) -> None:
  for _ in range(3):
    world.swarm.kill(name)
    world.wait_until(
      lambda status: any(
        i.island == name and i.state in ("joining", "in")
        for i in status.islands
      ),
      f"{name} to come back",
    )


def kill_coordinator(world: World, name: str) -> None:
  world.swarm.kill("coordinator")


def freeze(world: World, name: str) -> None:
  world.stop_for(name, 2 * _LEASE)


def freeze_coordinator(world: World, name: str) -> None:
  world.stop_for("coordinator", 2 * _LEASE)


def reset(world: World, name: str) -> None:
  world.control[name].reset()
  world.blobs[name].reset()


def partition(world: World, name: str) -> None:
  world.cut_off([world.control[name], world.blobs[name]], 2 * _LEASE)


def hide_blobs(world: World, name: str) -> None:
  """The coordinator hears it, but nobody can fetch from it."""
  world.cut_off([world.blobs[name]], 3 * _LEASE)


FAULTS: dict[str, Callable[[World, str], None]] = {
  "SIGKILL of an island": kill_island,
  "SIGKILL of two islands": kill_two_islands,
  "an island flaps": flap,
  "SIGKILL of the coordinator": kill_coordinator,
  "SIGSTOP of an island": freeze,
  "SIGSTOP of the coordinator": freeze_coordinator,
  "TCP reset": reset,
  "partition of an island": partition,
  "an island nobody can read": hide_blobs,
}


@dataclasses.dataclass
class Outcome:
  """What a fault cost."""

  fault: str
  commit_seconds: float  # from the fault's beginning to the next commit
  whole_seconds: float  # until all islands take part again
  tokens_lost: int


def strike(world: World, fault: str, name: str) -> Outcome:
  """Plays one fault and waits until the swarm is whole and commits again."""
  before, _ = world.wait_until(world.all_in, "all islands to be in")
  start = time.monotonic()
  first_commit: list[float] = []
  look = world.look

  def watch() -> pb.Status:
    status = look()
    if status.record > before.record and not first_commit:
      first_commit.append(time.monotonic() - start)
    return status

  world.look = watch
  try:
    FAULTS[fault](world, name)
    world.wait_until(
      lambda status: bool(first_commit) and world.all_in(status),
      f"a commit and all islands after: {fault}",
    )
    whole = time.monotonic() - start
    record = world.swarm.status().record
    after, _ = world.wait_until(
      lambda status: status.record > record,
      f"another commit after: {fault}",
    )
  finally:
    world.look = look
  lost = after.tokens_lost - before.tokens_lost
  return Outcome(fault, first_commit[0], whole, lost)


def run(
  workdir: pathlib.Path, islands: int, faults: list[str], seed: int
) -> dict:
  """Plays the faults in order; returns figures, for the table and as JSON.

  Raises:
    AssertionError: if the end is not one state and a ledger that adds up.
  """
  rng = random.Random(seed)
  plenty = 10**9  # tokens; the run is finished when the faults are over
  with World(workdir, islands, plenty) as world:
    world.wait_until(lambda s: s.record >= 2, "the first records")
    outcomes = []
    for fault in faults:
      outcomes.append(strike(world, fault, rng.choice(world.names)))
      print(outcomes[-1], flush=True)
    status, _ = world.wait_until(world.all_in, "all islands to be in")
    summaries = _stop(world)
  hashes = {s["record"]: set() for s in summaries}
  for summary in summaries:
    hashes[summary["record"]].update(summary["theta_hash"].values())
  assert all(len(same) == 1 for same in hashes.values()), hashes
  assert status.tokens_trained >= status.total_tokens + status.tokens_lost
  return dict(
    outcomes=[dataclasses.asdict(outcome) for outcome in outcomes],
    records=status.record,
    tokens_trained=status.tokens_trained,
    tokens_committed=status.total_tokens,
    tokens_lost=status.tokens_lost,
    losses=[f"{x.tokens} of {x.island}: {x.cause}" for x in status.losses],
    window_tokens=_STEPS * _TOKENS_A_STEP,
    machine=platform.platform(),
  )


def _stop(world: World) -> list[dict]:
  """Asks all islands to hand in what they have; returns their summaries."""
  for part in world.swarm.islands:
    assert part.process is not None
    part.process.terminate()
  for part in world.swarm.islands:
    assert part.process is not None
    part.process.wait(_BOUND)
  return [
    json.loads((part.folder / "summary.json").read_text())
    for part in world.swarm.islands
  ]


def table(figures: dict) -> rich.table.Table:
  result = rich.table.Table(title="chaos")
  for column in ("fault", "times", "s to commit", "s to whole", "tokens lost"):
    result.add_column(column, justify="left" if column == "fault" else "right")
  outcomes = figures["outcomes"]
  for fault in dict.fromkeys(o["fault"] for o in outcomes):
    same = [o for o in outcomes if o["fault"] == fault]
    result.add_row(
      fault,
      str(len(same)),
      f"{max(o['commit_seconds'] for o in same):.1f}",
      f"{max(o['whole_seconds'] for o in same):.1f}",
      str(sum(o["tokens_lost"] for o in same)),
    )
  return result


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--islands", type=int, default=3)
  parser.add_argument("--rounds", type=int, default=2, help="of all faults")
  parser.add_argument("--quick", action="store_true", help="three faults")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--json", help="file for the figures")
  options = parser.parse_args()
  config_lib.load("configs/tiny.py")
  faults = list(FAULTS) * options.rounds
  if options.quick:
    faults = [list(FAULTS)[i] for i in (0, 3, 4)]
  with tempfile.TemporaryDirectory() as workdir:
    folder = pathlib.Path(workdir)
    figures = run(folder, options.islands, faults, options.seed)
  commit = ["git", "rev-parse", "--short", "HEAD"]
  figures["commit"] = subprocess.run(
    commit, capture_output=True, text=True
  ).stdout.strip()
  console = rich.console.Console()
  console.print(table(figures))
  committed, trained = figures["tokens_committed"], figures["tokens_trained"]
  console.print(
    f"{figures['records']} records; {committed / trained:.2%} of"
    f" {trained:,} tokens committed, {figures['tokens_lost']:,} lost."
  )
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  main()
