"""The outer state: theta, b and the record that they stand at."""

import threading

import numpy as np

from intellect_jax.elastic import blobs
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer import nesterov
from intellect_jax.outer.codec import Codec

_PIECE_BLOCKS = 4096  # codec blocks decoded at a time: 4 MiB of float32


class OuterState:
  """Outer parameters and momentum, bit-identical on every island.

  Only `apply` changes them, and only by a committed record.
  """

  def __init__(self, size: int):
    self._both = np.zeros(2 * size, np.float32)  # theta, then b: one blob
    self.theta = self._both[:size]
    self.momentum = self._both[size:]
    self.record = 0
    self._lock = threading.Lock()  # held while the arrays are read or written

  @property
  def bytes(self) -> int:
    """Of theta and b."""
    return self._both.nbytes

  def replace(self, both: np.ndarray, record: int) -> None:
    """Takes over theta and b, float32 [2 * size], as they are at `record`."""
    with self._lock:
      self._both[:] = both
      self.record = record

  def apply(self, record: pb.Record, mean: np.ndarray, codec: Codec) -> None:
    """Moves theta and b by a record and the encoded mean, uint8."""
    step = record.step
    with self._lock:
      values = np.empty(_PIECE_BLOCKS * codec.block, np.float32)
      for first in range(0, len(self.theta), len(values)):
        last = min(first + len(values), len(self.theta))
        codes = mean[
          first // codec.block * codec.block_bytes : last
          // codec.block
          * codec.block_bytes
        ]
        piece = values[: last - first]
        codec.decode(codes, piece)
        nesterov.apply(
          self.theta[first:last],
          self.momentum[first:last],
          piece,
          step.learning_rate,
          step.momentum,
        )
      self.record = record.number

  def advance(self, record: int) -> None:
    """Stands at a record that moves nothing."""
    with self._lock:
      self.record = record

  def manifest(self) -> tuple[int, blobs.Manifest]:
    """The record, and the manifest of theta and b; its id is the state hash."""
    with self._lock:
      return self.record, _manifest(self._both)

  def snapshot(self) -> tuple[int, blobs.Manifest, np.ndarray]:
    """As `manifest`, with a copy of theta and b as bytes."""
    with self._lock:
      copy = self._both.copy()
      record = self.record
    return record, _manifest(copy), copy.view(np.uint8)


def _manifest(both: np.ndarray) -> blobs.Manifest:
  data = both.view(np.uint8)
  return blobs.Manifest.of(data, blobs.chunk_bytes(len(data), 4))
