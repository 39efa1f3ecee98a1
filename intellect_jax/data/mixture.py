"""Which source each sample of the global index is from.

Sources are mixed by tokens: every sample has L of them, whatever documents it
is cut from. Stages begin at sample indices, so that sample i is the same for
everybody at any time, and each counts on in a source where the stage before
left off. Within a stage the order repeats in blocks. A source with n places in
a block has them near (m + 1/2) / n of it, for m from 0: any run of samples, not
only a whole block, has the weights to within about a sample.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

BLOCK = 2**16  # samples; weights are rounded to its reciprocal

# As `run.data.stages`: (tokens of the run from which on, weight of each source)
Stages = Sequence[tuple[int, Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class _Stage:
  start: int  # sample index
  counts: np.ndarray  # [sources]: samples of each in a block
  sources: np.ndarray  # [BLOCK]: whose each place is
  ranks: np.ndarray  # [BLOCK]: of that source, how many places are before
  before: np.ndarray  # [sources]: samples of each in all stages before

  def taken(self, samples: int) -> np.ndarray:
    """Samples of each source after `samples` of this stage, and before it."""
    blocks, rest = divmod(samples, BLOCK)
    partial = np.bincount(self.sources[:rest], minlength=len(self.counts))
    return self.before + blocks * self.counts + partial


class Mixture:
  """A function from sample index to source and sample of the source."""

  def __init__(self, stages: Stages, sequence_length: int):
    """Makes a table for each stage.

    Args:
      stages: `run.data.stages`, valid.
      sequence_length: L, tokens in a sample.
    """
    self._stages: list[_Stage] = []
    before = np.zeros(len(stages[0][1]), np.int64)
    for tokens, weights in stages:
      start = -(-tokens // sequence_length)
      if self._stages:
        last = self._stages[-1]
        before = last.taken(start - last.start)
      counts = apportion(weights, BLOCK)
      ideal = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in counts])
      owners = np.repeat(np.arange(len(counts)), counts)
      sources = owners[np.argsort(ideal, kind="stable")]
      ranks = np.empty(BLOCK, np.int64)
      for source, count in enumerate(counts):
        ranks[sources == source] = np.arange(count)
      self._stages.append(_Stage(start, counts, sources, ranks, before))

  def __getitem__(self, index: int) -> tuple[int, int]:
    """Returns (source, sample of it) of a global index; O(1)."""
    stage = self._stage(index)
    block, place = divmod(index - stage.start, BLOCK)
    source = int(stage.sources[place])
    rank = int(stage.before[source]) + block * int(stage.counts[source])
    return source, rank + int(stage.ranks[place])

  def count(self, start: int, stop: int) -> np.ndarray:
    """Samples of each source among those with index [start, stop); O(1)."""
    return self._before(stop) - self._before(start)

  def _before(self, index: int) -> np.ndarray:
    """Samples of each source, [sources], before a global index."""
    stage = self._stage(index)
    return stage.taken(index - stage.start)

  def _stage(self, index: int) -> _Stage:
    """The stage that a sample is in."""
    return max(
      (s for s in self._stages if s.start <= index), key=lambda s: s.start
    )


def apportion(weights: Sequence[float], total: int) -> np.ndarray:
  """Whole numbers with the sum `total` that are nearest to the weights.

  Each is rounded down, and those that lose most by it get one more (Hamilton).
  """
  shares = np.asarray(weights, np.float64) * total / math.fsum(weights)
  counts = np.floor(shares).astype(np.int64)
  most = np.argsort(counts - shares, kind="stable")
  counts[most[: total - counts.sum()]] += 1
  return counts
