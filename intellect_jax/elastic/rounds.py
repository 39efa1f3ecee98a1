"""The coordinator's rounds: of each fragment, one after the other. No I/O.

`round.py` has what an attempt at a round is; here stands when it is made: who
is waited for and how long, who must be there, when members' states disagree,
and what becomes a record.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import statistics

from intellect_jax.elastic.balance import Balance, Link
from intellect_jax.elastic.books import Books
from intellect_jax.elastic.chain import moves
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


@dataclasses.dataclass
class _Open:
  """The open round of a fragment."""

  round: CoordinatorRound
  base: int  # record that moved the fragment last
  since: float  # when that was written
  awaited: set[str]
  proposed_after: dict[str, float] = dataclasses.field(default_factory=dict)
  closing_told: set[str] = dataclasses.field(default_factory=set)


class Rounds:
  """The rounds that may become records, and the pace of those before."""

  def __init__(
    self,
    books: Books,
    members: Membership,
    quorum: Quorum,
    outbox: Outbox,
    transfers: Transfers,
    ties: Ties,
    repair: Callable[[Member, Sequence[int]], None],
    now: float,
  ):
    """Opens the first rounds.

    Args:
      repair: called with a member whose state is not the run's, and the
        fragments that are not.
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
    self._seen = len(books.chain.records)  # that the rounds stand on
    self._open = [self._new(f, now) for f in range(books.run.outer.fragments)]

  @property
  def round(self) -> CoordinatorRound:
    """The open one of fragment 0, which commits windows."""
    return self._open[0].round

  def _new(self, fragment: int, now: float) -> _Open:
    base = self._books.chain.moved(fragment)
    round_ = CoordinatorRound(self._codec)
    return _Open(round_, base, now, self._known())

  def _follow_chain(self, now: float) -> None:
    """Opens anew the rounds of fragments that records have moved."""
    records = self._books.chain.records
    for record in records[self._seen :]:
      for fragment, open_ in enumerate(self._open):
        if record.final or moves(record, fragment):
          self._open[fragment] = self._new(fragment, now)
        elif not record.HasField("step"):  # other settings: planned anew
          open_.round.abandon()
          open_.round.planned = False
    self._seen = len(records)

  def _known(self) -> set[str]:
    """Who is waited for: others than newcomers, for whom nobody stops."""
    inside = {member.island for member in self._members.inside()}
    last = self._books.chain.last_step.step.members
    return inside | {member.island for member in last}

  # --------------------------------------------------- what members say

  def on_proposal(
    self, member: Member, proposal: pb.Proposal, now: float
  ) -> None:
    if proposal.fragment >= len(self._open):
      self._outbox.refuse(member, f"it has a fragment {proposal.fragment}")
      return
    open_ = self._open[proposal.fragment]
    head = self._books.head
    if head.final or not open_.base <= proposal.base <= head.number:
      return  # it lacks a record, which is on its way; or we do
    if self._transfers.waits(member.island):
      return
    if not member.present:
      return
    beat = member.heartbeat  # may be older than the proposal
    beat.tokens_trained = max(beat.tokens_trained, proposal.tokens_trained)
    accounts = self._books.accounts
    if not accounts.holds(member, proposal.windows):
      self._void_windows(member)
      return
    proposed = sum(window.tokens for window in proposal.windows)
    if proposal.fragment == 0:  # the others have no windows
      self.compare(member, proposal.tokens_trained, proposed)
    known = accounts.settled(member) + proposed
    beat.tokens_trained = max(beat.tokens_trained, known)
    member.state, member.hung = State.IN, False
    self._transfers.has_one(member.island)
    member.record = max(member.record, proposal.base)
    proposal.base = open_.base  # what came since did not move the fragment
    refusal = open_.round.propose(member.island, member.incarnation, proposal)
    if refusal:
      self._outbox.refuse(member, f"its proposal was refused: {refusal}")
      return
    tie = self._ties.of(proposal.fragment)
    tie.claim(member.island, proposal.base, proposal.base_state)
    if open_.round.contradicted_by(proposal):
      open_.round.abandon()
    open_.proposed_after[member.island] = now - open_.since

  def compare(self, member: Member, trained: int, open_: int) -> None:
    """As `Accounts.compare`, unless an open attempt may yet commit the work."""
    if not self.uses(member.island, member.incarnation):
      self._books.accounts.compare(member, trained, open_)

  def _void_windows(self, member: Member) -> None:
    """It was evicted before a restart of this coordinator, and not told."""
    self._books.accounts.depart(member, "its leases had ended")
    self.gone(member.island)  # it withdraws from the other fragments' rounds
    welcome = pb.Welcome(
      run_id=self._books.run_id,
      evicted=True,
      start=pb.Welcome.START_GO_ON,
      head=self._books.head.number,
    )
    self._outbox.tell(member.island, pb.ToIsland(welcome=welcome))

  def _with(self, attempt: bytes) -> CoordinatorRound | None:
    """The round whose attempt this is."""
    for open_ in self._open:
      plan = open_.round.plan
      if plan is not None and plan.attempt == attempt:
        return open_.round
    return None

  def on_share_reduced(self, member: Member, report: pb.ShareReduced) -> None:
    round_ = self._with(report.attempt)
    if round_ is None:
      return
    fix = round_.share_reduced(member.island, report)
    liars = round_.liars() if fix else []
    for island in liars:
      round_.proposals.pop(island, None)
      reason = "the norm of its delta is not what it claimed"
      self._outbox.refuse(self._members.members[island], reason)
    if liars:
      round_.abandon()
    else:
      self._outbox.tell_each(fix)

  def on_prepared(self, member: Member, prepared: pb.Prepared) -> None:
    round_ = self._with(prepared.attempt)
    if round_ is not None:
      round_.prepared(member.island, prepared.attempt)

  def on_fetch_failed(
    self, member: Member, report: pb.FetchFailed, now: float
  ) -> None:
    """Two members cannot reach each other."""
    round_ = self._with(report.attempt)
    if round_ is not None and round_.fetch_failed(member.island, report):
      self._forgive_at = now + self._books.elastic.fetch_patience
      round_.abandon()

  def dropped(self, member: Member) -> None:
    """What it has proposed is void, by its own word."""
    for open_ in self._open:
      open_.round.proposals.pop(member.island, None)

  def excuse(self, island: str) -> None:
    """Its state was wrong, and its proposal with it: nobody waits for it."""
    for open_ in self._open:
      open_.round.proposals.pop(island, None)
      open_.awaited.discard(island)

  def doubt(self) -> None:
    """Whether members hold the run's state is not settled after all."""
    for open_ in self._open:
      open_.round.abandon()

  def gone(self, island: str) -> None:
    """A member cannot be heard, or is out of the run."""
    for open_ in self._open:
      if open_.round.gone(island):
        open_.round.abandon()

  def say_again(self, island: str) -> None:
    """What it may have missed while its stream was broken."""
    for open_ in self._open:
      self._outbox.tell_each(open_.round.again(island))

  # ------------------------------------------------------- time passes

  def advance(self, now: float) -> None:
    """Does what can be done by now: commits, opens, plans."""
    self._follow_chain(now)
    for fragment in range(len(self._open)):
      round_ = self._open[fragment].round
      if round_.plan is not None and round_.complete():
        self._commit(fragment, now)
        self._follow_chain(now)
    for open_ in self._open:
      self._try_to_plan(open_, now)
    self._follow_chain(now)  # they may have disagreed

  def _late(self, open_: _Open) -> list[str]:
    """Members that have not proposed, newcomers since the last record apart."""
    here = self._members.awaited()
    first = not self._books.chain.last_step.step.members
    awaited = here if first else here & open_.awaited or here
    return sorted(awaited - set(open_.round.proposals))

  def _deadline(self, open_: _Open) -> float:
    """When the round is planned without those who are late."""
    elastic = self._books.elastic
    if not elastic.deadline or not self._window_seconds:
      return float("inf")
    seconds = list(self._window_seconds)
    median = statistics.median(seconds)
    mad = statistics.median([abs(s - median) for s in seconds])
    slack = elastic.deadline_deviations * _MAD_TO_SIGMA * mad
    return open_.since + min(
      max(elastic.deadline_ratio * median, median + slack),
      median + elastic.deadline_cap,
    )

  def announce_closing(self, now: float) -> None:
    """Tells the slow in time when a round will be planned without them."""
    for fragment, open_ in enumerate(self._open):
      deadline = self._deadline(open_)
      if open_.round.planned or self._books.head.final or now > deadline:
        continue
      closing = pb.Closing(number=self._number, fragment=fragment)
      for island in self._late(open_):
        needs = self._members.members[island].heartbeat.hand_in_seconds
        told_at = deadline - _HAND_IN_SLACK * needs - _HAND_IN_TICK
        if island not in open_.closing_told and now >= told_at:
          open_.closing_told.add(island)
          self._outbox.tell(island, pb.ToIsland(closing=closing))

  @property
  def _number(self) -> int:
    """Of the next record."""
    return len(self._books.chain.records)

  # ---------------------------------------------------- plan and commit

  def _try_to_plan(self, open_: _Open, now: float) -> None:
    """Starts an attempt, if none is open and all that must be there are."""
    round_ = open_.round
    if round_.plan is not None or not self._may_plan(open_, now):
      return
    if not self._agree(open_, now):
      return
    ready = set(round_.proposals) & self._members.reachable()
    needed = self._quorum.needed(now)
    if len(ready) < needed:
      return
    members = ready - round_.left_out()
    if len(members) < needed:  # void; all of it is carried
      if now < self._forgive_at:
        return
      round_.forgive()
      members = ready
    self._attempts += 1
    term, serial = self._books.term, self._attempts
    clip, names = self._books.run.outer.clip_ratio, sorted(members)
    weights = self._weights(round_, names)
    plan = round_.start(self._number, names, term, serial, clip, weights)
    self._outbox.tell_each(plan)

  def _weights(
    self, round_: CoordinatorRound, names: list[str]
  ) -> list[int] | None:
    """Of the shares, as the members' links stand; None: links do not count."""
    elastic = self._books.elastic
    if elastic.share_by == "equal":
      return None
    links = {}
    for name in names:
      beat = self._members.members[name].heartbeat
      delta = round_.proposals[name].delta
      links[name] = Link(
        beat.upload_rate,
        beat.download_rate,
        capacity(delta),
        relayed_only(delta),
      )
    return self._balance.weights(links, elastic.share_gain)

  def _may_plan(self, open_: _Open, now: float) -> bool:
    """Whether it is time: nobody is waited for any more."""
    books = self._books
    if not books.chain.records or books.head.final or books.steering.paused:
      return False
    inside = len(self._members.inside())
    if books.head.number == 0 and inside < books.elastic.start_islands:
      return False
    late = self._late(open_) and now < self._deadline(open_)
    return open_.round.planned or not late

  def _agree(self, open_: _Open, now: float) -> bool:
    """Whether it is settled which state is the run's; others are repaired."""
    proposals, fragment = open_.round.proposals, self._open.index(open_)
    tie = self._ties.of(fragment)
    right = tie.right(not self._late(open_))
    if right:
      for island, proposal in list(proposals.items()):
        if proposal.base_state != right:
          self._repair(self._members.members[island], [fragment])
    elif why := tie.hopeless():
      self._outbox.warn(f"The run is paused: {why}.")
      pause = pb.Settings.PAUSE_BEGIN
      self._books.change(pb.Settings(pause=pause, reason=why), now)
    return bool(right)

  def _commit(self, fragment: int, now: float) -> None:
    """Writes the record: every member that still lives is prepared."""
    books, open_, number = self._books, self._open[fragment], self._number
    step = open_.round.step(books.run, books.head.total_tokens)
    step.minority = len(step.members) < self._quorum.half()
    if step.minority:
      members = ", ".join(member.island for member in step.members)
      self._outbox.warn(
        f"Record {number} is that of a minority ({members}): the others"
        " have been away too long, and may be going on elsewhere."
      )
    for island in open_.round.holders():
      member = self._members.members[island]
      if member.record >= books.chain.state:  # else it lacks a mean before
        member.record = number
    self._window_seconds.extend(open_.proposed_after.values())
    books.commit(step, now)

  def uses(self, island: str, incarnation: int) -> bool:
    """Whether an open attempt may commit the windows of an incarnation."""
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
    phases = [open_.round.describe(self._late(open_)) for open_ in self._open]
    if len(phases) == 1:
      return phases[0]
    return "; ".join(f"fragment {f}: {phase}" for f, phase in enumerate(phases))
