"""The coordinator's state machine: messages in, actions out. No I/O.

It knows who is in, which round is open and who committed what. It moves no
tensors and computes no updates. The shell around it is `service.py`; the clock
is the argument `now`, in seconds of any monotonic clock.
"""

import collections
from collections.abc import Sequence
import dataclasses
import statistics

from blake3 import blake3
from ml_collections import ConfigDict
import numpy as np

from intellect_jax import config as config_lib
from intellect_jax.elastic import rpc
from intellect_jax.elastic.membership import Member, Membership, State
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.round import CoordinatorRound, Outgoing
from intellect_jax.elastic.samples import Holder, Interval, SamplePool
from intellect_jax.outer.codec import make_codec

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_WINDOWS_REMEMBERED = 64


@dataclasses.dataclass(frozen=True)
class Send:
  session: int
  message: pb.ToIsland


@dataclasses.dataclass(frozen=True)
class Close:
  """End a control stream, after what was sent on it."""

  session: int


@dataclasses.dataclass(frozen=True)
class Append:
  """Make a record durable, before any action that follows.

  The leases of its windows have ended.
  """

  record: pb.Record
  sealed: pb.SealedRecord


@dataclasses.dataclass(frozen=True)
class SaveLease:
  holder: Holder
  samples: list[Interval]


@dataclasses.dataclass(frozen=True)
class EndLeases:
  """Leases that ended without a record, and what was lost with them."""

  holders: list[Holder]
  loss: pb.Loss | None


@dataclasses.dataclass(frozen=True)
class SaveEvaluation:
  record: int
  loss: float  # nats a token


@dataclasses.dataclass(frozen=True)
class Stop:
  """Another coordinator has taken over."""

  reason: str


Action = Send | Close | Append | SaveLease | EndLeases | SaveEvaluation | Stop


