"""The outer state: theta, b and the record that they stand at."""

from collections.abc import Iterator
import threading

import numpy as np

from intellect_jax.elastic import blobs
from intellect_jax.elastic.means import Mean
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer import nesterov
from intellect_jax.outer.codec import Codec

PIECE = 1 << 17  # values at a time: 512 KiB of float32, for the cache


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

  def apply(self, record: pb.Record, data: np.ndarray, codec: Codec) -> None:
    """Moves theta and b by a record and its mean, uint8 as in the log."""
    step = record.step
    mean = Mean(step, data, codec)
    scale = step.scale or 1.0  # records of before there was one have none
    with self._lock:
      values = np.empty(PIECE, np.float32)
      for place, codes in pieces(len(self.theta), codec):
        theta = self.theta[place]
        piece = values[: len(theta)]
        mean.decode(codes, piece)
        nesterov.apply(
          theta,
          self.momentum[place],
          piece,
          step.learning_rate,
          step.momentum,
          scale,
        )
      self.record = record.number

  def advance(self, record: int) -> None:
    """Stands at a record that moves nothing."""
    with self._lock:
      self.record = record

  def read_momentum(self, record: int, place: slice, out: np.ndarray) -> bool:
    """Copies a piece of b; not if it no longer stands at `record`."""
    with self._lock:
      if self.record == record:
        out[:] = self.momentum[place]
      return self.record == record

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


def pieces(size: int, codec: Codec) -> Iterator[tuple[slice, slice]]:
  """Yields where each piece of a vector is, in values and in codes."""
  for first in range(0, size, PIECE):
    last = min(first + PIECE, size)
    blocks = first // codec.block, last // codec.block
    yield slice(first, last), slice(*(n * codec.block_bytes for n in blocks))


def _manifest(both: np.ndarray) -> blobs.Manifest:
  data = both.view(np.uint8)
  return blobs.Manifest.of(data, blobs.chunk_bytes(len(data), 4))
