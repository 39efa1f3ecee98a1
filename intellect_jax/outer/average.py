"""Averages of theta over the records of a run.

At the end of training the mean of the newest few, or a mean in which older ones
count less and less, is often better than the last one: it lies deeper in the
valley that the last ones jump about in. (arXiv 1803.05407 has it for SGD,
2306.03241 for language models.)

Both are moved by each theta in turn, a part of the way, so no theta but the
newest is ever needed. numpy's float32 operations are the same bits on every
machine: who has the same records has the same average.
"""

from collections.abc import Callable

import numpy as np

_PIECE = 2**17  # values at a time, for the cache

Part = Callable[[int], float]  # of the way to the k-th theta, for k = 2, 3, …


def mean(k: int) -> float:
  """The way to go for all thetas to count the same."""
  return 1 / k


def exponential(decay: float) -> Part:
  """The way to go for each to count `decay` of what the next one does.

  The first stands for all before it, and counts as they would.
  """
  return lambda k: 1 - decay


class Average:
  """An average of vectors that come one after the other.

  Attributes:
    value: float32 [size]; empty while there is no vector.
    count: of vectors.
  """

  def __init__(self, part: Part):
    self.value = np.empty(0, np.float32)
    self.count = 0
    self._part = part

  def add(self, theta: np.ndarray) -> None:
    """value += part * (theta - value), float32; the first one is copied."""
    self.count += 1
    if self.count == 1:
      self.value = theta.copy()
      return
    part = np.float32(self._part(self.count))
    for start in range(0, len(theta), _PIECE):
      value = self.value[start : start + _PIECE]
      value += part * (theta[start : start + _PIECE] - value)
