"""A round, both sides of it, without I/O: docs/protocol.md, section 3.

    island                          coordinator
    propose   --- Proposal ------>  waits for all, or for the deadline
              <-- Plan -----------  fixes members, weights, shares
    reduce    --- ShareReduced -->  waits for every share
              <-- Fix ------------  fixes the bytes of the mean
    gather    --- Prepared ------>  waits for every member that still lives
              <-- SealedRecord ---  made durable, then announced
    adopt     (and only now do theta and b move)

A failure ends the attempt, not the round: the next Plan goes on without who
failed, with the same encoded deltas and a new divisor.
"""

import dataclasses
import math

from blake3 import blake3
from ml_collections import ConfigDict

from intellect_jax.elastic import chain
from intellect_jax.elastic.actions import (
  Adopt,
  Cancel,
  Diverged,
  Gather,
  HandIn,
  Keep,
  ReadLog,
  Reduce,
  Send,
)
from intellect_jax.elastic.actions import IslandAction as Action
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.shares import (
  addresses,
  capacity,
  cover,
  share_bounds,
  whole_bounds,
)
from intellect_jax.outer.clip import clip_factors
from intellect_jax.outer.codec import Codec
from intellect_jax.outer.merge import rda_scale
from intellect_jax.outer.rates import rates

_NORM_TOLERANCE = 1e-3  # relative, between a claimed and a measured norm

Outgoing = list[tuple[str, pb.ToIsland]]


# ------------------------------------------------------------- coordinator


