"""The outer state: theta, b and the record that they stand at."""

from collections.abc import Iterable, Iterator, Sequence
import threading
from typing import NamedTuple

import numpy as np

from intellect_jax.elastic import blobs
from intellect_jax.elastic.means import Mean
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer import nesterov
from intellect_jax.outer.codec import Codec

Runs = Sequence[tuple[int, int]]  # [start, stop) in codec blocks
Places = Sequence[tuple[int, int]]  # the same in values
Digest = bytes

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
    runs = runs_of(step, len(self.theta), codec)
    with self._lock:
      values = np.empty(PIECE, np.float32)
      for place, codes in pieces(runs, codec):
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

  def fragment_hash(self, places: Places) -> Digest:
    """The state hash of a fragment: of its theta, then of its b.

    With one fragment it is that of `manifest`.

    Args:
      places: [start, stop) in values, of its runs in the canonical vector.
    """
    with self._lock:
      return _fragment_hash(self._both, places)

  def snapshot(self) -> "Snapshot":
    """A copy of theta and b, for others."""
    with self._lock:
      copy = self._both.copy()
      record = self.record
    return Snapshot(record, _manifest(copy), copy.view(np.uint8))


class Snapshot(NamedTuple):
  """Theta and b as they were at a record."""

  record: int
  manifest: blobs.Manifest
  data: np.ndarray  # theta, then b, as bytes

  def fragment_hash(self, places: Places) -> Digest:
    """As that of `OuterState`."""
    return _fragment_hash(self.data.view(np.float32), places)


def runs_of(step: pb.OuterStep, size: int, codec: Codec) -> Runs:
  """What a step moves of a vector of so many values."""
  runs = [(run.start, run.stop) for run in step.blocks]
  return runs or [(0, size // codec.block)]


def pieces(runs: Runs, codec: Codec) -> Iterator[tuple[slice, slice]]:
  """Yields where each piece of some runs is, in values and in codes.

  In values of the canonical vector, and in codes of the runs alone.
  """
  before = 0  # blocks of the runs
  for start, stop in runs:
    for first in range(start, stop, PIECE // codec.block):
      blocks = min(PIECE // codec.block, stop - first)
      codes = before * codec.block_bytes, (before + blocks) * codec.block_bytes
      place = first * codec.block, (first + blocks) * codec.block
      yield slice(*place), slice(*codes)
      before += blocks


def _manifest(both: np.ndarray) -> blobs.Manifest:
  data = both.view(np.uint8)
  return blobs.Manifest.of(data, blobs.chunk_bytes(len(data), 4))


def _fragment_hash(both: np.ndarray, places: Places) -> Digest:
  size = len(both) // 2
  if list(places) == [(0, size)]:
    return _manifest(both).id
  halves = both[:size], both[size:]
  arrays = [half[start:stop] for half in halves for start, stop in places]
  length = sum(array.nbytes for array in arrays)
  chunk = blobs.chunk_bytes(length, 4)
  hashes = map(blobs.chunk_hash, _chunks(arrays, chunk))
  return blobs.Manifest.joined(length, chunk, hashes).id


def _chunks(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
  """The bytes of arrays one after the other, in chunks; each is used at once."""
  buffer, filled = np.empty(size, np.uint8), 0
  for array in arrays:
    data = array.view(np.uint8)
    while len(data):
      part, data = data[: size - filled], data[size - filled :]
      buffer[filled : filled + len(part)] = part
      filled += len(part)
      if filled == size:
        yield buffer
        filled = 0
  if filled:
    yield buffer[:filled]