@dataclasses.dataclass
class History:
  """What a coordinator remembers from before it was started."""

  run_id: str
  term: int
  log: list[pb.SealedRecord] = dataclasses.field(default_factory=list)
  leases: dict[Holder, list[Interval]] = dataclasses.field(default_factory=dict)
  losses: list[pb.Loss] = dataclasses.field(default_factory=list)
  evaluations: dict[int, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Departure:
  """An incarnation that is out of the run, and what it leaves behind."""

  member: Member
  cause: str
  trained: int  # tokens
  leases: list[Holder]


class Coordinator:
  """Membership, data leases, the open round and the committed log."""

  def __init__(self, run: ConfigDict, history: History, now: float):
    self.run = run
    self.run_id = history.run_id
    self.term = history.term
    self.digest = config_lib.digest(run)
    self.log = list(history.log)  # record v at index v
    self.losses = list(history.losses)
    self.evaluations = dict(history.evaluations)
    self._members = Membership(run.elastic.lease_seconds)
    self._block_bytes = make_codec(run.outer.codec).block_bytes
    self._round = CoordinatorRound(self._block_bytes)
    self._records = [pb.Record.FromString(s.body) for s in self.log]
    windows = committed_windows(self._records)
    self._committed = collections.Counter()  # tokens by (island, incarnation)
    for holder, window in windows:
      self._committed[holder[:2]] += window.tokens
    # Who took part or was training when the last coordinator ended is given
    # a lease to come back; what older processes had leased is free.
    newest: dict[str, int] = {}
    members = [(m.island, m.incarnation) for m in self.head.step.members]
    for island, incarnation in [*members, *(h[:2] for h in history.leases)]:
      newest[island] = max(incarnation, newest.get(island, 0))
    for island, incarnation in newest.items():
      self._members.expect(island, incarnation, now)
    self._pool = SamplePool(
      [i for _, window in windows for i in _intervals(window)],
      {
        holder: intervals
        for holder, intervals in history.leases.items()
        if newest[holder.island] == holder.incarnation
      },
    )
    self._base_states: dict[str, bytes] = {}  # of open proposals
    self._donor = ""  # asked for its state
    self._donors_asked = 0
    self._stateless: set[str] = set()  # islands that wait for a state
    self._departures: list[_Departure] = []  # not settled yet
    self._stopped = False
    self._attempts = 0  # in this term
    self._forgive_at = now  # when broken pairs may try again
    self._window_seconds: collections.deque[float] = collections.deque(
      maxlen=_WINDOWS_REMEMBERED
    )
    self._proposed_after: dict[str, float] = {}  # seconds, in the open round
    self._committed_at = now
    self._ticked_at = now
    self._actions: list[Action] = []

  # ------------------------------------------------------------ questions

  @property
  def head(self) -> pb.Record:
    """The newest record; an empty one before the run has a state."""
    return self._records[-1] if self._records else pb.Record()

  @property
  def final(self) -> bool:
    return self.head.final

  def done(self) -> bool:
    """Whether the run is over and every island has left or is gone."""
    states = [m.state for m in self._members.members.values()]
    return self.final and not {State.IN, State.JOINING} & set(states)

  def status(self, now: float) -> pb.Status:
    """What an operator sees."""
    open_tokens = 0
    status = pb.Status(
      run_id=self.run_id,
      term=self.term,
      record=self.head.number,
      total_tokens=self.head.total_tokens,
      run_tokens=self.run.tokens,
      final=self.final,
      phase=self._phase(),
      losses=self.losses,
      tokens_lost=sum(loss.tokens for loss in self.losses),
    )
    for member in self._members.members.values():
      if member.state in (State.IN, State.JOINING):
        open_tokens += self._uncommitted(member)
      status.islands.add(
        island=member.island,
        incarnation=member.incarnation,
        place=member.place,
        state=member.state.value,
        silent_seconds=max(0.0, now - member.heard),
        heartbeat=member.heartbeat,
        state_hash=member.state_hash,
        state_record=member.state_record,
      )
    status.tokens_trained = (
      status.total_tokens + status.tokens_lost + open_tokens
    )
    for record, loss in sorted(self.evaluations.items()):
      status.evaluations.add(record=record, loss=loss)
    return status

  def _phase(self) -> str:
    if self.final:
      return "finished"
    missing = self.run.elastic.start_islands - len(self._members.inside())
    if self.head.number == 0 and missing > 0:
      return f"waiting for {missing} more of start_islands"
    return self._round.describe(self._late())

  # --------------------------------------------------------------- events

  def handle(
    self, session: int, message: pb.FromIsland, now: float
  ) -> list[Action]:
    """Takes one message of an island's control stream."""
    if self._stopped:
      return []
    kind = message.WhichOneof("message")
    if kind == "hello" and (reason := self._refusal(message.hello, now)):
      self._to(session, pb.ToIsland(refusal=pb.Refusal(reason=reason)))
      self._actions.append(Close(session))
      return self._taken()
    member = self._members.by_session(session)
    if kind != "hello" and member is None:  # fenced: a newer one is in
      return []
    if message.term > self.term:
      self._stopped = True
      self._actions.append(
        Stop(
          f"an island has seen term {message.term}, and this"
          f" coordinator's is {self.term}: a newer one is at work"
        )
      )
      return self._taken()
    if member is None or kind == "hello":
      self._hello(session, message.hello, now)
      return self._taken()
    self._members.renew(member, now)
    if kind is not None:
      getattr(self, f"_{kind}")(member, getattr(message, kind), now)
    return self._taken()

  def disconnected(self, session: int, now: float) -> list[Action]:
    """A control stream broke: its island leaves the attempt at once."""
    member = self._members.by_session(session)
    if member is not None:
      member.session = None
      self._unreachable(member, now)
    return self._taken()

  def tick(self, now: float) -> list[Action]:
    """Lets time pass: leases run out, a deadline comes."""
    if self._stopped:
      return []
    lease = self.run.elastic.lease_seconds
    if now - self._ticked_at > lease / 2:  # this process was frozen
      self._members.renew_all(now)
    self._ticked_at = now
    for member in self._members.expired(now):
      self._depart(member, f"not heard of for {lease:g} s, and evicted")
      if member.session is not None:
        self._actions.append(Close(member.session))
        member.session = None
      self._unreachable(member, now)
    self._find_donor()
    self._try_to_plan(now)
    self._finish_without_the_late(now)
    return self._taken()

  def _taken(self) -> list[Action]:
    self._settle_departures()
    actions, self._actions = self._actions, []
    return actions

  # ----------------------------------------------------------- membership

  def _hello(self, session: int, hello: pb.Hello, now: float) -> None:
    if self.final and not hello.has_state:
      finished = pb.Finished(reason="the run has all its tokens")
      self._to(session, pb.ToIsland(finished=finished))
      self._actions.append(Close(session))
      return
    previous = self._members.members.get(hello.island)
    if previous is not None and previous.session not in (None, session):
      self._actions.append(Close(previous.session))
    member, replaced, evicted = self._members.admit(hello, session, now)
    if replaced is not None:
      self._depart(replaced, "its process was replaced by a newer one")
      self._unreachable(replaced, now)
    if self._donor == member.island:
      self._donor = ""  # it may not have heard that it was asked
    welcome = pb.Welcome(
      run_id=self.run_id,
      evicted=evicted,
      start=self._start(member, hello, now),
      head=self.head.number,
    )
    self._to(session, pb.ToIsland(welcome=welcome))
    self._say(self._round.again(member.island))
    self._find_donor()

  def _start(self, member: Member, hello: pb.Hello, now: float):
    """How a newcomer gets to the run's state."""
    if hello.alone:
      if not self._on_chain(hello) and hello.has_state:
        return pb.Welcome.START_RESTORE
      if hello.record < self.head.number:
        self._annul(hello.record, "its island went back to a checkpoint", now)
      if not hello.has_state:
        return pb.Welcome.START_INITIALISE
      return pb.Welcome.START_GO_ON
    self._stateless.discard(member.island)
    if hello.has_state and self._on_chain(hello):
      member.record = hello.record
      return pb.Welcome.START_GO_ON
    member.state = State.JOINING
    if self._initialiser() in (None, member):
      return pb.Welcome.START_INITIALISE
    self._stateless.add(member.island)
    return pb.Welcome.START_RESTORE

  def _refusal(self, hello: pb.Hello, now: float) -> str:
    if hello.protocol != rpc.PROTOCOL_VERSION:
      return (
        f"This island speaks protocol {hello.protocol}, the coordinator"
        f" {rpc.PROTOCOL_VERSION}. Run the same version of intellect_jax."
      )
    if hello.run_digest != self.digest:
      return (
        f"The run half of this island's config has digest"
        f" {hello.run_digest[:12]}, the coordinator's {self.digest[:12]}."
        " Start the island without --config: it gets the run half from the"
        " coordinator."
      )
    if hello.run_id and hello.run_id != self.run_id:
      return (
        f"This workdir belongs to run {hello.run_id}, the coordinator leads"
        f" run {self.run_id}. Start the island with another --workdir."
      )
    return self._members.refusal(hello, now)

  def _on_chain(self, hello: pb.Hello) -> bool:
    return (
      hello.record < len(self.log)
      and self.log[hello.record].hash == hello.record_hash
    )

  def _initialiser(self) -> Member | None:
    """Who has the initial state or was told to make it; None: nobody."""
    for member in self._members.members.values():
      told = member.session is not None and member.island not in self._stateless
      if told or member.state is State.IN or self.head.number > 0:
        return member
    return None

  def _ready(self, member: Member, ready: pb.Ready, now: float) -> None:
    if ready.record >= len(self._records):
      return
    member.state = State.IN
    member.record = max(member.record, ready.record)
    self._stateless.discard(member.island)
    self._try_to_plan(now)

  def _heartbeat(
    self, member: Member, heartbeat: pb.Heartbeat, now: float
  ) -> None:
    member.heartbeat = heartbeat
    for evaluation in heartbeat.evaluations:
      if evaluation.record not in self.evaluations:
        self.evaluations[evaluation.record] = evaluation.loss
        save = SaveEvaluation(evaluation.record, evaluation.loss)
        self._actions.append(save)

  def _leave(self, member: Member, leave: pb.Leave, now: float) -> None:
    self._depart(member, leave.reason)
    member.state = State.LEFT
    self._unreachable(member, now)

  def _dropped(self, member: Member, dropped: pb.Dropped, now: float) -> None:
    if self._round.uses(member.island, member.incarnation):
      return  # the record decides
    tokens = 0
    holders = []
    for window in dropped.windows:
      holder = Holder(member.island, member.incarnation, window.number)
      if holder in self._pool.leased:  # not said before
        holders.append(holder)
        tokens += window.tokens
    self._round.proposals.pop(member.island, None)
    self._lose(
      member.island, member.incarnation, tokens, dropped.cause, holders
    )

  def _depart(self, member: Member, cause: str) -> None:
    """An incarnation is out; settled once no attempt can use its work."""
    leases = self._pool.held_by(member.island, member.incarnation)
    trained = member.heartbeat.tokens_trained
    self._departures.append(_Departure(member, cause, trained, leases))

  def _settle_departures(self) -> None:
    """What was trained and not committed is lost; leases come back."""
    waiting = []
    for departure in self._departures:
      member = departure.member
      if self._round.uses(member.island, member.incarnation):
        waiting.append(departure)
        continue
      self._lose(
        member.island,
        member.incarnation,
        departure.trained - self._settled(member),
        departure.cause,
        [h for h in departure.leases if h in self._pool.leased],
      )
    self._departures = waiting

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
      self._pool.consume(holder, [])
    loss = None
    if tokens > 0:
      loss = pb.Loss(
        island=island, incarnation=incarnation, tokens=tokens, cause=cause
      )
      self.losses.append(loss)
    if holders or loss is not None:
      self._actions.append(EndLeases(list(holders), loss))

  def _uncommitted(self, member: Member) -> int:
    return max(0, member.heartbeat.tokens_trained - self._settled(member))

  def _settled(self, member: Member) -> int:
    """Tokens of an incarnation that are committed or lost."""
    lost = sum(
      loss.tokens
      for loss in self.losses
      if (loss.island, loss.incarnation) == (member.island, member.incarnation)
    )
    return lost + self._committed[member.island, member.incarnation]

  def _unreachable(self, member: Member, now: float) -> None:
    """A member cannot be heard: the attempt goes on without it, or anew."""
    self._base_states.pop(member.island, None)
    if self._donor == member.island:
      self._donor = ""
    if member.session is None:
      self._stateless.discard(member.island)  # it says so again
    self._find_donor()
    self._find_initialiser()
    if self._round.gone(member.island):
      self._round.abandon()
    self._try_to_commit(now)
    self._try_to_plan(now)

  # ------------------------------------------------------ state transfers

  def _state_ready(
    self, member: Member, ready: pb.StateReady, now: float
  ) -> None:
    if not self._records:
      genesis = pb.Genesis(state=ready.state.id)
      self._append(pb.Record(genesis=genesis, islands=1), now)
    elif ready.record == 0 and ready.state.id != self._records[0].genesis.state:
      self._refuse(member, "its initial state differs from the run's")
      return
    member.state_record, member.state_hash = ready.record, ready.state.id
    if not ready.state.parts:
      return
    self._donor = ""
    restore = pb.ToIsland(
      restore=pb.Restore(record=ready.record, state=ready.state)
    )
    for island in sorted(self._stateless):
      self._to_member(island, restore)
    self._stateless.clear()  # who cannot fetch it says so

  def _find_initialiser(self) -> None:
    """Who was to make record 0 is gone: the next one in line makes it."""
    if self._stateless and self._initialiser() is None:
      island = min(self._stateless)
      self._stateless.discard(island)
      start = pb.Welcome.START_INITIALISE
      welcome = pb.Welcome(run_id=self.run_id, start=start)
      self._to_member(island, pb.ToIsland(welcome=welcome))

  def _find_donor(self) -> None:
    """Asks one member for its state, if somebody waits for one."""
    if self._donor or not self._stateless:
      return
    donors = sorted(self._members.reachable())
    if donors:
      self._donor = donors[self._donors_asked % len(donors)]
      self._donors_asked += 1
      self._to_member(self._donor, pb.ToIsland(offer_state=pb.OfferState()))

  def _refuse(self, member: Member, reason: str) -> None:
    if member.session is not None:
      self._to(member.session, pb.ToIsland(refusal=pb.Refusal(reason=reason)))
      self._actions.append(Close(member.session))

  # ---------------------------------------------------------- data leases

  def _lease_request(
    self, member: Member, request: pb.LeaseRequest, now: float
  ) -> None:
    holder = Holder(member.island, member.incarnation, request.window)
    known = holder in self._pool.leased
    samples = self._pool.lease(holder, request.samples)
    if not known:
      self._actions.append(SaveLease(holder, samples))
    grant = pb.LeaseGrant(window=request.window)
    for start, stop in samples:
      grant.samples.add(start=start, stop=stop)
    self._to_member(member.island, pb.ToIsland(lease_grant=grant))

  # --------------------------------------------------------------- rounds

  def _proposal(
    self, member: Member, proposal: pb.Proposal, now: float
  ) -> None:
    if proposal.base != self.head.number or member.state is not State.IN:
      return  # it has not heard of the newest record; the record is on its way
    if self.final:
      return
    for window in proposal.windows:
      holder = Holder(member.island, member.incarnation, window.number)
      if not self._pool.holds(holder, _intervals(window)):
        self._void_windows(member)
        return
    refusal = self._round.propose(member.island, member.incarnation, proposal)
    if refusal:
      self._refuse(member, f"its proposal was refused: {refusal}")
      return
    self._proposed_after[member.island] = now - self._committed_at
    self._base_states[member.island] = proposal.base_state
    self._try_to_plan(now)

  def _void_windows(self, member: Member) -> None:
    """It was evicted before a restart of this coordinator, and not told."""
    self._depart(member, "its leases had ended")
    welcome = pb.Welcome(
      run_id=self.run_id,
      evicted=True,
      start=pb.Welcome.START_GO_ON,
      head=self.head.number,
    )
    self._to_member(member.island, pb.ToIsland(welcome=welcome))

  def _late(self) -> list[str]:
    """Members that have not proposed."""
    inside = {m.island for m in self._members.inside()}
    return sorted(inside - set(self._round.proposals))

  def _deadline(self) -> float:
    """When the round is planned without those who are late."""
    elastic = self.run.elastic
    if not elastic.deadline or not self._window_seconds:
      return float("inf")
    seconds = list(self._window_seconds)
    median = statistics.median(seconds)
    mad = statistics.median([abs(s - median) for s in seconds])
    slack = elastic.deadline_deviations * _MAD_TO_SIGMA * mad
    return self._committed_at + min(
      max(elastic.deadline_ratio * median, median + slack),
      median + elastic.deadline_cap,
    )

  def _try_to_plan(self, now: float) -> None:
    """Starts an attempt, if none is open and all that must be there are."""
    elastic = self.run.elastic
    if self._round.plan is not None or self.final or not self._records:
      return
    if (
      self.head.number == 0
      and len(self._members.inside()) < elastic.start_islands
    ):
      return
    late = self._late() and not self._round.planned
    if late and now < self._deadline():
      return
    self._drop_diverged()
    ready = set(self._round.proposals) & self._members.reachable()
    if len(ready) < elastic.min_islands:
      return
    members = ready - self._round.left_out()
    if len(members) < elastic.min_islands:  # void; all of it is carried
      if now < self._forgive_at:
        return
      self._round.forgive()
      members = ready
    self._attempts += 1
    number = self.head.number + 1
    self._say(
      self._round.start(number, sorted(members), self.term, self._attempts)
    )

  def _drop_diverged(self) -> None:
    """Leaves out members whose state is not that of the majority."""
    hashes = collections.Counter(self._base_states.values())
    if len(hashes) < 2:
      return
    (common, votes), (_, next_votes) = hashes.most_common(2)
    for island, state in list(self._base_states.items()):
      if state != common or votes == next_votes:
        self._round.proposals.pop(island, None)
        del self._base_states[island]
        self._refuse(
          self._members.members[island],
          f"its state at record {self.head.number} differs from the others'."
          " Start it again with an empty workdir: it will fetch theirs",
        )

  def _share_reduced(
    self, member: Member, report: pb.ShareReduced, now: float
  ) -> None:
    outgoing = self._round.share_reduced(member.island, report)
    if not outgoing:
      return
    liars = self._round.liars()
    for island in liars:
      self._round.proposals.pop(island, None)
      self._refuse(
        self._members.members[island],
        "the norm of its delta is not what it claimed",
      )
    if liars:
      self._round.abandon()
      self._try_to_plan(now)
    else:
      self._say(outgoing)

  def _prepared(
    self, member: Member, prepared: pb.Prepared, now: float
  ) -> None:
    self._round.prepared(member.island, prepared.attempt)
    self._try_to_commit(now)

  def _fetch_failed(
    self, member: Member, report: pb.FetchFailed, now: float
  ) -> None:
    if not report.attempt:  # a state, not a delta: ask somebody else
      self._stateless.add(member.island)
      self._find_donor()
    elif self._round.fetch_failed(member.island, report):
      self._forgive_at = now + self.run.elastic.fetch_patience
      self._round.abandon()
      self._try_to_plan(now)

  def _try_to_commit(self, now: float) -> None:
    """Writes the record, once every member that still lives is prepared."""
    plan = self._round.plan
    if plan is None or not self._round.complete():
      return
    outer = self.run.outer
    step = pb.OuterStep(
      attempt=plan.attempt,
      fragment=plan.fragment,
      base=plan.base,
      shares=plan.shares,
      codec=outer.codec,
      learning_rate=np.float32(outer.learning_rate),
      momentum=np.float32(outer.momentum),
      base_state=next(iter(self._base_states.values()), b""),
    )
    tokens = 0
    for member in plan.members:
      step.members.add().CopyFrom(member)
      step.members[-1].ClearField("delta")
      tokens += sum(window.tokens for window in member.windows)
      for window in member.windows:
        holder = Holder(member.island, member.incarnation, window.number)
        self._pool.consume(holder, _intervals(window))
        self._committed[holder[:2]] += window.tokens
    record = pb.Record(step=step, total_tokens=self.head.total_tokens + tokens)
    for island in self._round.holders():
      self._members.members[island].record = self.head.number + 1
    self._window_seconds.extend(self._proposed_after.values())
    self._open_round()
    self._append(record, now)

  def _open_round(self) -> None:
    self._round = CoordinatorRound(self._block_bytes)
    self._base_states.clear()
    self._proposed_after.clear()

  def _annul(self, to: int, reason: str, now: float) -> None:
    """Takes back the records after `to`; their samples are free again."""
    windows = committed_windows(self._records)
    tokens = self._records[to].total_tokens
    self._open_round()
    self._append(
      pb.Record(
        annulment=pb.Annulment(to=to, reason=reason), total_tokens=tokens
      ),
      now,
    )
    kept = {holder for holder, _ in committed_windows(self._records)}
    for holder, window in windows:
      if holder not in kept:
        self._pool.annul(_intervals(window))
        self._committed[holder[:2]] -= window.tokens
        self._lose(holder.island, holder.incarnation, window.tokens, reason)

  def _append(self, record: pb.Record, now: float) -> None:
    """Completes a record, makes it durable, then announces it."""
    record.number = len(self.log)
    record.term = self.term
    record.previous = self.log[-1].hash if self.log else b""
    record.islands = max(1, len(self._members.inside()))
    record.final = record.total_tokens >= self.run.tokens
    body = record.SerializeToString(deterministic=True)
    sealed = pb.SealedRecord(body=body, hash=blake3(body).digest())
    self.log.append(sealed)
    self._records.append(record)
    self._actions.append(Append(record, sealed))
    self._committed_at = now
    announced = pb.SealedRecord()
    announced.CopyFrom(sealed)
    announced.holders.extend(self.holders())
    for member in self._members.members.values():
      if member.session is not None:
        self._to(member.session, pb.ToIsland(record=announced))

  def _finish_without_the_late(self, now: float) -> None:
    """Who has the final state has left: nobody can catch up any more."""
    waited = now - self._committed_at > self.run.elastic.lease_seconds
    if not self.final or not waited:
      return
    late = [
      member
      for member in self._members.members.values()
      if member.state in (State.IN, State.JOINING)
    ]
    if any(member.record == self.head.number for member in late):
      return
    finished = pb.Finished(reason="the run ended while this island was away")
    for member in late:
      self._to_member(member.island, pb.ToIsland(finished=finished))
      self._depart(member, "the run ended while it was away")
      member.state = State.LEFT

  def holders(self) -> list[str]:
    """Addresses where the means of recent records are served."""
    return [
      address
      for member in self._members.inside()
      if member.session is not None
      for address in member.addresses
    ]

  # -------------------------------------------------------------- sending

  def _to(self, session: int, message: pb.ToIsland) -> None:
    addressed = pb.ToIsland(term=self.term)
    addressed.MergeFrom(message)
    self._actions.append(Send(session, addressed))

  def _to_member(self, island: str, message: pb.ToIsland) -> None:
    member = self._members.members.get(island)
    if member is not None and member.session is not None:
      self._to(member.session, message)

  def _say(self, outgoing: Outgoing) -> None:
    for island, message in outgoing:
      self._to_member(island, message)


def effective(records: list[pb.Record]) -> list[pb.Record]:
  """The records that count, in order: annulled ones and annulments left out."""
  kept: list[pb.Record] = []
  for record in records:
    if record.HasField("annulment"):
      kept = [r for r in kept if r.number <= record.annulment.to]
    else:
      kept.append(record)
  return kept


def committed_windows(
  records: list[pb.Record],
) -> list[tuple[Holder, pb.Window]]:
  """The windows in records that count, and whose they were."""
  return [
    (Holder(member.island, member.incarnation, window.number), window)
    for record in effective(records)
    for member in record.step.members
    for window in member.windows
  ]


def _intervals(window: pb.Window) -> list[Interval]:
  return [(i.start, i.stop) for i in window.samples]
