"""The encoded means that this island has, served to whoever still needs them.

A gathered mean is served from then on, for members that are slower; once its
record is committed, for islands that are late, as long as the log keeps it.
"""

from collections.abc import Iterator, Sequence
import threading

import numpy as np

from intellect_jax.elastic import blobs, means
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb


class MeanShelf:
  """Means by attempt, as blobs of one share each. Safe from any thread."""

  def __init__(
    self,
    store: blobs.BlobStore,
    log: RecordLog,
    block_bytes: int,
    lengths: Sequence[int],
  ):
    """`lengths`: of an encoded delta of each fragment, in bytes."""
    self._store = store
    self._log = log
    self._block_bytes = block_bytes
    self._chunks = [blobs.chunk_bytes(n, block_bytes) for n in lengths]
    self._lock = threading.Lock()
    # Blob ids of what is not committed, by fragment and attempt.
    self._attempts: dict[tuple[int, bytes], list[bytes]] = {}
    self._records: dict[int, list[bytes]] = {}  # blob ids, committed

  def open(self, attempt: bytes, length: int, fragment: int = 0) -> np.ndarray:
    """Returns writable uint8, on the disk, for the mean of an attempt."""
    return self._log.open_mean(attempt, length, fragment)

  def put(
    self,
    attempt: bytes,
    shares: list[pb.Share],
    mean: np.ndarray,
    manifests: dict[bytes, blobs.Manifest],
    fragment: int = 0,
  ) -> None:
    """Serves the mean of an attempt; it is whole and verified."""
    ids = [share.mean.id for share in shares]
    for blob_id, part in zip(ids, self._parts(shares, mean), strict=True):
      self._store.publish_hashed(manifests[blob_id], part)
    with self._lock:
      # The same attempt may have been gathered twice, for itself and late.
      ids += self._attempts.pop((fragment, attempt), [])
      self._attempts[fragment, attempt] = ids

  def adopt(self, sealed: pb.SealedRecord) -> pb.Record:
    """A record is committed: its mean stays, other attempts at it go."""
    record = self._log.adopt(sealed)
    if not record.HasField("step"):
      return record
    fragment = record.step.fragment
    with self._lock:
      kept = self._attempts.pop((fragment, record.step.attempt), [])
      others = [key for key in self._attempts if key[0] == fragment]
      dropped = [i for key in others for i in self._attempts.pop(key)]
      if kept:  # else it is adopted again: as it is
        dropped += self._records.get(record.number, [])  # of a chain that lost
        self._records[record.number] = kept
    self._withdraw(dropped)
    if kept:
      self._leave_on_disk(record)
    return record

  def keep(self, sealed: pb.SealedRecord) -> None:
    """A record was annulled: it stays in the log, without its mean."""
    self._log.keep(sealed)

  def load(self, cancelled: threading.Event) -> None:
    """Serves all means that the log has, newest first, until cancelled."""
    for record in reversed(self._log.records()):
      mean, shares = self._log.mean(record.number), list(record.step.shares)
      if cancelled.is_set():
        return
      if mean is None or len(mean) != means.length(shares):
        continue
      chunk = self._chunks[record.step.fragment]
      manifests = [
        blobs.Manifest.of(part, chunk) for part in self._parts(shares, mean)
      ]
      ids = [manifest.id for manifest in manifests]
      for manifest, part in zip(
        manifests, self._stored(record.number, shares), strict=True
      ):
        self._store.publish_hashed(manifest, part)
      with self._lock:
        damaged = ids != [share.mean.id for share in shares]
        known = record.number in self._records
        if not (damaged or known):
          self._records[record.number] = ids
      if damaged or known:
        self._withdraw(ids)

  def trim(self, before: int, bound: int) -> None:
    """Forgets the oldest means beyond `bound` bytes; see `RecordLog.trim`."""
    gone = self._log.trim(before, bound)
    with self._lock:
      dropped = [i for n in gone for i in self._records.pop(n, [])]
    self._withdraw(dropped)

  def _leave_on_disk(self, record: pb.Record) -> None:
    """What is served of a committed mean is not kept mapped."""
    shares = list(record.step.shares)
    for share, part in zip(
      shares, self._stored(record.number, shares), strict=True
    ):
      self._store.moved(share.mean.id, part)

  def _stored(
    self, number: int, shares: Sequence[pb.Share]
  ) -> Iterator[blobs.OnDisk]:
    for share in shares:
      start = share.start * self._block_bytes
      yield self._log.stored(number, start, start + share.mean.length)

  def _parts(
    self, shares: list[pb.Share], mean: np.ndarray
  ) -> Iterator[np.ndarray]:
    for share in shares:
      yield mean[share.start * self._block_bytes :][: share.mean.length]

  def _withdraw(self, ids: list[bytes]) -> None:
    for blob_id in ids:
      self._store.withdraw(blob_id)
