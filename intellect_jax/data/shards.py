"""Tokenized documents end to end, in memory or in files, read anywhere.

A split of a prepared source is a list of shards; two or three flat files are one:

    train-00007.tokens   the ids of whole documents, each with its eos
    train-00007.ends     int64: where in it each document ends
    train-00007.mask     uint8: 1 for ids that are trained on; conversations

All are little-endian and mapped into memory when they are first read, so that
a trillion tokens open as quickly as a thousand.
"""

from collections.abc import Callable, Sequence
import functools
import os
import pathlib
from typing import Any

from blake3 import blake3
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
  """Maps a file of a shard's tokens, or of its mask, and that of its ends."""
  return (
    np.memmap(path, dtype, "r"),
    np.memmap(path.with_suffix(".ends"), "<i8", "r"),
  )


class ShardWriter:
  """Writes one shard, whole or not at all."""

  def __init__(self, folder: pathlib.Path, name: str, dtype: str, masked: bool):
    """`masked`: with a mask, and so without an eos of its own."""
    self._path, self._dtype = folder / name, dtype
    self._tokens = _Writer(self._path.with_suffix(".tokens"))
    self._mask = _Writer(self._path.with_suffix(".mask")) if masked else None
    self._ends: list[int] = []
    self._count = 0

  def add(self, ids: np.ndarray, eos: int) -> None:
    """Adds a document and its end."""
    document = np.empty(len(ids) + 1, self._dtype)
    document[:-1], document[-1] = ids, eos
    self._add(document)

  def add_masked(self, ids: np.ndarray, mask: np.ndarray) -> None:
    """Adds a document, and which of its tokens are trained on."""
    assert self._mask is not None
    self._add(ids.astype(self._dtype))
    self._mask.write(mask.astype(np.uint8))

  def _add(self, document: np.ndarray) -> None:
    self._tokens.write(document)
    self._count += len(document)
    self._ends.append(self._count)

  def close(self) -> list[dict[str, Any]]:
    """Puts it on the disk for good; returns its entry, or none if empty."""
    ends = _Writer(self._path.with_suffix(".ends"))
    ends.write(np.asarray(self._ends, "<i8"))
    writers = dict(tokens=self._tokens, ends=ends)
    if self._mask is not None:
      writers.update(mask=self._mask)
    for writer in writers.values():
      writer.close(keep=bool(self._ends))
    if not self._ends:
      return []
    hashes = {f"{kind}_hash": w.hash.hexdigest() for kind, w in writers.items()}
    counts = dict(tokens=self._count, documents=len(self._ends))
    return [dict(name=self._path.name, **counts, **hashes)]


class _Writer:
  """Writes a file, and hashes it."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._partial = path.with_name(f"{path.name}.partial")
    self._file = open(self._partial, "wb", 2**20)  # noqa: SIM115
    self.hash = blake3()

  def write(self, values: np.ndarray) -> None:
    content = values.view(np.uint8).data
    self.hash.update(content)
    self._file.write(content)

  def close(self, keep: bool) -> None:
    self._file.flush()
    os.fsync(self._file.fileno())
    self._file.close()
    if keep:
      self._partial.rename(self._path)
    else:
      self._partial.unlink()
