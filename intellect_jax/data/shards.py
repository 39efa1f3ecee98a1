"""Tokenized documents end to end, in memory or in files, read anywhere.

A split of a prepared source is a list of shards; two flat files are one shard:

    train-00007.tokens   the ids of whole documents, each with its eos
    train-00007.ends     int64: where in it each document ends

Both are little-endian and mapped into memory when they are first read, so that
a trillion tokens open as quickly as a thousand.
"""

from collections.abc import Callable, Sequence
import functools
import pathlib

import numpy as np

Shard = tuple[np.ndarray, np.ndarray]  # ids [T]; document ends [D], increasing

_MAPPED = 512  # shards that are mapped at once, in each process


class Tokens:
  """Shards as one stream of tokens, and where in it documents end."""

  def __init__(self, lengths: Sequence[int], shard: Callable[[int], Shard]):
    """Opens nothing.

    Args:
      lengths: tokens of each shard, none of them 0.
      shard: returns a shard by its number.
    """
    self._starts = np.cumsum([0, *lengths])  # [shards + 1]
    self._shard = shard

  @classmethod
  def of(cls, tokens: np.ndarray, ends: np.ndarray) -> "Tokens":
    """One shard, in memory.

    Raises:
      ValueError: if the last document does not end where the tokens do.
    """
    if len(ends) == 0 or ends[-1] != len(tokens):
      raise ValueError(
        f"{len(tokens)} tokens, but the last document ends at {ends[-1:]}"
      )
    return cls([len(tokens)], functools.partial(_only, (tokens, ends)))

  def __len__(self) -> int:
    return int(self._starts[-1])

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns tokens [start, stop), int32."""
    parts = [
      self._shard(k)[0][start - at : stop - at].astype(np.int32)
      for k, at, start, stop in self._within(start, stop)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int32)

  def ends(self, start: int, stop: int) -> np.ndarray:
    """Returns where documents end after `start` and before `stop`, int64."""
    parts = []
    for k, at, _, last in self._within(start, stop):
      ends = self._shard(k)[1]
      low = np.searchsorted(ends, max(start, at) - at, side="right")
      high = np.searchsorted(ends, min(stop - 1, last) - at, side="right")
      parts.append(ends[low:high].astype(np.int64) + at)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)

  def _within(self, start: int, stop: int):
    """Yields (shard, its beginning, first token, last token + 1) in order."""
    if not 0 <= start <= stop <= len(self):
      raise IndexError(f"tokens {start} to {stop} of {len(self)}")
    k = int(np.searchsorted(self._starts, start, side="right")) - 1
    while start < stop:
      at, end = int(self._starts[k]), int(self._starts[k + 1])
      yield k, at, start, min(stop, end)
      start, k = end, k + 1


def _only(shard: Shard, number: int) -> Shard:
  assert number == 0
  return shard


@functools.lru_cache(_MAPPED)
def map_shard(path: pathlib.Path, dtype: str) -> Shard:
  """Maps the two files of a shard, named without their endings."""
  return (
    np.memmap(path.with_suffix(".tokens"), dtype, "r"),
    np.memmap(path.with_suffix(".ends"), "<i8", "r"),
  )
