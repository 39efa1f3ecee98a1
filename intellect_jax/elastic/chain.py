"""Questions to a chain of records. Pure functions."""

from collections.abc import Sequence
import itertools

from blake3 import blake3
from google.protobuf.message import DecodeError

from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder, Interval


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


def effective(records: Sequence[pb.Record]) -> list[pb.Record]:
  """The records that count, in order: what was annulled is left out."""
  kept: list[pb.Record] = []
  for record in records:
    if record.HasField("annulment"):
      kept = [r for r in kept if r.number <= record.annulment.to]
    kept.append(record)
  return kept


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
