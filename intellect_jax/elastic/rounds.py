"""The coordinator's rounds, one after the other. No I/O.

`round.py` has what an attempt at a round is; here stands when it is made: who
is waited for and how long, who must be there, when members' states disagree,
and what becomes a record.
"""

import collections
from collections.abc import Callable
import statistics

from intellect_jax.elastic.balance import Balance, Link
from intellect_jax.elastic.books import Books
from intellect_jax.elastic.membership import Member, Membership, State
from intellect_jax.elastic.outbox import Outbox
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.quorum import Quorum
from intellect_jax.elastic.round import CoordinatorRound
from intellect_jax.elastic.shares import capacity, relayed_only
from intellect_jax.elastic.tie import Ties
from intellect_jax.elastic.transfers import Transfers
from intellect_jax.outer.codec import make_codec

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_WINDOWS_REMEMBERED = 64
_HAND_IN_TICK = 0.2  # seconds that a word may need to get there
_HAND_IN_SLACK = 1.25  # x what an island needs from a word to a proposal


class Rounds:
  """The round that may become the next record, and the pace of those before."""

  def __init__(
    self,
    books: Books,
    members: Membership,
    quorum: Quorum,
    outbox: Outbox,
    transfers: Transfers,
    ties: Ties,
    repair: Callable[[Member], None],
    now: float,
  ):
    """Opens the first round.

    Args:
      repair: called with a member whose state is not the run's.
    """
    self._books = books
    self._members = members
    self._quorum = quorum
    self._outbox = outbox
    self._transfers = transfers
    self._ties = ties
    self._repair = repair
    self._codec = make_codec(books.run.outer.codec)
    self._attempts = 0  # in this term
    self._balance = Balance()
    self._forgive_at = now  # when broken pairs may try again
    self._window_seconds: collections.deque[float] = collections.deque(
      maxlen=_WINDOWS_REMEMBERED
    )
    self._open()

  def _open(self) -> None:
    self.number = len(self._books.chain.records)  # that it may become
    self.round = CoordinatorRound(self._codec)
    self._proposed_after: dict[str, float] = {}  # seconds
    self._closing_told: set[str] = set()
    self._awaited = self._known()

  def _known(self) -> set[str]:
    """Who is waited for: others than newcomers, for whom nobody stops."""
    inside = {member.island for member in self._members.inside()}
    last = self._books.chain.last_step.step.members
    return inside | {member.island for member in last}

  # --------------------------------------------------- what members say

  def on_proposal(
    self, member: Member, proposal: pb.Proposal, now: float
  ) -> None:
    if proposal.base != self._books.head.number or self._books.head.final:
      return  # it has not heard of the newest record; the record is on its way
    if self._transfers.waits(member.island):
      return
    if member.state not in (State.JOINING, State.IN):
      return
    beat = member.heartbeat  # may be older than the proposal
    beat.tokens_trained = max(beat.tokens_trained, proposal.tokens_trained)
    accounts = self._books.accounts
    if not accounts.holds(member, proposal.windows):
      self._void_windows(member)
      return
    proposed = sum(window.tokens for window in proposal.windows)
    if not self.uses(member.island, member.incarnation):
      accounts.compare(member, proposal.tokens_trained, proposed)
    known = accounts.settled(member) + proposed
    beat.tokens_trained = max(beat.tokens_trained, known)
    member.state, member.hung = State.IN, False
    self._transfers.has_one(member.island)
    member.record = max(member.record, proposal.base)
    refusal = self.round.propose(member.island, member.incarnation, proposal)
    if refusal:
      self._outbox.refuse(member, f"its proposal was refused: {refusal}")
      return
    self._ties.claim(member.island, proposal.base, proposal.base_state)
    if self.round.contradicted_by(proposal):
      self.round.abandon()
    self._proposed_after[member.island] = now - self._books.appended_at

  def _void_windows(self, member: Member) -> None:
    """It was evicted before a restart of this coordinator, and not told."""
    self._books.accounts.depart(member, "its leases had ended")
    welcome = pb.Welcome(
      run_id=self._books.run_id,
      evicted=True,
      start=pb.Welcome.START_GO_ON,
      head=self._books.head.number,
    )
    self._outbox.tell(member.island, pb.ToIsland(welcome=welcome))

  def on_share_reduced(self, member: Member, report: pb.ShareReduced) -> None:
    fix = self.round.share_reduced(member.island, report)
    liars = self.round.liars() if fix else []
    for island in liars:
      self.round.proposals.pop(island, None)
      reason = "the norm of its delta is not what it claimed"
      self._outbox.refuse(self._members.members[island], reason)
    if liars:
      self.round.abandon()
    else:
      self._outbox.tell_each(fix)

  def on_prepared(self, member: Member, prepared: pb.Prepared) -> None:
    self.round.prepared(member.island, prepared.attempt)

  def on_fetch_failed(
    self, member: Member, report: pb.FetchFailed, now: float
  ) -> None:
    """Two members cannot reach each other."""
    if self.round.fetch_failed(member.island, report):
      self._forgive_at = now + self._books.elastic.fetch_patience
      self.round.abandon()

  def dropped(self, member: Member) -> None:
    """What it has proposed is void, by its own word."""
    self.round.proposals.pop(member.island, None)

  def excuse(self, island: str) -> None:
    """Its state was wrong, and its proposal with it: nobody waits for it."""
    self.round.proposals.pop(island, None)
    self._awaited.discard(island)

  def doubt(self) -> None:
    """Whether its members hold the run's state is not settled after all."""
    self.round.abandon()

  def gone(self, island: str) -> None:
    """A member cannot be heard, or is out of the run."""
    if self.round.gone(island):
      self.round.abandon()

  def say_again(self, island: str) -> None:
    """What it may have missed while its stream was broken."""
    self._outbox.tell_each(self.round.again(island))

  # ------------------------------------------------------- time passes

  def advance(self, now: float) -> None:
    """Does what can be done by now: commits, opens, plans."""
    if self.number != len(self._books.chain.records):
      self._open()  # an operator's record has come between
    if self.round.plan is not None and self.round.complete():
      self._commit(now)
      self._open()
    self._try_to_plan(now)

  def late(self) -> list[str]:
    """Members that have not proposed, newcomers since the last record apart."""
    inside = {m.island for m in self._members.inside()}
    first = not self._books.chain.last_step.step.members
    awaited = inside if first else inside & self._awaited or inside
    return sorted(awaited - set(self.round.proposals))

  def deadline(self) -> float:
    """When the round is planned without those who are late."""
    elastic = self._books.elastic
    if not elastic.deadline or not self._window_seconds:
      return float("inf")
    seconds = list(self._window_seconds)
    median = statistics.median(seconds)
    mad = statistics.median([abs(s - median) for s in seconds])
    slack = elastic.deadline_deviations * _MAD_TO_SIGMA * mad
    return self._books.appended_at + min(
      max(elastic.deadline_ratio * median, median + slack),
      median + elastic.deadline_cap,
    )

  def announce_closing(self, now: float) -> None:
    """Tells the slow in time when the round will be planned without them."""
    deadline = self.deadline()
    if self.round.planned or self._books.head.final or now > deadline:
      return
    for island in self.late():
      needs = self._members.members[island].heartbeat.hand_in_seconds
      told_at = deadline - _HAND_IN_SLACK * needs - _HAND_IN_TICK
      if island not in self._closing_told and now >= told_at:
        self._closing_told.add(island)
        closing = pb.Closing(number=self.number)
        self._outbox.tell(island, pb.ToIsland(closing=closing))

  # ---------------------------------------------------- plan and commit

  def _try_to_plan(self, now: float) -> None:
    """Starts an attempt, if none is open and all that must be there are."""
    if self.round.plan is not None or not self._may_plan(now):
      return
    if not self._agree(now):
      return
    ready = set(self.round.proposals) & self._members.reachable()
    needed = self._quorum.needed(now)
    if len(ready) < needed:
      return
    members = ready - self.round.left_out()
    if len(members) < needed:  # void; all of it is carried
      if now < self._forgive_at:
        return
      self.round.forgive()
      members = ready
    self._attempts += 1
    term, serial = self._books.term, self._attempts
    clip, names = self._books.run.outer.clip_ratio, sorted(members)
    weights = self._weights(names)
    plan = self.round.start(self.number, names, term, serial, clip, weights)
    self._outbox.tell_each(plan)

  def _weights(self, names: list[str]) -> list[int] | None:
    """Of the shares, as the members' links stand; None: links do not count."""
    elastic = self._books.elastic
    if elastic.share_by == "equal":
      return None
    links = {}
    for name in names:
      beat = self._members.members[name].heartbeat
      delta = self.round.proposals[name].delta
      links[name] = Link(
        beat.upload_rate,
        beat.download_rate,
        capacity(delta),
        relayed_only(delta),
      )
    return self._balance.weights(links, elastic.share_gain)

  def _may_plan(self, now: float) -> bool:
    """Whether it is time: nobody is waited for any more."""
    books = self._books
    if not books.chain.records or books.head.final or books.steering.paused:
      return False
    inside = len(self._members.inside())
    if books.head.number == 0 and inside < books.elastic.start_islands:
      return False
    return self.round.planned or not self.late() or now >= self.deadline()

  def _agree(self, now: float) -> bool:
    """Whether it is settled which state is the run's; others are repaired."""
    right = self._ties.right(not self.late())
    if right:
      for island, proposal in list(self.round.proposals.items()):
        if proposal.base_state != right:
          self._repair(self._members.members[island])
    elif reason := self._ties.hopeless():
      self._outbox.warn(f"The run is paused: {reason}.")
      pause = pb.Settings.PAUSE_BEGIN
      self._books.change(pb.Settings(pause=pause, reason=reason), now)
      self._open()
    return bool(right)

  def _commit(self, now: float) -> None:
    """Writes the record: every member that still lives is prepared."""
    books = self._books
    step = self.round.step(books.run, books.head.total_tokens)
    step.minority = len(step.members) < self._quorum.half()
    if step.minority:
      members = ", ".join(member.island for member in step.members)
      self._outbox.warn(
        f"Record {self.number} is that of a minority ({members}): the others"
        " have been away too long, and may be going on elsewhere."
      )
    for island in self.round.holders():
      self._members.members[island].record = self.number
    self._window_seconds.extend(self._proposed_after.values())
    self._books.commit(step, now)

  def uses(self, island: str, incarnation: int) -> bool:
    """Whether the open attempt may commit the work of an incarnation."""
    return self.round.uses(island, incarnation)

  def describe(self) -> str:
    """What the run waits for, for the operator."""
    books = self._books
    if books.head.final:
      return "finished"
    if books.steering.paused:
      return f"paused: {books.steering.paused}"
    missing = books.elastic.start_islands - len(self._members.inside())
    if books.head.number == 0 and missing > 0:
      return f"waiting for {missing} more of start_islands"
    return self.round.describe(self.late())
