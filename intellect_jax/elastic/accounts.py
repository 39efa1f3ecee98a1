"""Whose every sample and every token is: leased, committed, or lost. No I/O.

Tokens trained = committed + still open + lost, and every lost token has a
cause (docs/protocol.md, 1 and 7). An incarnation that is out of the run is
settled as soon as no open attempt can use its work any more.
"""

import collections
from collections.abc import Callable, Collection, Iterable, Sequence
import dataclasses

from intellect_jax.elastic import chain as chain_lib
from intellect_jax.elastic.actions import EndLeases, SaveLease, SaveLosses
from intellect_jax.elastic.chain import Chain
from intellect_jax.elastic.membership import Member
from intellect_jax.elastic.outbox import Outbox
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import (
  Holder,
  Interval,
  SamplePool,
  merge,
  subtract,
)

Leases = dict[Holder, list[Interval]]

_UNKNOWN = "given up, and no ledger says why"


@dataclasses.dataclass(frozen=True)
class _Departure:
  """An incarnation that is out of the run, and what it leaves behind."""

  member: Member
  cause: str
  trained: int  # tokens
  leases: list[Holder]


@dataclasses.dataclass(frozen=True)
class _Drop:
  """Windows that their island will not propose."""

  member: Member
  cause: str
  windows: dict[Holder, int]  # tokens


