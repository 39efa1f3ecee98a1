"""An island's own log: the records, and beside each its encoded mean.

Who is late replays it and ends on the same bits. Files, in one folder:

    attempt-0-3f2a….mean  the mean of an attempt that is not committed yet, of
                          fragment 0
    000000012.mean        the mean of record 12
    000000012.record      record 12 as the coordinator sealed it

All records are kept, annulled ones too: they are small, and whoever recovers a
run from an island needs the whole chain. Means are dropped in time.
"""

from collections.abc import Iterator
import contextlib
import itertools
import os
import pathlib
import threading

from absl import logging
from google.protobuf.message import DecodeError
import numpy as np

from intellect_jax.elastic import blobs, chain, means
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.codec import make_codec


class RecordLog:
  """The committed log of one island, on disk. Written by one thread.

  Who only reads need not `open` it, and may do so beside who writes.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._unsynced: set[int] = set()  # records that a power loss may take
    self._syncing = threading.Lock()
    self._left: set[pathlib.Path] = set()  # attempts of a process before

  def open(self) -> None:
    """Makes the folder, and looks what a process before this one has left."""
    self._folder.mkdir(parents=True, exist_ok=True)
    self._left = set(self._folder.glob("attempt-*"))
    # Whether that process came to sync them is not known.
    self._unsynced = {int(p.stem) for p in self._folder.glob("*.record")}

  def _forget_attempts(self, fragment: int) -> None:
    for path in self._folder.glob(f"attempt-{fragment}-*"):
      path.unlink()

  # ------------------------------------------------------------- to write

  def open_mean(
    self, attempt: bytes, length: int, fragment: int = 0
  ) -> np.memmap:
    """Returns writable uint8 [length], the mean of an attempt."""
    path = self._attempt_path(attempt, fragment)
    with open(path, "ab") as file:  # never shrinks what is mapped already
      # A full disk is an error here; in a sparse map it would end the process.
      os.posix_fallocate(file.fileno(), 0, length)
    return np.memmap(path, np.uint8, "r+", shape=(length,))

  def was_left(self, attempt: bytes, fragment: int = 0) -> bool:
    """Whether a process before this one had begun to write an attempt's mean.

    It may be whole, and of a record by now.
    """
    return self._attempt_path(attempt, fragment) in self._left

  def adopt(self, sealed: pb.SealedRecord) -> pb.Record:
    """Adds a committed record; the mean of its attempt becomes its own."""
    record = pb.Record.FromString(sealed.body)
    if record.HasField("step"):
      fragment = record.step.fragment
      attempt = self._attempt_path(record.step.attempt, fragment)
      if attempt.exists():
        attempt.rename(self._path(record.number, "mean"))
      self._forget_attempts(fragment)
    self.keep(sealed)
    return record

  def keep(self, sealed: pb.SealedRecord) -> None:
    """Adds a record without its mean, as those before a joiner's state."""
    number = pb.Record.FromString(sealed.body).number
    whole = pb.SealedRecord(body=sealed.body, hash=sealed.hash)
    path = self._path(number, "record")
    partial = path.with_suffix(".partial")
    partial.write_bytes(whole.SerializeToString())
    partial.rename(path)
    self._unsynced.add(number)

  def sync(self, number: int) -> None:
    """Puts all records up to `number`, and means, on the disk for good.

    From any thread; returns when it is so, also if another one began it.
    """
    with self._syncing:
      pending = [n for n in list(self._unsynced) if n <= number]
      self._unsynced.difference_update(pending)  # one that is kept again is new
      try:
        for each in sorted(pending):
          for kind in ("mean", "record"):
            _flush(self._path(each, kind))
        if pending:
          _flush(self._folder)
      except OSError:
        self._unsynced.update(pending)
        raise

  def trim(self, before: int, bound: int = 0) -> list[int]:
    """Deletes the oldest means of more than `bound` bytes in all.

    Those of `before` and after it stay: this island's own checkpoints need
    them to be replayed. The records stay.

    Returns:
      The numbers of the records whose means are gone.
    """
    means = sorted(p for p in self._folder.glob("*.mean") if p.stem.isdigit())
    sizes = {path: path.stat().st_size for path in means}
    excess, gone = sum(sizes.values()) - bound, []
    for path in means:
      if excess <= 0 or int(path.stem) >= before:
        break
      path.unlink()
      excess -= sizes[path]
      gone.append(int(path.stem))
    return gone

  # -------------------------------------------------------------- to read

  def size(self, start: int = 0) -> int:
    """Bytes on the disk, of records from `start` on and their means."""
    size = 0
    for path in self._folder.iterdir():
      if path.stem.isdigit() and int(path.stem) >= start:
        with contextlib.suppress(FileNotFoundError):  # it has its name by now
          size += path.stat().st_size
    return size

  def record(self, number: int) -> pb.SealedRecord | None:
    """Record `number`, if it is here and whole."""
    path = self._path(number, "record")
    if not path.exists():
      return None
    try:
      sealed = pb.SealedRecord.FromString(path.read_bytes())
    except DecodeError:
      sealed = pb.SealedRecord()
    if chain.opened(sealed) is None:
      logging.warning("Ignoring the damaged log entry %s.", path)
      return None
    return sealed

  def mean(self, number: int) -> np.ndarray | None:
    """The encoded mean of record `number`, uint8, if it is here."""
    path = self._path(number, "mean")
    whole = path.exists() and path.stat().st_size > 0
    return np.memmap(path, np.uint8, "r") if whole else None

  def stored(self, number: int, start: int, stop: int) -> blobs.OnDisk:
    """Bytes [start, stop) of a mean that is here, to be read as needed."""
    return blobs.OnDisk(self._path(number, "mean"), start, stop)

  def records(self, start: int = 0) -> list[pb.Record]:
    """Records from `start` on, annulled ones too, as far as they are a chain.

    A file may lie beyond that, of a chain that this island has left.
    """
    found: list[pb.Record] = []
    last = b""
    for number in itertools.count(start):
      sealed = self.record(number)
      if sealed is None:
        return found
      record = pb.Record.FromString(sealed.body)
      if found and record.previous != last:
        return found
      found.append(record)
      last = sealed.hash
    raise AssertionError  # the count has no end

  def after(self, number: int) -> Iterator[pb.Record]:
    """Yields what follows record `number`, as far as it can be replayed.

    Annulled records are passed over; what came after their annulment stands
    on what was before them. Nothing follows a record that is annulled itself.
    """
    following = self.records(number)
    counting = chain.effective(following)
    if counting[:1] != following[:1]:
      return
    for record in counting[1:]:
      if not self._replayable(record):
        return
      yield record

  def _replayable(self, record: pb.Record) -> bool:
    """Whether its mean is here, whole: a power loss can tear what it was."""
    if not record.HasField("step"):
      return True
    mean, step = self.mean(record.number), record.step
    if mean is None or len(mean) != means.length(step.shares):
      return False
    codec = make_codec(step.codec)
    size, chunk = codec.block_bytes, means.chunk_bytes(step.shares, codec)
    for share in step.shares:
      part = mean[share.start * size : share.stop * size]
      if blobs.Manifest.of(part, chunk).id != share.mean.id:
        logging.warning("The mean of record %d is damaged.", record.number)
        return False
    return True

  def _path(self, number: int, kind: str) -> pathlib.Path:
    return self._folder / f"{number:09d}.{kind}"

  def _attempt_path(self, attempt: bytes, fragment: int) -> pathlib.Path:
    return self._folder / f"attempt-{fragment}-{attempt.hex()[:32]}.mean"


def _flush(path: pathlib.Path) -> None:
  """Waits until a file, or a folder's names, are on the disk; if it is there."""
  with contextlib.suppress(FileNotFoundError):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
