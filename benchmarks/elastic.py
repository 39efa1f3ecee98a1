"""What a fault costs, with real processes on loopback.

  python -m benchmarks.elastic --json=benchmarks/results/elastic.json
  python -m benchmarks.elastic --quick        # a quarter of the values, 1 min

Coordinator and islands are processes and everything between them is real, but
islands train nothing: they have random parameters of 100 million values. Each
figure is the median of its repetitions. TLS is off, hashing on.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib
import signal
import statistics
import tempfile
import time
from typing import Any

from absl import app, flags
import rich.console
import rich.table

from benchmarks import machine
from benchmarks.bare_island import PHASES
from benchmarks.loopback import Child, Event, Loopback, names_of

_QUICK = flags.DEFINE_bool("quick", False, "Fewer values, under a minute.")
_ONLY = flags.DEFINE_list("only", [], "Of these measures; none: all.")
_JSON = flags.DEFINE_string("json", None, "File for every figure.")

_SMALL = 1_000_000  # values, where time is spent on noticing
_LEASE = 3.0  # seconds

Row = dict[str, Any]


@contextlib.contextmanager
def islands(
  count: int, values: int, proxied: bool = False
) -> Iterator[Loopback]:
  names = names_of(count)
  with (
    tempfile.TemporaryDirectory() as folder,
    Loopback(
      pathlib.Path(folder), values, names, proxied, lease=_LEASE
    ) as swarm,
  ):
    yield swarm


def kill(values: int, times: int) -> Iterator[Row]:
  """SIGKILL of one of three, in the middle of the reduce."""
  with islands(3, values) as swarm:
    swarm.order("step")
    swarm.wait("rested")
    seconds = []
    for _ in range(times):
      record = _strike(swarm, "kill", "reduce")
      seconds.append(record["seconds"])
      assert record["members"] == 2, "the killed island is in the record"
      _come_back(swarm, "c")
    yield dict(
      measure="SIGKILL in the reduce of three: to the record on survivors",
      values=values,
      seconds=seconds,
      bar=1.0,
    )


def _strike(
  swarm: Loopback,
  fault: str,
  phase: str,
  strike: Callable[[], None] = lambda: None,
) -> Row:
  """A fault of island c in a phase; seconds until the others have a record."""
  victim = swarm.islands["c"]
  others = [i for name, i in swarm.islands.items() if name != "c"]
  for island in swarm.islands.values():
    island.events.clear()
  victim.order("step", fault=fault, phase=phase)
  for island in others:
    island.order("step")
  if fault == "wait":
    victim.wait("waiting")
    began = time.monotonic()
    strike()
    victim.order("go")
  else:
    began = victim.wait("fault")["at"]
  records = [island.wait("applied") for island in others]
  for island in others:
    island.wait("rested")
  committed = max(
    event["at"]
    for island in others
    for event in island.events
    if event["kind"] == "committed"
  )
  return dict(seconds=committed - began, members=records[0]["members"])


def _come_back(swarm: Loopback, name: str) -> None:
  """A new process in the same workdir takes its place, and part in a record.

  Nobody waits for a newcomer, so that it has to propose before the others.
  """
  swarm.islands[name].kill()
  swarm.heal(name)
  newcomer = swarm.start_island(name)
  newcomer.wait("rested")
  newcomer.order("step")
  newcomer.wait("proposed")
  for other in swarm.islands.values():
    if other is not newcomer:
      other.order("step")
  swarm.wait("rested")


def silence(phases: tuple[str, ...]) -> Iterator[Row]:
  """SIGSTOP and a black hole in each phase: the others go on."""
  with islands(3, _SMALL, proxied=True) as swarm:
    swarm.order("step")
    swarm.wait("rested")
    for phase in phases:
      for fault in "SIGSTOP", "black hole":
        if fault == "SIGSTOP":
          outcome = _strike(swarm, "stop", phase)
        else:
          outcome = _strike(swarm, "wait", phase, lambda: swarm.black_hole("c"))
        yield dict(
          measure=f"{fault} in {phase}: to the record on the others",
          values=_SMALL,
          seconds=[outcome["seconds"]],
          members=outcome["members"],
          bar=_LEASE,
        )
        _come_back(swarm, "c")


def fetch(values: int, times: int) -> Iterator[Row]:
  """A newcomer's theta and b, from two islands that do nothing else."""
  with islands(3, values) as swarm:
    donors, joiner = [swarm.islands[n] for n in "ab"], swarm.islands["c"]
    for donor in donors:
      donor.order("offer")
    offers = [donor.wait("offered") for donor in donors]
    assert offers[0]["id"] == offers[1]["id"], "donors differ"
    fetched = [_fetch(joiner, offers) for _ in range(times)]
    yield dict(
      measure="a state of 400 MB, fetched from two and verified"
      if fetched[0]["bytes"] == 400_000_000
      else f"a state of {fetched[0]['bytes'] / 1e6:.0f} MB, fetched from two",
      values=values,
      seconds=[event["seconds"] for event in fetched],
      bar=1.0,
    )


