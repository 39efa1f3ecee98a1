"""Audit a run: what its ledger proves about who trained on which samples.

  python -m intellect_jax.audit --workdir=runs/demo

Reads the coordinator's ledger and the islands' logs, of a run that is over or
still going on, and shows (docs/protocol.md, 7):

* the chain of records is whole, and every island's log is a part of it;
* no window and no sample is committed twice; what a record counts adds up;
* committed samples are a prefix of the global index, but for what is leased
  now (open and carried work) and what came back and will be leased next.

Status 2 and a paragraph if one of these does not hold.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from intellect_jax import command
from intellect_jax.elastic import chain, ledger
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.recovery import TERMS
from intellect_jax.elastic.samples import Holder, Interval, merge, subtract
from intellect_jax.errors import UserError

WORKDIR = command.define_workdir("a coordinator, a lone island or a swarm")

_SHOWN = 5  # faults, and intervals, in words


@dataclasses.dataclass(frozen=True)
class Books:
  """What a ledger has.

  Attributes:
    run: the run half of the config, as plain dicts.
    log: the records as they were sealed.
    leases: outstanding, by holder.
    returned: samples that came back from leases without being consumed.
  """

  run: Mapping[str, Any]
  log: Sequence[pb.SealedRecord]
  leases: Mapping[Holder, list[Interval]]
  returned: Sequence[Interval] = ()


@dataclasses.dataclass
class Report:
  """What an audit has found.

  Attributes:
    faults: what should not be, in words; empty: all is proved.
    records: in the chain, annulled ones too.
    windows, tokens: committed.
    committed, leased, free: samples below the highest one ever given out.
    forgotten: of those free, samples whose way back no ledger noted, because
      one was lost since.
  """

  faults: list[str] = dataclasses.field(default_factory=list)
  records: int = 0
  windows: int = 0
  tokens: int = 0
  committed: list[Interval] = dataclasses.field(default_factory=list)
  leased: list[Interval] = dataclasses.field(default_factory=list)
  free: list[Interval] = dataclasses.field(default_factory=list)
  forgotten: list[Interval] = dataclasses.field(default_factory=list)


def audit(
  books: Books, logs: Mapping[str, Sequence[pb.SealedRecord]]
) -> Report:
  """Compares what must agree.

  Args:
    books: of the coordinator.
    logs: of islands, by name: what they have of the chain.
  """
  report = Report(records=len(books.log))
  report.faults += _chain_faults(books.log)
  for island, log in logs.items():
    report.faults += _log_faults(island, log, books.log)
  records = [pb.Record.FromString(sealed.body) for sealed in books.log]
  counting = chain.effective(records)
  report.faults += _count_faults(counting, books.run)
  _account(report, records, counting, books)
  return report


def _chain_faults(log: Sequence[pb.SealedRecord]) -> Iterator[str]:
  """Whether the records are those that were written, one after the other."""
  previous, term = b"", 0
  for number, sealed in enumerate(log):
    record = chain.opened(sealed)
    if record is None:
      yield f"record {number} is not the one whose hash stands beside it"
      record = pb.Record.FromString(sealed.body)
    if record.number != number or record.previous != previous:
      yield f"record {number} does not follow the one before it"
    if record.term < term:
      yield f"record {number} is of term {record.term}, after term {term}"
    previous, term = sealed.hash, max(term, record.term)


def _log_faults(
  island: str, log: Sequence[pb.SealedRecord], whole: Sequence[pb.SealedRecord]
) -> Iterator[str]:
  for sealed in log:
    number = pb.Record.FromString(sealed.body).number
    if number >= len(whole):
      yield f"{island} has record {number}, which the ledger has not"
    elif sealed.hash != whole[number].hash:
      yield f"{island} has another record {number} than the ledger"


def _count_faults(
  counting: Sequence[pb.Record], run: Mapping[str, Any]
) -> Iterator[str]:
  """Whether windows, weights and totals are what their samples come to."""
  batch = run["inner"]["batch_size"]
  tokens_a_sample = run["data"]["sequence_length"]
  seen: dict[Holder, int] = {}
  total = 0
  for record in counting:
    for member in record.step.members:
      weight = sum(window.tokens for window in member.windows)
      # Rounds of fragments other than 0 carry weights alone.
      said = np.float32(weight) == np.float32(member.weight)
      if not (said or record.step.fragment):
        yield (
          f"record {record.number} gives {member.island} the weight"
          f" {member.weight:g} for {weight} tokens"
        )
    for holder, window in chain.windows_of(record):
      name = _named(holder)
      if holder in seen:
        yield f"{name} is in records {seen[holder]} and {record.number}"
      seen[holder] = record.number
      samples = _size(chain.intervals(window))
      if (samples, window.tokens) != (
        window.steps * batch,
        samples * tokens_a_sample,
      ):
        yield (
          f"{name} in record {record.number} has {samples} samples for"
          f" {window.steps} steps and {window.tokens} tokens"
        )
      total += window.tokens
    if record.total_tokens != total:
      yield (
        f"record {record.number} counts {record.total_tokens} tokens, and its"
        f" windows and those before it come to {total}"
      )
      total = record.total_tokens


def _account(
  report: Report,
  records: Sequence[pb.Record],
  counting: Sequence[pb.Record],
  books: Books,
) -> None:
  """Where every sample is, up to the highest one that was given out."""
  windows = chain.committed_windows(counting)
  committed = {holder for holder, _ in windows}
  report.windows = len(windows)
  report.tokens = sum(window.tokens for _, window in windows)
  for holder, window in windows:
    own = merge(chain.intervals(window))
    report.faults += _twice(own, report.committed, _named(holder))
    report.committed = merge([*report.committed, *own])
  for holder, samples in books.leases.items():
    if holder in committed:
      continue  # its end was lost with a coordinator's disk
    own = merge(samples)
    taken = merge([*report.committed, *report.leased])
    report.faults += _twice(own, taken, f"the lease of {_named(holder)}")
    report.leased = merge([*report.leased, *own])
  taken = merge([*report.committed, *report.leased])
  end = taken[-1][1] if taken else 0
  report.free = subtract([(0, end)], taken)
  annulled = [r for r in records if r not in counting]
  back = [i for r in annulled for _, w in chain.windows_of(r)
          for i in chain.intervals(w)]  # fmt: skip
  unknown = subtract(report.free, [*books.returned, *back])
  if unknown and records[-1].term >= TERMS:
    report.forgotten = unknown
  elif unknown:
    report.faults.append(
      f"samples {_shown(unknown)} are nowhere: neither committed, nor leased,"
      " nor come back from a lease"
    )


def _twice(
  own: list[Interval], taken: list[Interval], name: str
) -> Iterator[str]:
  rest = subtract(own, taken)
  if rest != own:
    yield f"samples {_shown(subtract(own, rest))} of {name} are taken twice"


def _named(holder: Holder) -> str:
  return (
    f"window {holder.window} of {holder.island} (incarnation"
    f" {holder.incarnation})"
  )


def _size(intervals: Sequence[Interval]) -> int:
  return sum(stop - start for start, stop in intervals)


def _shown(intervals: Sequence[Interval]) -> str:
  shown = [f"{start}–{stop - 1}" for start, stop in intervals[:_SHOWN]]
  more = len(intervals) - len(shown)
  return ", ".join(shown) + (f" and {more} more" if more else "")


# ------------------------------------------------------------ what is read


def read(workdir: pathlib.Path) -> tuple[Books, dict[str, list]]:
  """The ledger below a workdir, and the logs of the islands beside it.

  Raises:
    UserError: if there is no ledger, or it cannot be read.
  """
  places = (workdir, workdir / "coordinator")
  found = [p / ledger.FILE for p in places if (p / ledger.FILE).is_file()]
  if not found:
    raise UserError(
      f"There is no ledger.sqlite in {workdir} or in its folder coordinator."
      " --workdir is that of a coordinator, of a lone island or of a swarm."
    )
  folders = [workdir, *sorted(p for p in workdir.iterdir() if p.is_dir())]
  logs = {
    folder.name: _read_log(folder / "log")
    for folder in folders
    if (folder / "log").is_dir()
  }
  return read_ledger(found[0]), logs


def _read_log(folder: pathlib.Path) -> list[pb.SealedRecord]:
  log = RecordLog(folder)
  numbers = sorted(int(path.stem) for path in folder.glob("*.record"))
  return [sealed for n in numbers if (sealed := log.record(n)) is not None]


def read_ledger(path: pathlib.Path) -> Books:
  """Reads a copy, so that a coordinator may go on writing.

  Raises:
    UserError: if it is no ledger of this version.
  """
  with ledger.reading(path) as db:
    (run,) = db.execute("SELECT config FROM run").fetchone()
    return Books(
      json.loads(run),
      [
        pb.SealedRecord(body=body, hash=digest)
        for body, digest in db.execute(
          "SELECT body, hash FROM records ORDER BY number"
        )
      ],
      {
        Holder(*row[:3]): [(a, b) for a, b in json.loads(row[3])]
        for row in db.execute("SELECT * FROM leases")
      },
      [
        (a, b)
        for (samples,) in db.execute("SELECT samples FROM returned")
        for a, b in json.loads(samples)
      ],
    )


def main() -> None:
  books, logs = read(command.path(WORKDIR))
  report = audit(books, logs)
  if report.faults:
    more = len(report.faults) - _SHOWN
    raise UserError(
      f"The audit found {len(report.faults)} faults:"
      f" {'; '.join(report.faults[:_SHOWN])}"
      + (f"; and {more} more." if more > 0 else ".")
    )
  for line in lines(report, len(logs)):
    print(line)


def lines(report: Report, logs: int) -> Iterator[str]:
  """What was proved, in words."""
  yield (
    f"{report.records} records in one chain; {logs} islands' logs agree with it"
  )
  yield (
    f"{_size(report.committed):,} samples ({report.tokens:,} tokens) in"
    f" {report.windows} windows are committed, each once:"
    f" {_shown(report.committed)}"
  )
  if report.leased:
    yield f"leased, open or carried: {_shown(report.leased)}"
  if report.free:
    yield f"came back, and are leased next: {_shown(report.free)}"
  if report.forgotten:
    yield (
      f"of those {_shown(report.forgotten)} were leased when a ledger was lost"
    )
  end = max(
    (i[-1][1] for i in (report.committed, report.leased) if i), default=0
  )
  yield f"together they are samples 0 to {end - 1} of the index, without a hole"


if __name__ == "__main__":
  command.run(main)
