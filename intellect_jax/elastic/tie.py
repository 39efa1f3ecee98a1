"""Which state is the run's, when islands hold different ones. No I/O.

All that stand at one record must hold the same bits of theta and b; what each
holds is in its proposals and offers. The chain knows the right one as soon as a
later record names it. Until then most islands do, and a tie is settled by
replay (docs/protocol.md, 4): each rebuilds the state from its own checkpoint and
log, and says what it comes to (rebuild.py). All of this is by fragment: records
of one leave the others as they are.
"""

import collections
from collections.abc import Iterable, Sequence

from intellect_jax.elastic.books import Books
from intellect_jax.elastic.membership import Membership
from intellect_jax.elastic.outbox import Outbox
from intellect_jax.elastic.protocol import elastic_pb2 as pb


class Ties:
  """What islands say of the run's newest state, by fragment."""

  def __init__(self, books: Books, members: Membership, outbox: Outbox):
    count = books.run.outer.fragments
    self._ties = [Tie(f, count, books, members, outbox) for f in range(count)]

  def of(self, fragment: int) -> "Tie":
    return self._ties[fragment]

  def __len__(self) -> int:
    return len(self._ties)

  def claim(self, island: str, ready: pb.StateReady) -> None:
    """An island holds a state, and tells the hashes of its fragments."""
    for tie, state in self._each(ready):
      tie.claim(island, ready.record, state)

  def wrong(self, ready: pb.StateReady) -> list[int]:
    """The fragments of a state that are not the run's."""
    return [
      t.fragment for t, s in self._each(ready) if t.wrong(ready.record, s)
    ]

  def _each(self, ready: pb.StateReady) -> Iterable[tuple["Tie", bytes]]:
    states = ready.fragments or [ready.state.id]
    return zip(self._ties, states, strict=False)

  def known(self, record: int) -> bool:
    """Whether the hash of the run's state at a record is known."""
    return all(tie.known(record) for tie in self._ties)

  def disputed(self) -> bool:
    """Whether the newest state's hash is not known, and not for want of one."""
    return any(tie.disputed() for tie in self._ties)

  def ask(self, island: str, fragments: Sequence[int]) -> bool:
    """Has an island replay its log. False: it has, and no more can be had."""
    return all([self._ties[fragment].ask(island) for fragment in fragments])

  def overdue(self, now: float) -> dict[str, list[int]]:
    """Lets time pass. Returns who takes too long with what, and is left out."""
    late: dict[str, list[int]] = {}
    for tie in self._ties:
      for island in tie.overdue(now):
        late.setdefault(island, []).append(tie.fragment)
    return late

  def retract(self, island: str, fragments: Sequence[int]) -> None:
    """What an island held of these fragments is no longer there."""
    for fragment in fragments:
      self._ties[fragment].retract(island)

  def gone(self, island: str) -> None:
    """A stream broke: it may not have heard. What it has said stays evidence."""
    for tie in self._ties:
      tie.gone(island)