class Accounts:
  """The accounts of all incarnations that were ever in the run.

  Attributes:
    losses: what was trained in vain, and why.
    pool: samples, free and leased.
  """

  def __init__(
    self,
    chain: Chain,
    leases: Leases,
    losses: Sequence[pb.Loss],
    outbox: Outbox,
  ):
    self._outbox = outbox
    self.losses = list(losses)
    self._committed: collections.Counter[tuple[str, int]]  # tokens
    self.pool: SamplePool
    self._unsettled: list[_Departure | _Drop] = []
    self._departed: set[tuple[str, int]] = set()  # incarnations, in this term
    self._read(chain, leases)

  def _read(self, chain: Chain, leases: Leases) -> None:
    """Takes from the chain what it has committed; other leases go on.

    A lease of what is committed by another has been void ever since.
    """
    windows = chain_lib.committed_windows(chain.effective)
    self._committed = collections.Counter()
    for holder, window in windows:
      self._committed[holder[:2]] += window.tokens
    used = merge(i for _, w in windows for i in chain_lib.intervals(w))
    free = {
      h: i for h, i in leases.items() if not subtract(i, subtract(i, used))
    }
    self.pool = SamplePool(used, free)
    if void := [holder for holder in leases if holder not in free]:
      self._outbox.add(EndLeases(void, None))

  # ------------------------------------------------------------ questions

  def settled(self, member: Member) -> int:
    """Tokens of an incarnation that are committed or lost."""
    lost = sum(
      loss.tokens
      for loss in self.losses
      if (loss.island, loss.incarnation) == (member.island, member.incarnation)
    )
    return lost + self._committed[member.island, member.incarnation]

  def open(self, member: Member) -> int:
    """Tokens that an incarnation has trained and that nothing decided."""
    return max(0, member.heartbeat.tokens_trained - self.settled(member))

  def holds(self, member: Member, windows: Iterable[pb.Window]) -> bool:
    """Whether a member trained on what is leased to it."""
    return all(
      self.pool.holds(_holder(member, window), chain_lib.intervals(window))
      for window in windows
    )

  # --------------------------------------------------------------- leases

  def lease(self, member: Member, request: pb.LeaseRequest) -> None:
    """Leases the samples of a window; asked again, the same ones."""
    holder = Holder(member.island, member.incarnation, request.window)
    for each in self._unsettled:
      if isinstance(each, _Departure) and holder in each.leases:
        each.leases.remove(holder)  # it came back, and has it anew
    known = holder in self.pool.leased
    samples = self.pool.lease(holder, request.samples)
    if not known:
      self._outbox.add(SaveLease(holder, samples))
    grant = pb.LeaseGrant(window=request.window)
    for start, stop in samples:
      grant.samples.add(start=start, stop=stop)
    self._outbox.tell(member.island, pb.ToIsland(lease_grant=grant))

  def claim(self, member: Member, leases: Iterable[pb.LeaseGrant]) -> None:
    """The ledger was lost: islands know what was leased to them.

    But not that it is void, if they were out and did not hear of it.
    """
    if (member.island, member.incarnation) in self._departed:
      return
    for grant in leases:
      holder = Holder(member.island, member.incarnation, grant.window)
      samples = chain_lib.intervals(grant)
      if holder not in self.pool.leased and self.pool.claim(holder, samples):
        self._outbox.add(SaveLease(holder, samples))

  # -------------------------------------------------------------- records

  def commit(self, step: pb.OuterStep) -> None:
    """The windows of a step that is being committed."""
    for holder, window in chain_lib.windows_of(pb.Record(step=step)):
      self.pool.consume(holder, chain_lib.intervals(window))
      self._committed[holder[:2]] += window.tokens
      for each in self._unsettled:
        if isinstance(each, _Drop):
          each.windows.pop(holder, None)  # it counts after all

  def annul(self, before: Sequence[pb.Record], to: int, reason: str) -> None:
    """Takes back the windows of those records that are after `to`.

    Args:
      before: the records that counted before the annulment.
    """
    for record in before:
      for holder, window in chain_lib.windows_of(record):
        if record.number > to:
          self.pool.annul(chain_lib.intervals(window))
          self._committed[holder[:2]] -= window.tokens
          self._lose(holder.island, holder.incarnation, window.tokens, reason)

  def take_over(
    self,
    before: Sequence[pb.Record],
    chain: Chain,
    found: Iterable[pb.Record],
    members: Collection[Member],
  ) -> None:
    """Islands had records that this coordinator's disk has lost.

    Args:
      before: the records that counted without those.
      chain: with those records.
      found: those records.
      members: of the run.
    """
    here = {(m.island, m.incarnation) for m in members if m.session is not None}
    for record in found:
      for holder, window in chain_lib.windows_of(record):
        if holder[:2] not in here and holder not in self.pool.leased:
          # Who is not here cannot say how much it trained, and an older process
          # never will; if it turns out that something else was lost, it is
          # counted when it comes back.
          self._take_back(holder.island, holder.incarnation, window.tokens)
    self._read(chain, self.pool.leased)
    self._lose_annulled(before, chain)
    self.correct(members)

  def _lose_annulled(self, before: Sequence[pb.Record], chain: Chain) -> None:
    """What counted is taken back; the ledger may say so already, or not."""
    counted = {holder for holder, _ in chain_lib.committed_windows(before)}
    lost: collections.Counter[tuple[str, int, str]] = collections.Counter()
    owed: collections.Counter[tuple[str, int, str]] = collections.Counter()
    for cause, holder, window in chain_lib.annulled_windows(chain.records):
      key = holder.island, holder.incarnation, cause
      lost[key] += window.tokens
      owed[key] += window.tokens * (holder in counted)
    for loss in self.losses:
      lost[loss.island, loss.incarnation, loss.cause] -= loss.tokens
    for (island, incarnation, cause), tokens in owed.items():
      tokens = min(tokens, lost[island, incarnation, cause])
      self._take_back(island, incarnation, tokens, _UNKNOWN)  # now it is known
      self._lose(island, incarnation, tokens, cause)

  def correct(self, members: Iterable[Member]) -> None:
    """What had been counted as lost may be in records taken over."""
    for member in members:
      if member.session is not None:  # else its own count is not known
        excess = self.settled(member) - member.heartbeat.tokens_trained
        self._take_back(member.island, member.incarnation, excess)

  def _take_back(
    self, island: str, incarnation: int, tokens: int, cause: str = ""
  ) -> None:
    """Some of what was counted as lost was not; or not for this cause."""
    before = tokens
    for loss in reversed(self.losses):
      who = loss.island, loss.incarnation
      if who == (island, incarnation) and cause in ("", loss.cause):
        found = max(0, min(tokens, loss.tokens))
        loss.tokens -= found
        tokens -= found
    if tokens != before:
      self._outbox.add(SaveLosses(list(self.losses)))

  # --------------------------------------------------------------- losses

  def drop(self, member: Member, dropped: pb.Dropped) -> None:
    """A member will not propose these windows: their work is lost."""
    windows = {_holder(member, w): w.tokens for w in dropped.windows}
    self._unsettled.append(_Drop(member, dropped.cause, windows))

  def compare(self, member: Member, trained: int, open_: int) -> None:
    """What a member has given up, if nobody heard it or a ledger was lost.

    Args:
      member: who tells.
      trained: tokens, all of this incarnation.
      open_: those of them that no record has decided, as far as it knows.
    """
    if not any(each.member is member for each in self._unsettled):
      who = member.island, member.incarnation
      given_up = trained - open_ - self.settled(member)
      self._lose(*who, given_up, _UNKNOWN)

  def depart(self, member: Member, cause: str) -> None:
    """An incarnation is out, with all that is leased to it now."""
    leases = self.pool.held_by(member.island, member.incarnation)
    trained = member.heartbeat.tokens_trained
    self._departed.add((member.island, member.incarnation))
    self._unsettled.append(_Departure(member, cause, trained, leases))

  def settle(self, in_use: Callable[[str, int], bool]) -> None:
    """What was trained and not committed is lost; leases come back.

    Args:
      in_use: whether the open attempt may commit an incarnation's work.
    """
    unsettled, self._unsettled = self._unsettled, []
    for each in unsettled:
      member = each.member
      if in_use(member.island, member.incarnation):
        self._unsettled.append(each)
        continue
      if isinstance(each, _Drop):
        leases, tokens = list(each.windows), self._tokens_dropped(each)
      else:
        leases, tokens = each.leases, each.trained - self.settled(member)
      leases = [holder for holder in leases if holder in self.pool.leased]
      who = member.island, member.incarnation
      self._lose(*who, tokens, each.cause, leases)

  def _tokens_dropped(self, drop: _Drop) -> int:
    """What is lost by it; less if some of it was counted as lost before.

    A coordinator that lost its ledger may not know the leases.
    """
    leased = sum(n for h, n in drop.windows.items() if h in self.pool.leased)
    others = sum(drop.windows.values()) - leased
    return leased + min(others, max(0, self.open(drop.member) - leased))

  def _lose(
    self,
    island: str,
    incarnation: int,
    tokens: int,
    cause: str,
    holders: Sequence[Holder] = (),
  ) -> None:
    """Ends leases without a record; what was trained on them is lost."""
    for holder in holders:
      self.pool.consume(holder, [])
    loss = None
    if tokens > 0:
      loss = pb.Loss(
        island=island, incarnation=incarnation, tokens=tokens, cause=cause
      )
      self.losses.append(loss)
    if holders or loss is not None:
      self._outbox.add(EndLeases(list(holders), loss))


def _holder(member: Member, window: pb.Window) -> Holder:
  return Holder(member.island, member.incarnation, window.number)
