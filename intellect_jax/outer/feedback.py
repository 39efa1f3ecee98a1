"""What a codec has left out of an island's deltas, kept for the next ones.

SparseLoCo, arXiv 2508.15706: e is the island's error feedback, Δ its delta.

    a = beta e + Δ        code = Q(TopK(a))        r = a - decode(code)

The record decides, and not the island: e becomes r in the record that has this
code, and stays as it was if none does. Then Δ is still in the parameters, and
in the next delta, so that it is in no code twice. And r + decode(code) is a,
bit for bit.
"""

from typing import Any

import numpy as np


class ErrorFeedback:
  """An island's e, and what e becomes if its proposal is committed.

  Attributes:
    values: e, float32 [n]; never changed in place. All are replaced together.
    attempt: id of the attempt by which e came about; empty: e is 0.
  """

  def __init__(self, zero: Any, beta: float):
    """`zero`: e of an island that has left nothing out yet."""
    self._zero = zero
    self._beta = np.float32(beta)
    self._pending: Any = None
    self.values = zero
    self.attempt = b""

  def add_to(self, delta: np.ndarray, start: int) -> None:
    """delta += beta e, both from place `start` on; each rounds to float32."""
    delta += self._beta * self.values[start : start + delta.size]

  def propose(self, remainder: Any) -> None:
    """A code is proposed, and this is r, what it leaves of a."""
    self._pending = remainder

  def decide(self, attempt: bytes, included: bool, lost: bool) -> None:
    """A record tells what became of the proposal, if there is one.

    Args:
      attempt: that the record is of.
      included: it has the code that was proposed.
      lost: it has another code of this island, of which nobody knows any more
        what it left out: a process before this one had proposed it.
    """
    if included:
      self.values, self.attempt = self._pending, attempt
    elif lost:
      self.clear()
    self._pending = None

  def withdraw(self) -> None:
    """No record will have what was proposed."""
    self._pending = None

  def restore(self, values: Any, attempt: bytes) -> None:
    """As it was, of a checkpoint."""
    self.values, self.attempt, self._pending = values, attempt, None

  def clear(self) -> None:
    """Nothing is known to be left out."""
    self.restore(self._zero, b"")