class CoordinatorRound:
  """The round of a fragment that is open, as the coordinator sees it."""

  def __init__(self, codec: Codec):
    self._codec = codec
    self._block_bytes = codec.block_bytes
    self.proposals: dict[str, pb.Proposal] = {}
    self._incarnations: dict[str, int] = {}
    self.plan: pb.Plan | None = None  # of the attempt that is open
    self.planned = False  # further attempts wait for nobody
    self._reduced: dict[int, pb.ShareReduced] = {}
    self._fix: pb.Fix | None = None  # from then on the mean cannot change
    self._first = pb.Proposal()  # of the members; they have one base
    self._prepared: set[str] = set()
    self._absent: set[str] = set()  # members that left the attempt
    self._claims: dict[str, float] = {}  # norms, of the plan's members
    self._broken: list[tuple[str, str]] = []  # (reader, peer) that failed

  def propose(
    self, island: str, incarnation: int, proposal: pb.Proposal
  ) -> str:
    """Takes a proposal, again too. Returns why not, or an empty string."""
    if not math.isfinite(proposal.norm):
      return f"the norm of its delta is {proposal.norm}"
    if proposal.fragment and proposal.windows:
      return "windows are committed by fragment 0"
    if _tokens(proposal) <= 0:
      return "it has no tokens"
    if proposal.delta.length % self._block_bytes:
      return "its delta is not whole codec blocks"
    for other in self.proposals.values():
      if other.delta.length != proposal.delta.length:
        return "its delta has another length than those of others"
      if other.blocks != proposal.blocks:
        return "its fragment is another one than those of others"
    self.proposals[island] = proposal
    self._incarnations[island] = incarnation
    return ""

  def contradicted_by(self, proposal: pb.Proposal) -> bool:
    """Whether it starts from another state than the open attempt."""
    first = self._first.base_state
    return self.plan is not None and proposal.base_state != first

  def start(
    self,
    number: int,
    members: list[str],
    term: int,
    serial: int,
    clip_ratio: float = 0.0,
    weights: list[int] | None = None,
  ) -> Outgoing:
    """Starts an attempt with these members, in this order.

    `weights` are of their shares; None: by their hosts and relays. With a
    sparse codec all have a whole vector, and the mean is as many of them.
    """
    self._reduced.clear()
    self._prepared.clear()
    self._absent.clear()
    self._fix = None
    self._claims = {island: self.proposals[island].norm for island in members}
    proposals = [self.proposals[island] for island in members]
    self._first = first = proposals[0]
    plan = pb.Plan(
      term=term,
      serial=serial,
      number=number,
      fragment=first.fragment,
      base=first.base,
    )
    clips = clip_factors(
      [proposal.norm for proposal in proposals],
      [_steps(proposal) for proposal in proposals],
      clip_ratio,
    )
    for island, proposal, clip in zip(members, proposals, clips, strict=True):
      plan.members.add(
        island=island,
        incarnation=self._incarnations[island],
        windows=proposal.windows,
        weight=_tokens(proposal),
        clip=clip,
        delta=proposal.delta,
        serial=proposal.serial,
      )
    if weights is None:
      weights = [capacity(proposal.delta) for proposal in proposals]
    length = first.delta.length
    if self._codec.sparse:
      bounds = whole_bounds(length // self._block_bytes, len(members))
    else:
      bounds = share_bounds(length, self._block_bytes, weights)
    for owner, (start, stop) in zip(members, bounds, strict=True):
      plan.shares.add(start=start, stop=stop, owner=owner)
    plan.attempt = blake3(plan.SerializeToString(deterministic=True)).digest()
    self.plan = plan
    self.planned = True
    return [(island, pb.ToIsland(plan=plan)) for island in members]

  def share_reduced(self, island: str, report: pb.ShareReduced) -> Outgoing:
    """Takes an owner's report; the last one fixes the mean."""
    plan = self.plan
    if (
      plan is None
      or self._fix is not None
      or report.attempt != plan.attempt
      or report.share >= len(plan.shares)
      or plan.shares[report.share].owner != island
      or len(report.squared_norms) != len(plan.members)
    ):
      return []
    self._reduced[report.share] = report
    if len(self._reduced) < len(plan.shares):
      return []
    for share, done in zip(plan.shares, self._in_order(), strict=True):
      share.mean.CopyFrom(done.mean)
    means = [share.mean for share in plan.shares]
    self._fix = pb.Fix(attempt=plan.attempt, means=means)
    return [(m.island, pb.ToIsland(fix=self._fix)) for m in plan.members]

  def again(self, island: str) -> Outgoing:
    """What a member of the attempt may have missed when its stream broke."""
    plan = self.plan
    if plan is None or island not in self._members() - self._absent:
      return []
    unfixed = pb.Plan()
    unfixed.CopyFrom(plan)
    for share in unfixed.shares:
      share.ClearField("mean")
    missed = [(island, pb.ToIsland(plan=unfixed))]
    if self._fix is not None:
      missed.append((island, pb.ToIsland(fix=self._fix)))
    return missed

  def _members(self) -> set[str]:
    return {m.island for m in self.plan.members} if self.plan else set()

  def uses(self, island: str, incarnation: int) -> bool:
    """Whether the open attempt may commit the work of an incarnation."""
    members = self.plan.members if self.plan is not None else []
    return any(
      (m.island, m.incarnation) == (island, incarnation) for m in members
    )

  def liars(self) -> list[str]:
    """Members whose delta, as its readers saw it, is not as they claimed."""
    if self.plan is None or len(self._reduced) < len(self.plan.shares):
      return []
    found = []
    for index, member in enumerate(self.plan.members):
      seen, claimed = self._norm(index), self._claims[member.island]
      if not math.isclose(seen, claimed, rel_tol=_NORM_TOLERANCE):
        found.append(member.island)
    return found

  def _norm(self, index: int) -> float:
    """Of a member's delta, as those who reduced it saw it."""
    square = sum(r.squared_norms[index] for r in self._in_order())
    return math.sqrt(max(square, 0.0))

  def _mean_norm(self) -> float:
    """Of the decoded mean; 0 if what was reported is no sum of squares."""
    square = sum(r.mean_squared_norm for r in self._in_order())
    return math.sqrt(square) if 0 < square < math.inf else 0.0

  def _in_order(self) -> list[pb.ShareReduced]:
    return [self._reduced[index] for index in sorted(self._reduced)]

  def prepared(self, island: str, attempt: bytes) -> None:
    if self._fix is not None and attempt == self._fix.attempt:
      self._prepared.add(island)

  def holders(self) -> set[str]:
    """Members that are there and hold the whole mean."""
    return self._prepared - self._absent

  def complete(self) -> bool:
    """Whether every member that is still there holds the mean."""
    there = self._members() - self._absent
    return bool(there) and there <= self._prepared

  def step(self, run: ConfigDict, committed_tokens: int) -> pb.OuterStep:
    """What is committed: everything that an island needs to apply it.

    Args:
      run: the run half, as it holds for this record.
      committed_tokens: of the run, before this record.
    """
    plan = self.plan
    assert plan is not None
    outer, islands = run.outer, len(plan.members)
    eta, mu = rates(outer, islands, committed_tokens, run.tokens)
    step = pb.OuterStep(
      attempt=plan.attempt,
      fragment=plan.fragment,
      base=plan.base,
      shares=plan.shares,
      codec=self._codec.name,
      learning_rate=eta,
      momentum=mu,
      base_state=self._first.base_state,
      blocks=self._first.blocks,
      scale=1.0,
      mean_norm=self._mean_norm(),
    )
    for index, member in enumerate(plan.members):
      step.members.add().CopyFrom(member)
      step.members[-1].ClearField("delta")
      step.members[-1].norm = self._norm(index)
    if outer.merge == "rda":
      weights = [member.weight for member in step.members]
      norms = [member.clip * member.norm for member in step.members]
      step.scale = rda_scale(weights, norms, step.mean_norm)
    return step

  def gone(self, island: str) -> bool:
    """Notes that a member cannot be heard. Returns whether the attempt ends.

    Before the mean is fixed its bytes are still needed. After that they are
    not, as soon as one other member holds the whole mean: its work counts,
    and nobody waits for it, also if it comes back.
    """
    self.proposals.pop(island, None)
    if island not in self._members():
      return False
    self._absent.add(island)
    return not self.holders()

  def fetch_failed(self, island: str, report: pb.FetchFailed) -> bool:
    """Notes a pair that cannot reach each other. Whether the attempt ends."""
    if (
      self.plan is None
      or report.attempt != self.plan.attempt
      or not {island, report.peer} <= self._members()
    ):
      return False
    self._broken.append((island, report.peer))
    return True

  def left_out(self) -> set[str]:
    """Members without which the others can all reach each other."""
    return cover(self._broken, self.proposals)

  def forgive(self) -> None:
    """Pairs that could not reach each other may try again."""
    self._broken.clear()

  def abandon(self) -> None:
    """Ends the attempt; proposals stay for the next one."""
    self.plan = None
    self._fix = None
    self._prepared.clear()

  def describe(self, waiting_for: list[str]) -> str:
    """What the round waits for, for the operator."""
    if self.plan is None:
      return "waiting for proposals of " + (", ".join(waiting_for) or "anyone")
    if self._fix is None:
      owners = {s.owner for i, s in enumerate(self.plan.shares)}
      done = {self.plan.shares[i].owner for i in self._reduced}
      return "reducing, waiting for " + ", ".join(sorted(owners - done))
    missing = self._members() - self._absent - self._prepared
    return "gathering, waiting for " + ", ".join(sorted(missing))


def _tokens(proposal: pb.Proposal) -> int:
  """Its weight: of its windows, or of the steps that it says."""
  windows = proposal.windows
  return sum(w.tokens for w in windows) if windows else proposal.tokens


def _steps(proposal: pb.Proposal) -> int:
  windows = proposal.windows
  return sum(w.steps for w in windows) if windows else proposal.steps


# ------------------------------------------------------------------ island


@dataclasses.dataclass(frozen=True)
class _Tip:
  """The end of the chain, as far as it was checked."""

  number: int
  hash: bytes = b""  # empty: not known yet
  term: int = 0


@dataclasses.dataclass
class _Open:
  """The open round of a fragment, as its island sees it."""

  moved_at: int  # newest record that moved the fragment here
  proposal: pb.Proposal | None = None
  plan: pb.Plan | None = None
  fix: pb.Fix | None = None
  # In this attempt, to say again.
  said: list[pb.FromIsland] = dataclasses.field(default_factory=list)
  # Attempts whose mean is here.
  gathered: set[bytes] = dataclasses.field(default_factory=set)

  def say(self, message: pb.FromIsland) -> Send:
    self.said.append(message)
    return Send(message)

  def end_attempt(self) -> list[Action]:
    plan, self.plan, self.fix = self.plan, None, None
    self.said.clear()
    return [Cancel(plan.fragment)] if plan is not None else []


def _order(plan: pb.Plan) -> tuple[int, int]:
  return plan.term, plan.serial


class IslandRound:
  """One island's side of its rounds: one at most of each fragment."""

  def __init__(self, island: str, record: int | None):
    self.island = island
    self.record = record  # newest adopted; None: no state to stand on yet
    self._tip = _Tip(-1 if record is None else record)
    self._open: dict[int, _Open] = {}  # by fragment
    # Committed, not adopted.
    self._waiting: dict[int, tuple[pb.Record, pb.SealedRecord]] = {}
    self._stood_at = self._tip.number  # of no fragment is more known before
    self._fetching: bytes | None = None  # attempt of a committed record

  def _of(self, fragment: int) -> _Open:
    return self._open.setdefault(fragment, _Open(self._stood_at))

  def _with(self, attempt: bytes) -> _Open | None:
    """The open round whose attempt this is."""
    for open_ in self._open.values():
      if open_.plan is not None and open_.plan.attempt == attempt:
        return open_
    return None

  def stand(self, record: int) -> list[Action]:
    """The island holds the state of `record`; -1: it is about to make it."""
    if self.record is None or record > self.record:
      self.record = self._stood_at = record
      for open_ in self._open.values():
        open_.moved_at = record
      self._tip = _Tip(record)
    return self._adopt()

  def forget(self) -> None:
    """The island's own state is of no use: it waits for another."""
    self.record = None
    self._tip = _Tip(-1)
    self._fetching = None
    self._waiting.clear()

  def propose(self, proposal: pb.Proposal) -> list[Action]:
    open_ = self._of(proposal.fragment)
    if self.record is not None and proposal.base >= open_.moved_at:
      proposal.base = self.record  # what came since did not move the fragment
    open_.proposal = proposal
    return [Send(pb.FromIsland(proposal=proposal))]

  def closing(self, closing: pb.Closing) -> list[Action]:
    """A round is planned soon; who has not proposed had better do it now."""
    open_ = self._of(closing.fragment)
    past = self.record is None or closing.number <= open_.moved_at
    if past or open_.proposal is not None:
      return []
    return [HandIn(closing.number, closing.fragment)]

  def reconnected(self) -> list[Action]:
    """Says again what the coordinator may not have heard."""
    actions: list[Action] = []
    for open_ in self._open.values():
      if open_.proposal is not None:
        actions.append(Send(pb.FromIsland(proposal=open_.proposal)))
      actions += [Send(message) for message in open_.said]
    return actions

  def withdraw(self) -> list[Action]:
    """The work behind all proposals is void."""
    actions: list[Action] = []
    for open_ in self._open.values():
      open_.proposal = None
      actions += open_.end_attempt()
    return actions

  def plan(self, plan: pb.Plan) -> list[Action]:
    open_ = self._of(plan.fragment)
    if self.record is None or plan.number <= open_.moved_at:
      return []
    if open_.plan is not None and plan.attempt == open_.plan.attempt:
      return [Send(message) for message in open_.said]
    if open_.plan is not None and _order(plan) < _order(open_.plan):
      return []  # it came late, by a stream that has been replaced
    actions = open_.end_attempt()
    owners = [share.owner for share in plan.shares]
    if self.island in owners:
      open_.plan = plan
      actions.append(Reduce(plan, owners.index(self.island)))
    return actions

  def reduced(self, report: pb.ShareReduced) -> list[Action]:
    open_ = self._with(report.attempt)
    if open_ is None:
      return []
    return [open_.say(pb.FromIsland(share_reduced=report))]

  def fix(self, fix: pb.Fix) -> list[Action]:
    open_ = self._with(fix.attempt)
    if open_ is None or open_.plan is None:
      return []
    if open_.fix is not None:
      return [Send(message) for message in open_.said]
    open_.fix, plan = fix, open_.plan
    shares = [
      pb.Share(start=s.start, stop=s.stop, owner=s.owner, mean=mean)
      for s, mean in zip(plan.shares, fix.means, strict=True)
    ]
    holders = [a for m in plan.members for a in addresses(m.delta)]
    return [Gather(plan.attempt, shares, holders, plan.fragment)]

  def gathered(self, attempt: bytes, fragment: int = 0) -> list[Action]:
    """The mean of `attempt` is here and verified."""
    open_ = self._of(fragment)
    open_.gathered.add(attempt)
    actions: list[Action] = []
    if open_.plan is not None and open_.plan.attempt == attempt:
      said = pb.FromIsland(prepared=pb.Prepared(attempt=attempt))
      actions.append(open_.say(said))
    return actions + self._adopt()

  def failed(self, attempt: bytes, peer: str, reason: str) -> list[Action]:
    """`peer` did not deliver what `attempt` needs."""
    open_ = self._with(attempt)
    if open_ is None:
      return []
    report = pb.FetchFailed(attempt=attempt, peer=peer, reason=reason)
    return [open_.say(pb.FromIsland(fetch_failed=report))]

  def late_fetch_failed(self, attempt: bytes) -> list[Action]:
    """Nobody delivered the mean of a committed record.

    Asks who has it now, and for a later state: perhaps nobody has it any more.
    """
    number = self._tip.number + 1
    record, _ = self._waiting.get(number, (pb.Record(), None))
    if self._fetching != attempt or record.step.attempt != attempt:
      return []
    self._fetching = None
    reason = f"the mean of record {number} is not to be had"
    want_state = pb.FromIsland(fetch_failed=pb.FetchFailed(reason=reason))
    return [ReadLog(number), Send(want_state)]

  def committed(self, log: list[pb.SealedRecord]) -> list[Action]:
    """Records, announced or read from the log; in any order, also twice."""
    if self.record is None:
      return []  # it reads the log from where it comes to stand
    again: list[Action] = []
    for sealed in log:
      record = chain.opened(sealed)
      if record is None:
        continue  # not the bytes that were sealed
      if record.number == self._tip.number:
        if self._tip.hash and self._lost_to(record, sealed.hash):
          return [self._diverged(-1)]
        if not self._tip.hash:
          self._tip = _Tip(record.number, sealed.hash, record.term)
        elif self._tip.hash == sealed.hash:
          # Who says it may have come to it just now, and heard nobody before.
          again = self.reconnected()
      self._waiting[record.number] = record, sealed
    return again + self._adopt()

  def _lost_to(self, record: pb.Record, tip: bytes) -> bool:
    """Whether a record shows that this island's chain has lost."""
    return tip != self._tip.hash and record.term > self._tip.term

  def _diverged(self, to: int) -> Diverged:
    assert self.record is not None
    self._waiting.clear()
    return Diverged(self.record, to)

  def _annulled(self) -> set[int]:
    """Numbers of records that do not count, by those that wait.

    As far as they follow the tip as one chain: others may be of one that lost.
    """
    annulled: set[int] = set()
    before, number = self._tip.hash, self._tip.number + 1
    while number in self._waiting:
      record, sealed = self._waiting[number]
      if before and record.previous != before:
        break
      if record.HasField("annulment"):
        annulled.update(range(record.annulment.to + 1, number))
      before, number = sealed.hash, number + 1
    return annulled

  def _adopt(self) -> list[Action]:
    """Adopts what is waiting, in order, as far as the means are here."""
    actions: list[Action] = []
    if self.record is None:
      return actions
    annulled = self._annulled()
    if self.record in annulled:
      counts = self.record
      while counts in annulled:
        counts -= 1
      return [self._diverged(counts)]
    while (number := self._tip.number + 1) in self._waiting:
      record, sealed = self._waiting[number]
      if self._tip.hash and record.previous != self._tip.hash:
        del self._waiting[number]  # of another chain
        if self._lost_to(record, record.previous):
          return [*actions, self._diverged(-1)]
        break
      step = record.step if record.HasField("step") else None
      void = number in annulled
      if step and not void and not self._has_mean(step):
        if self._fetching != step.attempt:
          self._fetching = step.attempt
          shares, holders = list(step.shares), list(sealed.holders)
          gather = Gather(step.attempt, shares, holders, step.fragment, number)
          actions.append(gather)
        return actions
      self._tip = _Tip(number, sealed.hash, record.term)
      if void:
        actions.append(Keep(sealed))
      else:
        actions += self._adopt_one(record, sealed)
    for number in [n for n in self._waiting if n <= self._tip.number]:
      del self._waiting[number]
    if self._waiting:
      actions.append(ReadLog(self._tip.number + 1))
    return actions

  def _has_mean(self, step: pb.OuterStep) -> bool:
    return step.attempt in self._of(step.fragment).gathered

  def _adopt_one(
    self, record: pb.Record, sealed: pb.SealedRecord
  ) -> list[Action]:
    self.record = record.number
    if record.HasField("step"):
      open_ = self._of(record.step.fragment)
      actions = open_.end_attempt()
      open_.moved_at, open_.proposal = record.number, None
      open_.gathered.clear()
      return [*actions, Adopt(record, sealed)]
    actions: list[Action] = []
    for open_ in self._open.values():  # what was planned before is planned anew
      if open_.plan is not None and open_.plan.number <= record.number:
        actions += open_.end_attempt()
    actions.append(Adopt(record, sealed))
    for open_ in self._open.values():
      if open_.proposal is not None:  # theta stays, and so does the delta
        actions += self.propose(open_.proposal)
    return actions
