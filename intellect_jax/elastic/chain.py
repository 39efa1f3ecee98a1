"""A chain of records, and questions to it. No I/O."""

from collections.abc import Sequence
import itertools

from blake3 import blake3
from google.protobuf.message import DecodeError

from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder, Interval


class Chain:
  """The chain as its coordinator keeps it.

  Attributes:
    log: record v at index v, as it was sealed.
    records: the same, opened.
    effective: those that count, in order: what was annulled is left out.
    last_step: the newest step of those; an empty record if there is none.
    state: number of the newest of those that made theta and b what they are.
  """

  def __init__(self, log: Sequence[pb.SealedRecord]):
    self.log = list(log)
    self.records = [pb.Record.FromString(sealed.body) for sealed in log]
    self._read(effective(self.records))

  def add(self, record: pb.Record, sealed: pb.SealedRecord) -> None:
    self.log.append(sealed)
    self.records.append(record)
    self._read(effective([*self.effective, record]))

  def _read(self, counting: list[pb.Record]) -> None:
    self.effective = counting
    steps = (r for r in reversed(counting) if r.HasField("step"))
    self.last_step = next(steps, pb.Record())
    self.state = newest_state(counting).number

  def link(self, record: pb.Record, term: int) -> pb.SealedRecord:
    """Numbers and seals what is to be the next record."""
    record.number = len(self.log)
    record.term = term
    record.previous = self.log[-1].hash if self.log else b""
    return seal(record)

  @property
  def head(self) -> pb.Record:
    """The newest record; an empty one before the run has a state."""
    return self.records[-1] if self.records else pb.Record()

  def counting(self, number: int) -> int:
    """The number, or -1 if that record is annulled, or unknown."""
    return number if any(r.number == number for r in self.effective) else -1

  def moved(self, fragment: int) -> int:
    """Number of the newest record that a fragment of theta and b stands at.

    An annulment moves all of them.
    """
    for record in reversed(self.effective):
      if moves(record, fragment):
        return record.number
    return -1

  def made(self, fragment: int) -> int:
    """Number of the newest record that a fragment's bits are from; or 0."""
    for record in reversed(self.effective):
      if moves(record, fragment) and not record.HasField("annulment"):
        return record.number
    return 0

  def state_at(self, number: int, fragment: int) -> bytes:
    """The hash of a fragment at a record that counts; empty: not known yet."""
    steps = steps_of(self.effective, fragment)
    later = (r.step.base_state for r in steps if r.number > number)
    if steps or not self.records:
      return next(later, b"")
    return first_state(self.records[0].genesis, fragment)

  def has(self, number: int, digest: bytes) -> bool:
    """Whether this very record is in the chain."""
    return number < len(self.log) and self.log[number].hash == digest


def seal(record: pb.Record) -> pb.SealedRecord:
  """A record in the bytes that its hash is of."""
  body = record.SerializeToString(deterministic=True)
  return pb.SealedRecord(body=body, hash=blake3(body).digest())


def opened(sealed: pb.SealedRecord) -> pb.Record | None:
  """The record, or None if these are not the bytes that were sealed."""
  if blake3(sealed.body).digest() != sealed.hash:
    return None
  try:
    return pb.Record.FromString(sealed.body)
  except DecodeError:
    return None


def continuation(
  last: pb.SealedRecord | None, candidates: Sequence[pb.SealedRecord]
) -> list[tuple[pb.Record, pb.SealedRecord]]:
  """Those of `candidates`, from the first on, that go on after `last`."""
  found: list[tuple[pb.Record, pb.SealedRecord]] = []
  before = pb.Record.FromString(last.body) if last is not None else None
  tip = last.hash if last is not None else b""
  for sealed in candidates:
    record = opened(sealed)
    if (
      record is None
      or record.previous != tip
      or record.number != (before.number + 1 if before is not None else 0)
      or record.term < (before.term if before is not None else 0)
    ):
      break
    found.append((record, sealed))
    before, tip = record, sealed.hash
  return found


def moves(record: pb.Record, fragment: int) -> bool:
  """Whether a record makes a fragment of theta and b what it is."""
  if record.HasField("step"):
    return record.step.fragment == fragment
  return record.HasField("genesis") or record.HasField("annulment")


def steps_of(records: Sequence[pb.Record], fragment: int) -> list[pb.Record]:
  """Those of `records` that are steps of a fragment."""
  return [r for r in records if r.HasField("step") and moves(r, fragment)]


def first_state(genesis: pb.Genesis, fragment: int) -> bytes:
  """The hash of a fragment of record 0's state."""
  return genesis.fragments[fragment] if genesis.fragments else genesis.state


def effective(records: Sequence[pb.Record]) -> list[pb.Record]:
  """The records that count, in order: what was annulled is left out."""
  kept: list[pb.Record] = []
  for record in records:
    if record.HasField("annulment"):
      kept = [r for r in kept if r.number <= record.annulment.to]
    kept.append(record)
  return kept


def annulled_windows(
  records: Sequence[pb.Record],
) -> list[tuple[str, Holder, pb.Window]]:
  """The windows that were committed and taken back: why, whose, which."""
  kept: list[pb.Record] = []
  found = []
  for record in records:
    if record.HasField("annulment"):
      to, reason = record.annulment.to, record.annulment.reason
      for each in kept:
        if each.number > to:
          found += [(reason, *window) for window in windows_of(each)]
      kept = [each for each in kept if each.number <= to]
    kept.append(record)
  return found


def newest_state(records: Sequence[pb.Record]) -> pb.Record:
  """The newest record that counts and made theta and b what they are."""
  for record in reversed(effective(records)):
    if record.HasField("step") or record.HasField("genesis"):
      return record
  return pb.Record()


def committed_windows(
  records: Sequence[pb.Record],
) -> list[tuple[Holder, pb.Window]]:
  """The windows in records that count, and whose they were."""
  return list(
    itertools.chain.from_iterable(windows_of(r) for r in effective(records))
  )


def windows_of(record: pb.Record) -> list[tuple[Holder, pb.Window]]:
  """The windows that a record commits, and whose they are."""
  return [
    (Holder(member.island, member.incarnation, window.number), window)
    for member in record.step.members
    for window in member.windows
  ]


def intervals(window: pb.Window | pb.LeaseGrant) -> list[Interval]:
  """The samples of a window, or of its lease."""
  return [(i.start, i.stop) for i in window.samples]
