"""When records are taken back, and to where. No I/O.

An operator rolls back; a lone island goes back to its checkpoint; and the mean
that nobody holds any more, after a power loss, is annulled in time
(docs/protocol.md, 6).
"""

from intellect_jax.elastic.books import Books
from intellect_jax.elastic.membership import Member, Membership, State
from intellect_jax.elastic.outbox import Outbox
from intellect_jax.elastic.quorum import Quorum
from intellect_jax.elastic.transfers import Transfers
from intellect_jax.errors import UserError


class Annulments:
  """Takes records back, and with them the islands that stand at them."""

  def __init__(
    self,
    books: Books,
    members: Membership,
    quorum: Quorum,
    transfers: Transfers,
    outbox: Outbox,
    now: float,
  ):
    self._books = books
    self._members = members
    self._quorum = quorum
    self._transfers = transfers
    self._outbox = outbox
    # Somebody had the newest state, or too few were here for anybody to.
    self._held_at = now

  def annul(self, to: int, reason: str, now: float) -> None:
    """Takes back the records after `to`."""
    self._books.annul(to, reason, now)
    for member in self._members.members.values():
      if member.record > to:  # it goes back, and says when it is ready
        member.record = -1
        if member.state is State.IN:
          member.state = State.JOINING

  def roll_back(self, to: int, reason: str, now: float) -> None:
    """What an operator wants.

    Raises:
      UserError: if no island can go back that far.
    """
    chain = self._books.chain
    head = chain.head.number
    if chain.counting(to) < 0 or to == head:
      raise UserError(f"record {to} is not one of those before {head}")
    self._check_reach(to)
    self.annul(to, reason or "an operator rolled back", now)

  def _check_reach(self, to: int) -> None:
    """Raises UserError if no island is sure to have a checkpoint from before.

    What it has said of that may be old: each record that it has applied since
    may have cost it one.
    """
    inside = self._members.inside()
    if not inside and to == 0:
      return  # the initial state can be made again
    here = inside or [m for m in self._members.members.values() if m.present]
    newest, reach = self._books.chain.state, []
    for beat in (member.heartbeat for member in here):
      since = max(0, newest - beat.record) if inside else 0
      reach += sorted(beat.checkpoints)[since : since + 1]
    if not reach:
      raise UserError(
        "no island is sure to have a checkpoint still: if records follow"
        " quickly, pause the run, and roll back a moment later"
      )
    if to < min(reach):
      raise UserError(
        f"no island's checkpoints reach back to {to}, only to {min(reach)}"
      )

  def _here(self) -> list[Member]:
    """Who can be heard, with a state or without."""
    members = self._members.members.values()
    return [member for member in members if member.session is not None]

  def is_held(self) -> bool:
    """Whether some island has the run's newest state."""
    return bool(self._members.holding(self._books.chain.state))

  def advance(self, now: float) -> None:
    """Who held the newest mean is lost: back to the newest that is here."""
    newest = self._books.chain.state
    here = self._here()
    few = len(here) < self._quorum.needed(now)
    if few or not self._books.chain.records or self.is_held():
      self._held_at = now
      return
    patience = self._books.elastic.annul_patience
    if now - self._held_at <= patience:
      return
    to = max((member.record for member in here), default=-1)
    reason = f"no island had the state of record {newest} for {patience:g} s"
    if to >= 0:
      self._outbox.warn(f"Back to record {to}: {reason}.")
      self.annul(to, reason, now)
    elif newest == 0:
      self._outbox.warn(f"The initial state is made again: {reason}.")
      self._transfers.initialise_again()
    else:  # an operator may have gone back to what they have
      self._transfers.go_back()
    self._held_at = now

  def warning(self) -> str:
    """What is missing; empty: nothing."""
    if not self._books.chain.records or self.is_held():
      return ""
    newest = self._books.chain.state
    missing = f"no island here has the state of record {newest}"
    here = self._here()
    if here and newest and all(member.record < 0 for member in here):
      return (
        f"{missing}, or of one before it that is the run's: wait for one that"
        " has, or roll back to where a checkpoint of theirs may be from"
      )
    patience = self._books.elastic.annul_patience
    return f"{missing}; annulled after {patience:g} s"
