"""Bytes that others may read while they are still being made.

A blob has an id, the hash of its chunks, only once it is whole. So that the
gathering of a mean need not wait for that, the owner of a share serves the
chunks that it has under a name that follows from the plan: see `ahead.py`.
"""

import threading

from blake3 import blake3
import numpy as np


def name_of(attempt: bytes, share: int) -> bytes:
  """By which a share is asked for before it has an id."""
  return blake3(attempt + share.to_bytes(4)).digest()


class Growing:
  """A blob in the making, which is served as far as it has come."""

  def __init__(self, data: np.ndarray, chunk: int):
    """`data`: uint8, to be filled from its beginning on."""
    self._data = data
    self._chunk = chunk
    self._size = 0  # bytes that are there for good
    self._ended = False
    self._changed = threading.Condition()

  def reach(self, size: int) -> None:
    """The first `size` bytes will not change any more."""
    with self._changed:
      self._size = size
      self._changed.notify_all()

  def end(self) -> None:
    """Nothing more will come; those who wait for it go."""
    with self._changed:
      self._ended = True
      self._changed.notify_all()

  def frame(self, start: int, number: int) -> np.ndarray | None:
    """The chunk of this number from byte `start` on, as soon as it is there.

    None after the last one, or if it will not come.
    """
    first = start + number * self._chunk
    if first >= len(self._data):
      return None
    stop = min(first + self._chunk, len(self._data))
    with self._changed:
      self._changed.wait_for(lambda: self._ended or self._size >= stop)
      return self._data[first:stop] if self._size >= stop else None
