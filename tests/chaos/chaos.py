"""Chaos: a swarm of real processes under faults of every kind, one by one.

  make chaos                    # 68 faults, 10 minutes
  make chaos ARGS=--quick       # three, in a minute
  make chaos ARGS="--fragments=2 --overlap"   # both in flight while it trains
  make soak                     # eight islands, a fault every 30 s

Steps are paced, so that the cores are mostly idle and what is timed is the
protocol. After each fault the run must commit again, with everybody back; at
the end all islands hold one state hash, the ledger adds up, and the loss is
that of runs of the same size without a fault. Prints a table: seconds from the
fault to the next commit and until all islands take part again, tokens that
were lost, and seconds that islands which were not struck stood still, beyond
what they do when nothing happens.
"""

import argparse
import collections
from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time
from typing import Any

from faults import FAULTS, NOT_SOAKED
import rich.console
import rich.table
from world import INNER_STEPS, TOKENS_A_STEP, World, flags

from benchmarks import machine
from intellect_jax import swarm as swarm_lib
from intellect_jax.elastic.protocol import elastic_pb2 as pb

_PACE = 0.2  # seconds a step
_SOAK_PACE = 0.5  # of eight islands on two cores
_SOAK_EVERY = 30.0  # seconds between faults
_WARM_RECORDS = 5  # undisturbed, in which islands' waiting is measured
_ENDING = 60.0  # seconds from leaving the run to the process's end
_LAST = 5  # evaluations whose mean is a run's final loss
_REFERENCES = 3  # runs without faults, whose losses tell the noise
_QUICK = (
  "SIGKILL of an island",
  "SIGKILL of the coordinator",
  "SIGSTOP of an island",
)
_OVERLAP = "overlap_steps=2", "merge_alpha=0.5"
_SOAKED = tuple(fault for fault in FAULTS if fault not in NOT_SOAKED)


@dataclasses.dataclass
class Outcome:
  """What a fault cost."""

  fault: str
  commit_seconds: float  # from the fault's beginning to the next commit
  whole_seconds: float  # until all islands take part again
  tokens_lost: int
  blocked_seconds: float  # the most of an island that was not struck


class Waiting:
  """How long islands stand still, beyond what each record costs anyway."""

  def __init__(self, world: World):
    first = world.wait_until(world.all_in, "all islands to be in")
    there = first.record + _WARM_RECORDS
    last = world.wait_until(lambda s: s.record >= there, "the first records")
    grown = _blocked_since(first, last, world.names)
    self._a_record = statistics.mean(grown) / (last.record - first.record)

  def beyond(
    self, first: pb.Status, last: pb.Status, names: list[str]
  ) -> float:
    """The most of these islands, between two looks."""
    usual = self._a_record * (last.record - first.record)
    grown = _blocked_since(first, last, names)
    return max(0.0, max(grown, default=0.0) - usual)


def _blocked_since(
  first: pb.Status, last: pb.Status, names: list[str]
) -> list[float]:
  """Of islands that are the same processes in both."""
  before = {(i.island, i.incarnation): i.heartbeat for i in first.islands}
  return [
    i.heartbeat.blocked_seconds
    - before[i.island, i.incarnation].blocked_seconds
    for i in last.islands
    if i.island in names and (i.island, i.incarnation) in before
  ]


def _lost_since(before: pb.Status, after: pb.Status) -> int:
  """Tokens. A ledger that was lost has taken its earlier losses with it."""
  anew = after.tokens_lost < before.tokens_lost
  return after.tokens_lost - (0 if anew else before.tokens_lost)


def strike(world: World, waiting: Waiting, fault: str, name: str) -> Outcome:
  """Plays one fault and waits until the swarm is whole and commits again."""
  before = world.wait_until(world.all_in, "all islands to be in")
  start = time.monotonic()
  commits = []  # seconds from the start
  look = world.look

  def watch() -> pb.Status:
    status = look()
    if status.record > before.record and not commits:
      commits.append(time.monotonic() - start)
    return status

  world.look = watch
  try:
    FAULTS[fault](world, name)
    world.wait_until(
      lambda status: bool(commits) and world.all_in(status),
      f"a commit and all islands after: {fault}",
    )
    whole = time.monotonic() - start
    record = world.swarm.status().record
    after = world.wait_until(
      lambda status: status.record > record, f"another commit after: {fault}"
    )
  finally:
    world.look = look
  others = [other for other in world.names if other != name]
  return Outcome(
    fault,
    commits[0],
    whole,
    _lost_since(before, after),
    waiting.beyond(before, after, others),
  )


