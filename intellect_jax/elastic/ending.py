"""When islands may leave a run that is over. No I/O.

Who holds the final state stays until all that are here hold the same one: no
record comes after it that would have its hash, and who is wrong must be given
it by somebody (docs/protocol.md, 6).
"""

from collections.abc import Callable, Sequence

from intellect_jax.elastic.books import Books
from intellect_jax.elastic.membership import Member, Membership, State
from intellect_jax.elastic.outbox import Outbox
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.tie import Ties


class Ending:
  """From the final record to the last goodbye."""

  def __init__(
    self,
    books: Books,
    members: Membership,
    ties: Ties,
    outbox: Outbox,
    repair: Callable[[Member, Sequence[int]], None],
  ):
    """The run may be far from its end.

    Args:
      repair: called with a member whose state is not the run's, and the
        fragments that are not.
    """
    self._books = books
    self._members = members
    self._ties = ties
    self._outbox = outbox
    self._repair = repair
    self._mending = False  # somebody is given the final state anew
    # Fragments of which replay could not tell which state is right.
    self._unsettled: set[int] = set()
    self._dismissed: set[int] = set()  # sessions that may go

  def advance(self, now: float) -> None:
    """Lets go who may go by now."""
    if self._books.head.final:
      self._compare(now)
      self._finish_without_the_late(now)

  def _inside(self) -> list[Member]:
    return [m for m in self._members.members.values() if m.present]

  def _compare(self, now: float) -> None:
    """Whoever is here tells the hash of its final state."""
    elastic, since = self._books.elastic, now - self._books.appended_at
    here = [m for m in self._inside() if m.session is not None and not m.hung]
    ties = [self._ties.of(fragment) for fragment in range(len(self._ties))]
    said = [m for m in here if all(tie.claimed(m.island) for tie in ties)]
    complete = len(said) == len(here) or since > elastic.lease_seconds
    settled = {}  # the hash by fragment
    for tie in ties:
      if right := tie.right(complete):
        settled[tie.fragment] = right
      elif tie.fragment not in self._unsettled and (why := tie.hopeless()):
        self._outbox.warn(f"The run ends all the same: {why}.")
        self._unsettled.add(tie.fragment)
    if len(settled.keys() | self._unsettled) < len(ties):
      return
    holding = []
    for member in said:
      wrong = [
        fragment
        for fragment, right in settled.items()
        if ties[fragment].claimed(member.island) != right
      ]
      if wrong:
        self._mending = True
        self._repair(member, wrong)
      else:
        holding.append(member)
    patience = max(
      elastic.lease_seconds, elastic.recheck_patience * self._mending
    )
    if len(holding) == len(here) or since > patience:
      self._dismiss(holding)

  def _dismiss(self, members: list[Member]) -> None:
    finished = pb.Finished(reason="the run has all its tokens")
    for member in members:
      if member.session is not None and member.session not in self._dismissed:
        self._dismissed.add(member.session)
        self._outbox.tell(member.island, pb.ToIsland(finished=finished))

  def _finish_without_the_late(self, now: float) -> None:
    """Who has the final state has left: nobody can catch up any more."""
    books, head = self._books, self._books.head.number
    if now - books.appended_at <= books.elastic.lease_seconds:
      return
    late = self._inside()
    if any(m.record == head for m in late if not m.hung):
      return
    if late and not self._members.holding(head):
      return  # nobody saved the end: it is annulled, in time
    finished = pb.Finished(reason="the run ended while this island was away")
    for member in late:
      self._outbox.tell(member.island, pb.ToIsland(finished=finished))
      books.accounts.depart(member, "the run ended while it was away")
      member.state = State.LEFT
