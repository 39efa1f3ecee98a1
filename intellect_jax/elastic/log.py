"""An island's own log: the records, and beside each its encoded mean.

Who is late replays it and ends on the same bits. Files, in one folder:

    attempt-3f2a….mean    the mean of an attempt that is not committed yet
    000000012.mean        the mean of record 12
    000000012.record      record 12 as the coordinator sealed it
"""

from collections.abc import Iterator
import itertools
import os
import pathlib

from absl import logging
from blake3 import blake3
from google.protobuf.message import DecodeError
import numpy as np

from intellect_jax.elastic import blobs
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.codec import make_codec


class RecordLog:
  """The committed log of one island, on disk. Used by one thread at a time.

  Who only reads need not `open` it, and may do so beside who writes.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def open(self) -> None:
    """Makes the folder, and forgets attempts of a process before this one."""
    self._folder.mkdir(parents=True, exist_ok=True)
    self._forget_attempts()

  def _forget_attempts(self) -> None:
    for path in self._folder.glob("attempt-*"):
      path.unlink()

  def open_mean(self, attempt: bytes, length: int) -> np.memmap:
    """Returns writable uint8 [length], the mean of an attempt."""
    path = self._attempt_path(attempt)
    with open(path, "ab") as file:  # never shrinks what is mapped already
      # A full disk is an error here; in a sparse map it would end the process.
      os.posix_fallocate(file.fileno(), 0, length)
    return np.memmap(path, np.uint8, "r+", shape=(length,))

  def adopt(self, sealed: pb.SealedRecord) -> pb.Record:
    """Adds a committed record; the mean of its attempt becomes its own."""
    record = pb.Record.FromString(sealed.body)
    attempt = self._attempt_path(record.step.attempt)
    if record.HasField("step") and attempt.exists():
      attempt.rename(self._path(record.number, "mean"))
    self._forget_attempts()
    whole = pb.SealedRecord(body=sealed.body, hash=sealed.hash)
    path = self._path(record.number, "record")
    partial = path.with_suffix(".partial")
    partial.write_bytes(whole.SerializeToString())
    partial.rename(path)
    return record

  def record(self, number: int) -> pb.SealedRecord | None:
    """Record `number`, if it is here and whole."""
    path = self._path(number, "record")
    if not path.exists():
      return None
    try:
      sealed = pb.SealedRecord.FromString(path.read_bytes())
    except DecodeError:
      sealed = pb.SealedRecord()
    if blake3(sealed.body).digest() != sealed.hash:
      logging.warning("Ignoring the damaged log entry %s.", path)
      return None
    return sealed

  def mean(self, number: int) -> np.ndarray | None:
    """The encoded mean of record `number`, uint8, if it is here."""
    path = self._path(number, "mean")
    whole = path.exists() and path.stat().st_size > 0
    return np.memmap(path, np.uint8, "r") if whole else None

  def records(self) -> list[pb.Record]:
    """All records from the first on, annulled ones too."""
    entries = map(self.record, itertools.count())
    whole = itertools.takewhile(lambda sealed: sealed is not None, entries)
    return [pb.Record.FromString(sealed.body) for sealed in whole if sealed]

  def after(self, number: int) -> Iterator[pb.Record]:
    """Yields records from `number` + 1 on, as far as they can be replayed."""
    records: list[pb.Record] = []
    while (sealed := self.record(number + 1 + len(records))) is not None:
      record = pb.Record.FromString(sealed.body)
      if record.HasField("annulment"):
        records = [r for r in records if r.number <= record.annulment.to]
        break
      records.append(record)
    for record in records:
      if not self._replayable(record):
        return
      yield record

  def _replayable(self, record: pb.Record) -> bool:
    """Whether its mean is here, whole: a power loss can tear what it was."""
    if not record.HasField("step"):
      return True
    mean, step = self.mean(record.number), record.step
    length = sum(share.mean.length for share in step.shares)
    if mean is None or len(mean) != length:
      return False
    block_bytes = make_codec(step.codec).block_bytes
    chunk = blobs.chunk_bytes(length, block_bytes)
    for share in step.shares:
      part = mean[share.start * block_bytes : share.stop * block_bytes]
      if blobs.Manifest.of(part, chunk).id != share.mean.id:
        logging.warning("The mean of record %d is damaged.", record.number)
        return False
    return True

  def sync(self, number: int) -> None:
    """Puts record `number` and its mean on the disk for good."""
    for kind in ("mean", "record"):
      path = self._path(number, kind)
      if path.exists():
        with open(path, "rb") as file:
          os.fsync(file.fileno())

  def trim(self, before: int) -> None:
    """Deletes the means of records below `before`; the records stay."""
    for path in self._folder.glob("*.mean"):
      if path.stem.isdigit() and int(path.stem) < before:
        path.unlink()

  def _path(self, number: int, kind: str) -> pathlib.Path:
    return self._folder / f"{number:09d}.{kind}"

  def _attempt_path(self, attempt: bytes) -> pathlib.Path:
    return self._folder / f"attempt-{attempt.hex()[:32]}.mean"
