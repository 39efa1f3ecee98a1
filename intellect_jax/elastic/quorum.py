"""How many islands must be there before the run goes on. No I/O.

Half of those that made the last step: fewer may be the smaller part of a swarm
that was cut in two. After `minority_patience` they go on all the same, by
`min_islands`, and say so loudly.
"""

from intellect_jax.elastic.books import Books
from intellect_jax.elastic.membership import Membership, State


class Quorum:
  """Counts who is there."""

  def __init__(self, books: Books, members: Membership, now: float):
    self._books = books
    self._members = members
    self._enough_at = now  # half of the last members were there

  def half(self) -> int:
    """Half of the last step's members, not counting who left in good order."""
    last = self._books.chain.last_step.step.members
    left = {
      m.island for m in self._members.members.values() if m.state is State.LEFT
    }
    return -(-len({m.island for m in last} - left) // 2)

  def note(self, now: float) -> None:
    """Looks who is there."""
    if len(self._members.reachable()) >= self.half():
      self._enough_at = now

  def needed(self, now: float) -> int:
    """Islands that a round needs: a minority waits, it may not be alone."""
    elastic = self._books.elastic
    if now - self._enough_at > elastic.minority_patience:
      return elastic.min_islands
    return max(elastic.min_islands, self.half())

  def warning(self, now: float) -> str:
    """What is wrong with who is there; empty: nothing."""
    there, half = len(self._members.reachable()), self.half()
    enough = self._books.elastic.min_islands
    if there >= half:
      few = f"{there} islands are here, and run.elastic.min_islands is {enough}"
      begun = self._books.head.number > 0
      return f"{few}: nothing is committed" if begun and there < enough else ""
    patience = self._books.elastic.minority_patience
    left = self._enough_at + patience - now
    return (
      f"{there} islands are here, and {half} are half of those that made"
      f" record {self._books.chain.last_step.number}: "
      + (
        f"waiting {left:.0f} s for others, who may be going on elsewhere"
        if left > 0
        else "going on without them, by run.elastic.min_islands"
      )
    )