def one_by_one(
  folder: pathlib.Path,
  islands: int,
  faults: list[str],
  rng: random.Random,
  outer: Sequence[str],
) -> dict[str, Any]:
  """Plays the faults in order; returns figures.

  Raises:
    AssertionError: if the end is not one state and a ledger that adds up.
  """
  outcomes = []
  with World(folder, islands, _PACE, outer) as world:
    if not world.small_disk:
      print("No full disk: a small one can be mounted by root alone.")
      faults = [fault for fault in faults if fault != "disk full"]
    waiting = Waiting(world)
    began, cpu = time.monotonic(), world.cpu_seconds()
    for fault in faults:
      outcomes.append(strike(world, waiting, fault, rng.choice(world.names)))
      print(outcomes[-1], flush=True)
    busy = (world.cpu_seconds() - cpu) / (time.monotonic() - began)
    figures = end(world)
  return figures | dict(
    outcomes=[dataclasses.asdict(outcome) for outcome in outcomes],
    busy_cores=busy,
  )


def soak(
  folder: pathlib.Path,
  islands: int,
  minutes: float,
  rng: random.Random,
  outer: Sequence[str],
) -> dict[str, Any]:
  """A fault every now and then, whatever the one before has left behind."""
  struck: collections.Counter[str] = collections.Counter()
  with World(folder, islands, _SOAK_PACE, outer) as world:
    world.wait_until(world.all_in, "all islands to be in")
    began, cpu = time.monotonic(), world.cpu_seconds()
    due = began
    while due < began + 60 * minutes:
      world.let_pass(due - time.monotonic())
      fault = rng.choice(_SOAKED)
      struck[fault] += 1
      print(f"{due - began:4.0f} s: {fault}", flush=True)
      FAULTS[fault](world, rng.choice(world.names))
      due += _SOAK_EVERY
    world.let_pass(due - time.monotonic())
    world.wait_until(world.all_in, "all islands to be in")
    busy = (world.cpu_seconds() - cpu) / (time.monotonic() - began)
    figures = end(world)
  return figures | dict(struck=dict(struck), busy_cores=busy)


def end(world: World) -> dict[str, Any]:
  """Asks all islands to hand in what they have; checks what they leave."""
  world.wait_until(world.all_in, "all islands to be in")
  for part in world.swarm.islands:
    assert part.process is not None
    part.process.terminate()
  status = world.wait_until(
    lambda s: all(
      i.state in ("left", "gone") for i in s.islands if i.island in world.names
    ),
    "all islands to leave",
  )
  for part in world.swarm.islands:  # who has left may still be writing
    assert part.process is not None
    part.process.wait(_ENDING)
  losses = [e.loss for e in status.evaluations[-_LAST:]]
  summaries = [
    json.loads((part.folder / "summary.json").read_text())
    for part in world.swarm.islands
  ]
  hashes = collections.defaultdict(set)
  for summary in summaries:
    hashes[summary["record"]].update(summary["theta_hash"].values())
  assert all(len(same) == 1 for same in hashes.values()), hashes
  trained, committed = status.tokens_trained, status.total_tokens
  open_ = trained - committed - status.tokens_lost
  assert open_ >= 0, (trained, committed, status.tokens_lost)
  return dict(
    records=status.record,
    term=status.term,
    tokens_trained=trained,
    tokens_committed=committed,
    tokens_lost=status.tokens_lost,
    tokens_open=open_,
    committed_part=committed / trained,
    losses=[f"{x.tokens} of {x.island}: {x.cause}" for x in status.losses],
    final_loss=statistics.mean(losses),
    window_tokens=INNER_STEPS * TOKENS_A_STEP,
    bytes_relayed=sum(s.heartbeat.bytes_relayed for s in status.islands),
  )