class Tie:
  """What islands say of a fragment, and which of them is right."""

  def __init__(
    self,
    fragment: int,
    count: int,
    books: Books,
    members: Membership,
    outbox: Outbox,
  ):
    """`count` is that of all fragments."""
    self.fragment = fragment
    self._several = count > 1
    self._books = books
    self._members = members
    self._outbox = outbox
    self._of = -1  # the record that made the state that all this is about
    self._claims: dict[str, bytes] = {}  # state hash by island
    self._asked: dict[str, float] = {}  # who has not answered; when, seconds
    self._answers: dict[str, pb.Rechecked] = {}  # empty: it could not
    self._settled = b""  # the hash that is right
    self._contested = False  # most were right, but for somebody's replay
    self._told: set[str] = set()  # who was asked for that very state
    self._now = 0.0  # as of the newest tick

  # ------------------------------------------------------------ what is said

  def claim(self, island: str, record: int, state: bytes) -> None:
    """An island holds a state of this hash at a record."""
    self._follow()
    if self._books.chain.counting(record) >= self._of:
      self._claims[island] = state

  def ask(self, island: str) -> bool:
    """As `Ties.ask`."""
    self._follow()
    right = self.known(self._books.head.number)
    answer = self._answers.get(island)
    if answer is not None:
      if island in self._told or not right or answer.rebuilt != right:
        return False
      del self._answers[island]  # it did not know that this is right
    if island not in self._asked:
      self._asked[island] = self._now
      if right:
        self._told.add(island)
      recheck = pb.Recheck(right=right, fragment=self.fragment)
      self._outbox.tell(island, pb.ToIsland(recheck=recheck))
    return True

  def rechecked(self, island: str, answer: pb.Rechecked) -> bool:
    """Takes what an island's replay comes to, late or not.

    Returns:
      Whether an answer was still waited for.
    """
    self._follow()
    asked = self._asked.pop(island, None) is not None
    if self._books.chain.counting(answer.record) < self._of:
      answer = pb.Rechecked()  # of another state
    self._answers[island] = answer
    if answer.state:
      self._claims[island] = answer.state
    outvoted = self._settled not in (b"", answer.rebuilt)
    if outvoted and answer.rebuilt and answer.agreed and not self._contested:
      self._contested, self._settled = True, b""  # votes may be copies of one
    return asked

  def overdue(self, now: float) -> list[str]:
    """As `Ties.overdue`."""
    self._follow()
    self._now = now
    patience = self._books.elastic.recheck_patience
    late = [i for i, asked in self._asked.items() if now - asked > patience]
    for island in late:
      del self._asked[island]
      self._answers[island] = pb.Rechecked()
    return late

  def retract(self, island: str) -> None:
    """As `Ties.retract`."""
    self._claims.pop(island, None)
    self._answers.pop(island, None)
    self.gone(island)

  def gone(self, island: str) -> None:
    """As `Ties.gone`."""
    self._asked.pop(island, None)

  def _follow(self) -> None:
    """Begins anew when a record has moved the state."""
    state = self._books.chain.made(self.fragment)
    if self._of != state:
      self._of, self._settled, self._contested = state, b"", False
      self._claims.clear()
      self._asked.clear()
      self._answers.clear()
      self._told.clear()

  # -------------------------------------------------------- what is right

  def claimed(self, island: str) -> bytes:
    """The hash of what an island holds; empty: it has not said."""
    self._follow()
    return self._claims.get(island, b"")

  def known(self, record: int) -> bytes:
    """The hash of the run's state at a record; empty: not known yet."""
    self._follow()
    newest = self._books.chain.counting(record) >= self._of
    known = self._books.chain.state_at(record, self.fragment)
    return known or (self._settled if newest else b"")

  def wrong(self, record: int, state: bytes) -> bool:
    """Whether a state is not the run's, by the chain or by all who are asked."""
    known = self.known(record)
    if not known and self._books.chain.counting(record) >= self._of:
      claims = set(self._claims.values())
      known = claims.pop() if len(claims) == 1 else b""
    return known not in (b"", state)

  def disputed(self) -> bool:
    """Whether the newest state's hash is not known, and not for want of one."""
    claims = set(self._claims.values())
    return len(claims) > 1 and not self.known(self._books.head.number)

  def right(self, complete: bool) -> bytes:
    """The hash that the newest state must have; empty: it is not settled yet.

    Args:
      complete: nobody else is waited for.
    """
    known = self.known(self._books.head.number)
    if known or not self._claims:
      return known
    ranked = collections.Counter(self._claims.values()).most_common()
    (first, votes), *others = ranked
    if not others:
      return first  # so far: others may say otherwise
    if votes > others[0][1] and not self._contested:
      self._settled = first
    elif complete or self._contested:
      self._settled = self._replayed()
    return self._settled

  def hopeless(self) -> str:
    """Why replay has not settled a tie, for an operator; empty: it may yet.

    When it is asked for again, islands are asked again.
    """
    if self._settled or self._asked or not self._answers:
      return ""
    self._answers.clear()
    record = self._books.head.number
    said = "; ".join(
      f"{island} has {state.hex()[:16]}"
      for island, state in sorted(self._claims.items())
    )
    return (
      f"islands disagree on {self._what} at record {record}, and their logs do"
      f" not settle it: {said}. Evict who is wrong, or roll back, and resume"
    )

  @property
  def _what(self) -> str:
    part = f"fragment {self.fragment} of " if self._several else ""
    return f"{part}the state"

  def _replayed(self) -> bytes:
    """What those who are here come to; empty: they are still at it."""
    here = sorted(self._claims.keys() & self._members.reachable())
    if here and not (self._asked or self._answers):
      names, record = ", ".join(here), self._books.head.number
      self._outbox.warn(
        f"{names} disagree on {self._what} at record {record}, and none has"
        " most votes: each replays its log."
      )
    waiting = [island for island in here if self.ask(island)]
    if waiting:
      return b""
    held = {self._claims[island] for island in here}
    found = _most(self._answers.values(), self._of)
    return found or (held.pop() if len(held) == 1 else b"")


def _most(answers: Iterable[pb.Rechecked], of: int) -> bytes:
  """What most replays come to; of as many, the one that goes back furthest.

  Those from an agreed checkpoint come first: a flipped bit may have been saved,
  but not confirmed by another island. Checkpoints from record `of` on are of the
  state itself, and none goes back further than another. Empty: none, or no
  difference.
  """
  replays = [answer for answer in answers if answer.rebuilt]
  replays = [replay for replay in replays if replay.agreed] or replays
  ranks: dict[bytes, tuple[int, int]] = {}
  for state in {replay.rebuilt for replay in replays}:
    starts = [min(r.checkpoint, of) for r in replays if r.rebuilt == state]
    ranks[state] = len(starts), -min(starts)
  best = [s for s in ranks if ranks[s] == max(ranks.values())]
  return best[0] if len(best) == 1 else b""
