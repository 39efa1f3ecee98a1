"""Where a model comes from: what was trained on what, and who gave the hours.

The records say who trained how many tokens, on which samples, and all islands
agree on them. The rest is in no record: held-out losses and lost tokens are in
the coordinator's ledger, the hours of all islands in its metrics.jsonl. Where it
is not at hand, an island's own metrics.jsonl has what that one knows.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from intellect_jax.data.mixture import Mixture
from intellect_jax.elastic import chain, ledger
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.steering import Steering
from intellect_jax.errors import UserError
from intellect_jax.observe import metrics

Event = dict[str, Any]


@dataclasses.dataclass
class Contribution:
  """What an island has given to a model.

  Attributes:
    tokens, steps: committed, in all its windows.
    records: outer steps that it is a member of.
    hours: of training and waiting, by the clock; None: not known.
    place: where it stands, in its own words.
  """

  tokens: int = 0
  steps: int = 0
  records: int = 0
  hours: float | None = None
  place: str = ""


@dataclasses.dataclass(frozen=True)
class Provenance:
  """What there is to tell of a model.

  Attributes:
    record: that theta is of.
    tokens: committed by then.
    lost: tokens trained in vain in the run so far; None: not known.
    islands: by name.
    sources: tokens of each source that were committed.
    evaluations: record, held-out loss in nats a token; in order.
    first, last: unix seconds of the first and the last event; 0: not known.
    outer: eta and mu of the newest step; 0 if there is none.
    changed: settings that an operator changed on the way, values as JSON.
  """

  record: int
  tokens: int
  lost: int | None
  islands: dict[str, Contribution]
  sources: dict[str, int]
  evaluations: list[tuple[int, float]]
  first: float
  last: float
  outer: tuple[float, float]
  changed: dict[str, str]


def gather(
  workdir: pathlib.Path,
  run: ConfigDict,
  run_id: str,
  record: int,
  coordinator: pathlib.Path | None = None,
) -> Provenance:
  """Reads what an island's workdir has, and its coordinator's.

  Args:
    workdir: of the island.
    run: the run half of the config.
    run_id: of the run.
    record: that theta is of.
    coordinator: its workdir; None: looked for beside that of the island.

  Raises:
    UserError: if `coordinator` is not of this run.
  """
  log = chain.effective(RecordLog(workdir / "log").records())
  steps = [r for r in log if r.number <= record]
  tokens = steps[-1].total_tokens if steps else 0
  islands = contributions(steps)
  books = _books(workdir, coordinator, run_id)
  own = _events(workdir)
  events = _events(books.folder) or own
  for name, given in (hours_of(own) | hours_of(events)).items():
    if name in islands:
      islands[name].hours, islands[name].place = given
  count = {r.number for r in steps}
  times = [e["time"] for e in events if e.get("round", 0) <= record]
  outer = [(r.step.learning_rate, r.step.momentum) for r in steps
           if r.HasField("step")]  # fmt: skip
  return Provenance(
    record,
    tokens,
    books.lost,
    islands,
    sources_of(steps, run.data),
    [(number, loss) for number, loss in books.evaluations if number in count],
    min(times, default=0.0),
    max(times, default=0.0),
    outer[-1] if outer else (0.0, 0.0),
    Steering.of(steps).changed(record),
  )


def contributions(records: Iterable[pb.Record]) -> dict[str, Contribution]:
  """What each island has in records that count, by name; most tokens first."""
  found: dict[str, Contribution] = {}
  for record in records:
    for member in record.step.members:
      of = found.setdefault(member.island, Contribution())
      of.tokens += sum(window.tokens for window in member.windows)
      of.steps += sum(window.steps for window in member.windows)
      of.records += 1
  return dict(sorted(found.items(), key=lambda item: -item[1].tokens))


def sources_of(
  records: Sequence[pb.Record], data: ConfigDict
) -> dict[str, int]:
  """Tokens of each source in records that count.

  Args:
    records: those.
    data: `run.data`.
  """
  mixture = Mixture(data.stages, data.sequence_length)
  totals = dict.fromkeys(data.sources, 0)
  for record in records:
    for _, window in chain.windows_of(record):
      for start, stop in chain.intervals(window):
        counts = mixture.count(start, stop) * data.sequence_length
        for name, count in zip(data.sources, counts, strict=True):
          totals[name] += int(count)
  return totals


def hours_of(events: Iterable[Event]) -> dict[str, tuple[float, str]]:
  """Hours that islands gave, and their places, from a metrics.jsonl.

  Each process of an island counts from 0, so what is counted is the largest of
  each: of a coordinator's file by incarnation, of an island's own, where one
  process comes after the other, whenever the count falls.
  """
  most: dict[tuple[str, int], float] = {}
  places: dict[str, str] = {}
  process = 0
  for event in events:
    if event["kind"] == "record" and "hours" in event:  # of a coordinator
      for name, told in event["hours"].items():
        who = name, told["incarnation"]
        seconds = told["train_seconds"] + told["blocked_seconds"]
        most[who] = max(most.get(who, 0.0), seconds)
        places[name] = told["place"]
    elif "train_seconds" in event:
      name = event["island"]
      seconds = event["train_seconds"] + event["blocked_seconds"]
      if seconds < most.get((name, process), 0.0):
        process += 1
      most[name, process] = seconds
  names = dict.fromkeys(name for name, _ in most)
  return {
    name: (
      math.fsum(s for (n, _), s in most.items() if n == name) / 3600,
      places.get(name, ""),
    )
    for name in names
  }


def of_status(status: pb.Status) -> Mapping[str, dict[str, Any]]:
  """What a coordinator notes down of each island, for `hours_of`."""
  return {
    i.island: dict(
      incarnation=i.incarnation,
      place=i.place,
      train_seconds=i.heartbeat.train_seconds,
      blocked_seconds=i.heartbeat.blocked_seconds,
    )
    for i in status.islands
  }


class _Books(NamedTuple):
  """What a coordinator's workdir has; or, if it is not near, an island's."""

  folder: pathlib.Path
  lost: int | None
  evaluations: list[tuple[int, float]]


def _books(
  workdir: pathlib.Path, coordinator: pathlib.Path | None, run_id: str
) -> _Books:
  own = {
    e["round"]: e["eval_loss"]
    for e in _events(workdir)
    if e["kind"] == "evaluation" and e["eval_loss"] is not None
  }
  near = (workdir / "coordinator", workdir.parent / "coordinator")
  for folder in near if coordinator is None else (coordinator,):
    if (folder / ledger.FILE).is_file():
      with ledger.reading(folder / ledger.FILE) as db:
        if db.execute("SELECT id FROM run").fetchone() == (run_id,):
          losses = db.execute("SELECT tokens FROM losses").fetchall()
          heard = dict(db.execute("SELECT * FROM evaluations").fetchall())
          lost = sum(tokens for (tokens,) in losses)
          return _Books(folder, lost, sorted((own | heard).items()))
  if coordinator is not None:
    raise UserError(
      f"{coordinator} has no {ledger.FILE} of the run in {workdir}. Pass the"
      " --workdir that the run's coordinator was started with, or nothing: the"
      " card is then without the hours of other islands."
    )
  return _Books(workdir, None, sorted(own.items()))


def _events(folder: pathlib.Path) -> list[Event]:
  path = folder / "metrics.jsonl"
  return metrics.read(path) if path.is_file() else []