def undisturbed(
  folder: pathlib.Path,
  islands: int,
  tokens: int,
  seed: int,
  outer: Sequence[str],
) -> float:
  """The final loss of a run of this size without faults, and without pace."""
  settings = [
    *flags(0.0, tokens, outer),
    f"--config.run.data.seed={seed}",
    "--config.island.checkpoint.every=0",
  ]
  swarm = swarm_lib.Swarm(folder, islands, settings)
  with swarm:
    for status in swarm.watch():
      last = status
  return statistics.mean(e.loss for e in last.evaluations[-_LAST:])


def check_loss(
  figures: dict[str, Any], islands: int, outer: Sequence[str]
) -> None:
  """The loss is that of runs without faults, give or take their noise."""
  with tempfile.TemporaryDirectory() as folder:
    references = [
      undisturbed(
        pathlib.Path(folder) / str(seed),
        islands,
        figures["tokens_committed"],
        seed,
        outer,
      )
      for seed in range(_REFERENCES)
    ]
  noise = max(references) - min(references)
  bound = max(references) + noise
  figures.update(undisturbed_losses=references)
  print(
    f"loss {figures['final_loss']:.4f}; without faults"
    f" {', '.join(f'{loss:.4f}' for loss in references)}: at most {bound:.4f}"
  )
  assert figures["final_loss"] <= bound, figures


def table(figures: dict[str, Any]) -> rich.table.Table:
  result = rich.table.Table(title="chaos")
  columns = (
    *("fault", "times", "s to commit", "s to whole"),
    *("tokens lost", "s others blocked"),
  )
  for column in columns:
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
      f"{max(o['blocked_seconds'] for o in same):.1f}",
    )
  return result


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--islands", type=int, help="3; with --soak 8")
  parser.add_argument("--rounds", type=int, default=4, help="of all faults")
  parser.add_argument("--quick", action="store_true", help="three faults")
  parser.add_argument(
    "--fragments", type=int, default=1, metavar="P", help="of the model"
  )
  parser.add_argument(
    "--overlap", action="store_true", help="train on while rounds are open"
  )
  parser.add_argument("--only", action="append", help="this fault alone")
  parser.add_argument("--soak", type=float, metavar="MINUTES")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--json", help="file for the figures")
  options = parser.parse_args()
  islands = options.islands or (8 if options.soak else 3)
  faults = options.only or list(_QUICK if options.quick else FAULTS)
  rounds = 1 if options.quick else options.rounds
  rng = random.Random(options.seed)
  found = machine.describe()
  folder = pathlib.Path(tempfile.mkdtemp(prefix="chaos-"))
  print(f"logs: {folder}", flush=True)
  outer = [f"fragments={options.fragments}", *(_OVERLAP * options.overlap)]
  if options.soak:
    figures = soak(folder, islands, options.soak, rng, outer)
  else:
    figures = one_by_one(folder, islands, faults * rounds, rng, outer)
    if not (options.quick or options.only):
      check_loss(figures, islands, outer)
  console = rich.console.Console()
  if "outcomes" in figures:
    console.print(table(figures))
  console.print(
    f"{figures['records']} records, term {figures['term']};"
    f" {figures['committed_part']:.2%} of {figures['tokens_trained']:,} tokens"
    f" committed, {figures['tokens_lost']:,} lost, {figures['tokens_open']:,}"
    f" neither. {figures['busy_cores']:.2f} of {os.cpu_count()} cores busy."
  )
  causes: collections.Counter[str] = collections.Counter()
  for loss in figures["losses"]:
    tokens, _, cause = loss.partition(" of ")
    causes[cause.partition(": ")[2]] += int(tokens)
  for cause, tokens in causes.most_common():
    console.print(f"  {tokens:,} tokens lost: {cause}")
  if options.json:
    text = json.dumps(dict(machine=found, **figures), indent=2)
    pathlib.Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  main()
