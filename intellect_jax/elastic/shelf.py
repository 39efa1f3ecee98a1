"""The encoded means that this island has, served to whoever still needs them.

A gathered mean is served from then on, for members that are slower; once its
record is committed, for islands that are late, as long as the log keeps it.
"""

from collections.abc import Iterator
import threading

import numpy as np

from intellect_jax.elastic import blobs
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb


class MeanShelf:
  """Means by attempt, as blobs of one share each. Safe from any thread."""

  def __init__(
    self, store: blobs.BlobStore, log: RecordLog, block_bytes: int, length: int
  ):
    self._store = store
    self._log = log
    self._block_bytes = block_bytes
    self._chunk = blobs.chunk_bytes(length, block_bytes)
    self._length = length
    self._lock = threading.Lock()
    self._attempts: dict[bytes, list[bytes]] = {}  # blob ids, not committed
    self._records: dict[int, list[bytes]] = {}  # blob ids, committed

  def open(self, attempt: bytes) -> np.ndarray:
    """Returns writable uint8, on the disk, for the mean of an attempt."""
    return self._log.open_mean(attempt, self._length)

  def put(
    self,
    attempt: bytes,
    shares: list[pb.Share],
    mean: np.ndarray,
    manifests: dict[bytes, blobs.Manifest],
  ) -> None:
    """Serves the mean of an attempt; it is whole and verified."""
    ids = [share.mean.id for share in shares]
    for blob_id, part in zip(ids, self._parts(shares, mean), strict=True):
      self._store.publish_hashed(manifests[blob_id], part)
    with self._lock:
      # The same attempt may have been gathered twice, for itself and late.
      ids += self._attempts.pop(attempt, [])
      self._attempts[attempt] = ids

  def adopt(self, sealed: pb.SealedRecord) -> pb.Record:
    """A record is committed: its mean stays, those of other attempts go."""
    record = self._log.adopt(sealed)
    with self._lock:
      kept = self._attempts.pop(record.step.attempt, [])
      dropped = [i for ids in self._attempts.values() for i in ids]
      self._attempts.clear()
      self._records[record.number] = kept
    self._withdraw(dropped)
    return record

  def load(self, number: int) -> None:
    """Serves what the log has of the records after `number`."""
    for record in self._log.after(number):
      mean = self._log.mean(record.number)
      if record.number not in self._records and mean is not None:
        parts = self._parts(list(record.step.shares), mean)
        ids = [self._store.publish(part, self._chunk).id for part in parts]
        with self._lock:
          self._records[record.number] = ids

  def trim(self, before: int) -> None:
    """Forgets the means of records below `before`."""
    with self._lock:
      old = [number for number in self._records if number < before]
      dropped = [i for number in old for i in self._records.pop(number)]
    self._withdraw(dropped)
    self._log.trim(before)

  def _parts(
    self, shares: list[pb.Share], mean: np.ndarray
  ) -> Iterator[np.ndarray]:
    for share in shares:
      yield mean[share.start * self._block_bytes :][: share.mean.length]

  def _withdraw(self, ids: list[bytes]) -> None:
    for blob_id in ids:
      self._store.withdraw(blob_id)