def _fetch(joiner: Child, offers: list[Event]) -> Event:
  addresses = [a for offer in offers for a in offer["addresses"]]
  joiner.order("fetch", id=offers[0]["id"], addresses=addresses)
  return joiner.wait("fetched")


def coordinator(phases: tuple[str, ...]) -> Iterator[Row]:
  """The coordinator dies in the middle of a round, and is started again."""
  with islands(3, _SMALL) as swarm:
    swarm.order("step")
    swarm.wait("rested")
    pids = [island.pid for island in swarm.islands.values()]
    seconds, from_back = [], []
    for phase in phases:
      before = swarm.islands["a"].events[-1]
      for island in swarm.islands.values():
        island.events.clear()
      for name, island in swarm.islands.items():
        fault = dict(fault="wait", phase=phase) if name == "c" else {}
        island.order("step", **fault)
      swarm.islands["c"].wait("waiting")
      swarm.coordinator.signal(signal.SIGKILL)
      killed = time.monotonic()
      swarm.start_coordinator()
      swarm.islands["c"].order("go")
      back = swarm.await_coordinator()
      states = {event["state"] for event in swarm.wait("rested")}
      assert len(states) == 1 and before["state"] not in states
      committed = max(swarm.moments("committed"))
      seconds.append(committed - killed)
      from_back.append(committed - back)
    assert pids == [island.pid for island in swarm.islands.values()]
    yield dict(
      measure="coordinator killed in a round: to the next record",
      values=_SMALL,
      seconds=seconds,
    )
    yield dict(
      measure="… of that, since it listens again",
      values=_SMALL,
      seconds=from_back,
    )


def measures(quick: bool) -> dict[str, Callable[[], Iterator[Row]]]:
  values = 25_000_000 if quick else 100_000_000
  times = 2 if quick else 5
  phases = PHASES[1:2] if quick else PHASES
  return dict(
    kill=lambda: kill(values, 1 if quick else times),
    fetch=lambda: fetch(values // 2, times),
    silence=lambda: silence(phases),
    coordinator=lambda: coordinator(phases),
  )


def table(rows: list[Row]) -> rich.table.Table:
  result = rich.table.Table(title="elastic rounds on loopback")
  for column in ("measure", "values", "s, median", "s, worst", "bar"):
    justify = "left" if column == "measure" else "right"
    result.add_column(column, justify=justify)
  for row in rows:
    seconds = row["seconds"]
    result.add_row(
      row["measure"],
      f"{row['values'] / 1e6:g}M",
      f"{statistics.median(seconds):.3f}",
      f"{max(seconds):.3f}",
      f"{row['bar']:g}" if "bar" in row else "",
    )
  return result


def main(_) -> None:
  found = machine.describe()
  rows: list[Row] = []
  for name, measure in measures(_QUICK.value).items():
    if not _ONLY.value or name in _ONLY.value:
      began = machine.load()
      for row in measure():
        rows.append(row | dict(load=[began, machine.load()]))
        print(row["measure"], [round(s, 3) for s in row["seconds"]], flush=True)
  rich.console.Console().print(table(rows))
  if _JSON.value:
    path = pathlib.Path(_JSON.value)
    path.write_text(json.dumps(dict(machine=found, rows=rows), indent=2) + "\n")


if __name__ == "__main__":
  app.run(main)
