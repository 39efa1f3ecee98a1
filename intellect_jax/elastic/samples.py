"""Who may train on which samples: data leases (docs/protocol.md, 7). No I/O.

Samples are numbered without end in a global index. The pool hands out its
lowest free indices; what was leased and not consumed comes back to it.
"""

from collections.abc import Iterable
from typing import NamedTuple

Interval = tuple[int, int]  # [start, stop)


class Holder(NamedTuple):
  """Whom an interval is leased to."""

  island: str
  incarnation: int
  window: int


class SamplePool:
  """Leases disjoint intervals of the global sample index."""

  def __init__(
    self,
    consumed: Iterable[Interval] = (),
    leased: dict[Holder, list[Interval]] | None = None,
  ):
    """A pool in which `consumed` is committed and `leased` outstanding."""
    self.leased = dict(leased or {})
    taken = merge([*consumed, *(i for v in self.leased.values() for i in v)])
    # Free intervals in order; the last one has no end.
    self._free: list[Interval] = []
    self._unused = 0
    for start, stop in taken:
      if start > self._unused:
        self._free.append((self._unused, start))
      self._unused = stop

  def lease(self, holder: Holder, samples: int) -> list[Interval]:
    """Leases the lowest free indices; the same answer if asked again."""
    if holder not in self.leased:
      self.leased[holder] = self._take(samples)
    return self.leased[holder]

  def claim(self, holder: Holder, intervals: list[Interval]) -> bool:
    """Leases just these, if nobody has them. Returns whether it did."""
    end = max((stop for _, stop in intervals), default=0)
    if end > self._unused:
      self._free = merge([*self._free, (self._unused, end)])
      self._unused = end
    if subtract(intervals, self._free):
      return False
    self._free = subtract(self._free, intervals)
    self.leased[holder] = merge(intervals)
    return True

  def _take(self, samples: int) -> list[Interval]:
    taken = []
    while samples and self._free:
      start, stop = self._free.pop(0)
      middle = min(stop, start + samples)
      taken.append((start, middle))
      samples -= middle - start
      if middle < stop:
        self._free.insert(0, (middle, stop))
    if samples:
      taken.append((self._unused, self._unused + samples))
      self._unused += samples
    return merge(taken)

  def holds(self, holder: Holder, consumed: Iterable[Interval]) -> bool:
    """Whether `consumed` lies within what `holder` has leased."""
    outside = subtract(list(consumed), self.leased.get(holder, []))
    return holder in self.leased and not outside

  def consume(self, holder: Holder, consumed: Iterable[Interval]) -> None:
    """Ends a lease: `consumed` is committed, the rest is free again."""
    self._release(subtract(self.leased.pop(holder, []), list(consumed)))

  def held_by(self, island: str, incarnation: int) -> list[Holder]:
    """The open leases of an incarnation."""
    return [h for h in self.leased if h[:2] == (island, incarnation)]

  def annul(self, consumed: Iterable[Interval]) -> None:
    """Frees intervals that annulled records had consumed."""
    self._release(list(consumed))

  def _release(self, intervals: list[Interval]) -> None:
    self._free = merge([*self._free, *intervals])


def merge(intervals: Iterable[Interval]) -> list[Interval]:
  """Sorted, without empty ones, neighbours joined."""
  merged: list[Interval] = []
  for start, stop in sorted(i for i in intervals if i[0] < i[1]):
    if merged and start <= merged[-1][1]:
      merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
    else:
      merged.append((start, stop))
  return merged


def subtract(
  intervals: list[Interval], taken: list[Interval]
) -> list[Interval]:
  """What is in `intervals` but not in `taken`."""
  rest = []
  for start, stop in merge(intervals):
    for low, high in merge(taken):
      if high <= start or low >= stop:
        continue
      if low > start:
        rest.append((start, low))
      start = max(start, high)
    if start < stop:
      rest.append((start, stop))
  return rest


def take(intervals: list[Interval], samples: int) -> list[Interval]:
  """The first `samples` indices of `intervals`, in order."""
  taken = []
  for start, stop in intervals:
    if not samples:
      break
    middle = min(stop, start + samples)
    taken.append((start, middle))
    samples -= middle - start
  return taken
