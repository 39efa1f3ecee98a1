"""The coordinator's state machine: messages in, actions out. No I/O.

It knows who is in, which round is open and who committed what. It moves no
tensors and computes no updates. The shell around it is `service.py`; the clock
is the argument `now`, in seconds of any monotonic clock.
"""

import collections
from collections.abc import Sequence
import dataclasses
import statistics

from ml_collections import ConfigDict
import numpy as np

from intellect_jax import config as config_lib
from intellect_jax.elastic import chain, rpc
from intellect_jax.elastic.membership import Member, Membership, State
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.round import CoordinatorRound, Outgoing
from intellect_jax.elastic.samples import (
  Holder,
  Interval,
  SamplePool,
  merge,
  subtract,
)
from intellect_jax.elastic.steering import Steering, with_values
from intellect_jax.errors import UserError
from intellect_jax.outer.codec import make_codec

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_WINDOWS_REMEMBERED = 64
_HAND_IN_TICK = 0.2  # seconds that a word may need to get there
_HAND_IN_SLACK = 1.25  # x what an island needs from a word to a proposal


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
class SaveLosses:
  """All losses anew: some were none."""

  losses: list[pb.Loss]


@dataclasses.dataclass(frozen=True)
class SaveEvaluation:
  record: int
  loss: float  # nats a token


@dataclasses.dataclass(frozen=True)
class Stop:
  """Another coordinator has taken over."""

  reason: str


@dataclasses.dataclass(frozen=True)
class Warn:
  """Tell the operator, loudly."""

  text: str


Action = (
  Send
  | Close
  | Append
  | SaveLease
  | EndLeases
  | SaveLosses
  | SaveEvaluation
  | Stop
  | Warn
)


@dataclasses.dataclass
class History:
  """What a coordinator remembers from before it was started."""

  run_id: str
  term: int
  log: list[pb.SealedRecord] = dataclasses.field(default_factory=list)
  leases: dict[Holder, list[Interval]] = dataclasses.field(default_factory=dict)
  losses: list[pb.Loss] = dataclasses.field(default_factory=list)
  evaluations: dict[int, float] = dataclasses.field(default_factory=dict)
  recovered: bool = False  # from the islands: leases are theirs to tell


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
    self._started_run = run  # as it was before anyone changed a setting
    self.run_id = history.run_id
    self.term = history.term
    self.digest = config_lib.digest(run)
    self.log = list(history.log)  # record v at index v
    self.losses = list(history.losses)
    self.evaluations = dict(history.evaluations)
    self._recovered = history.recovered
    self._records = [pb.Record.FromString(s.body) for s in self.log]
    self._effective = chain.effective(self._records)
    self.run = run
    self._members = Membership(run.elastic.lease_seconds)
    self._block_bytes = make_codec(run.outer.codec).block_bytes
    self._round = CoordinatorRound(self._block_bytes)
    # Who took part or was training when the last coordinator ended is given
    # a lease to come back; what older processes had leased is free.
    newest: dict[str, int] = {}
    last = self._last_step().step.members
    members = [(m.island, m.incarnation) for m in last]
    for island, incarnation in [*members, *(h[:2] for h in history.leases)]:
      newest[island] = max(incarnation, newest.get(island, 0))
    for island, incarnation in newest.items():
      self._members.expect(island, incarnation, now)
    self._committed: collections.Counter[tuple[str, int]]  # tokens
    self._read_chain(
      {
        holder: intervals
        for holder, intervals in history.leases.items()
        if newest[holder.island] == holder.incarnation
      }
    )
    self._base_states: dict[str, bytes] = {}  # of open proposals
    # Sessions of islands that have newer records: (hello, was it evicted).
    self._asking: dict[int, tuple[pb.Hello, bool]] = {}
    self._met: set[str] = set()  # islands that were here in this term
    self._agreed = (-1, b"")  # record, and the hash of most members' state
    self._donor = ""  # asked for its state
    self._donor_asked_at = now
    self._donors_asked = 0
    self._stateless: set[str] = set()  # islands that wait for a state
    self._told_to_wait: set[str] = set()  # of those: their own is of no use
    self._departures: list[_Departure] = []  # not settled yet
    self._stopped = False
    self._attempts = 0  # in this term
    self._forgive_at = now  # when broken pairs may try again
    self._window_seconds: collections.deque[float] = collections.deque(
      maxlen=_WINDOWS_REMEMBERED
    )
    self._proposed_after: dict[str, float] = {}  # seconds, in the open round
    self._closing_told: set[str] = set()  # of the open round
    self._committed_at = now
    self._enough_at = now  # half of the last members were there
    self._held_at = now  # somebody had the newest mean
    self._ticked_at = now
    self._actions: list[Action] = []

  def _read_chain(self, leases: dict[Holder, list[Interval]]) -> None:
    """Takes from the records what they say: tokens, samples, settings."""
    windows = chain.committed_windows(self._effective)
    self._committed = collections.Counter()
    for holder, window in windows:
      self._committed[holder[:2]] += window.tokens
    used = merge(i for _, window in windows for i in chain.intervals(window))
    free = {
      h: i for h, i in leases.items() if not subtract(i, subtract(i, used))
    }
    self._pool = SamplePool(used, free)
    self._read_settings()

  def _read_settings(self) -> None:
    self._steering = Steering.of(self._effective)
    self.run = self._steering.run_at(self._started_run, len(self._records))
    self._members.lease_seconds = self.run.elastic.lease_seconds

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
      warnings=self._warnings(now),
      paused=bool(self._steering.paused),
      settings=self._steering.changed(len(self._records)),
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
    if self._steering.paused:
      return f"paused: {self._steering.paused}"
    missing = self.run.elastic.start_islands - len(self._members.inside())
    if self.head.number == 0 and missing > 0:
      return f"waiting for {missing} more of start_islands"
    return self._round.describe(self._late())

  def _warnings(self, now: float) -> list[str]:
    """What keeps the run from going on as it should."""
    warnings = []
    there, half = len(self._members.reachable()), self._half()
    if there < half and not self.final:
      patience = self.run.elastic.minority_patience
      left = self._enough_at + patience - now
      warnings.append(
        f"{there} islands are here, and {half} are half of those that made"
        f" record {self._last_step().number}: "
        + (
          f"waiting {left:.0f} s for others, who may be going on elsewhere"
          if left > 0
          else "going on without them, by run.elastic.min_islands"
        )
      )
    needed = chain.newest_state(self._effective).number
    if self._records and not self._holders_of(needed) and not self.final:
      warnings.append(
        f"no island here has the state of record {needed}; annulled after"
        f" {self.run.elastic.annul_patience:g} s"
      )
    return warnings

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
    known = kind != "hello" or message.hello.island in self._met
    if message.term > self.term - (not known):
      self._stopped = True
      self._actions.append(
        Stop(
          f"an island has seen term {message.term}, and this coordinator's is"
          f" {self.term}: another one is or was at work; if this one's ledger"
          " is an old copy, start it with --recover"
        )
      )
      return self._taken()
    if member is None or kind == "hello":
      self._hello(session, message.hello, now)
      return self._taken()
    if session in self._asking and kind not in ("records", "heartbeat"):
      return self._taken()  # of before its welcome: it says so again
    self._members.renew(member, now)
    if kind is not None:
      getattr(self, f"_on_{kind}")(member, getattr(message, kind), now)
    return self._taken()

  def disconnected(self, session: int, now: float) -> list[Action]:
    """A control stream broke: its island leaves the attempt at once."""
    member = self._members.by_session(session)
    self._asking.pop(session, None)
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
      self._evict(member, f"not heard of for {lease:g} s, and evicted", now)
    hang = self.run.elastic.hang_seconds
    for member in self._members.hung(now, hang):
      self._evict(member, f"no inner step in {hang:g} s, and evicted", now)
    self._watch_donor(now)
    self._find_donor(now)
    self._count_who_is_there(now)
    self._annul_what_nobody_has(now)
    self._announce_closing(now)
    self._try_to_plan(now)
    self._finish_without_the_late(now)
    return self._taken()

  def _evict(self, member: Member, cause: str, now: float) -> None:
    self._depart(member, cause)
    if member.session is not None:
      self._actions.append(Close(member.session))
      self._asking.pop(member.session, None)
      member.session = None
    self._unreachable(member, now)

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
    self._met.add(hello.island)
    member, replaced, evicted = self._members.admit(hello, session, now)
    if replaced is not None:
      self._depart(replaced, "its process was replaced by a newer one")
      self._unreachable(replaced, now)
    self._correct_losses()
    if evicted:
      self._depart(member, "trained while it was evicted")
    elif self._recovered:
      self._take_over_leases(member, hello)
    if self._donor == member.island:
      self._donor = ""  # it may not have heard that it was asked
    newest = max(hello.head, hello.record) if hello.has_state else 0
    if self.log and newest >= len(self.log) and not hello.alone:
      self._asking[session] = hello, evicted
      ask = pb.AskRecords(start=len(self.log))
      self._to(session, pb.ToIsland(ask_records=ask))
    else:
      self._welcome(member, session, hello, evicted, now)

  def _on_records(self, member: Member, sent: pb.Records, now: float) -> None:
    """Takes over records that this coordinator's disk has lost."""
    if member.session not in self._asking:
      return
    last = self.log[-1] if self.log else None
    found = chain.continuation(last, sent.records)
    if found and found[-1][0].term >= self.term:
      self._stopped = True
      reason = f"{member.island} has records of a term that is not over"
      mend = "the ledger is an old copy; start again with --recover"
      self._actions.append(Stop(f"{reason}: {mend}"))
      return
    if found:
      self._open_round()
      for record, sealed in found:
        self._keep(record, sealed, now)
        self._announce(sealed)
      self._read_chain(self._pool.leased)
      self._correct_losses()
      what = f"records up to {self.head.number} from {member.island}"
      self._actions.append(Warn(f"took over {what}: the ledger lacked them"))
      if found[-1][0].number + 1 < sent.end:
        ask = pb.AskRecords(start=len(self.log))
        self._to_member(member.island, pb.ToIsland(ask_records=ask))
        return
    hello, evicted = self._asking.pop(member.session)
    self._welcome(member, member.session, hello, evicted, now)

  def _correct_losses(self) -> None:
    """What had been counted as lost may be in records taken over."""
    corrected = False
    for member in self._members.members.values():
      excess = self._settled(member) - member.heartbeat.tokens_trained
      if member.session is None:
        continue  # its own count is not known; it says so in its hello
      for loss in reversed(self.losses):
        who = loss.island, loss.incarnation
        if who == (member.island, member.incarnation) and excess > 0:
          found = min(excess, loss.tokens)
          loss.tokens -= found
          excess -= found
          corrected = True
    if corrected:
      self._actions.append(SaveLosses(list(self.losses)))

  def _take_over_leases(self, member: Member, hello: pb.Hello) -> None:
    """The ledger was lost: islands know what was leased to them."""
    for grant in hello.leases:
      holder = Holder(member.island, member.incarnation, grant.window)
      samples = chain.intervals(grant)
      if holder not in self._pool.leased and self._pool.claim(holder, samples):
        self._actions.append(SaveLease(holder, samples))

  def _welcome(
    self,
    member: Member,
    session: int,
    hello: pb.Hello,
    evicted: bool,
    now: float,
  ) -> None:
    start = self._start(member, hello, now)
    if start == pb.Welcome.START_RESTORE and hello.has_state:
      self._depart(member, "its records are not those of the run")
      evicted = True
    if start == pb.Welcome.START_RESTORE:
      self._told_to_wait.add(member.island)
    else:
      self._told_to_wait.discard(member.island)
    welcome = pb.Welcome(
      run_id=self.run_id, evicted=evicted, start=start, head=self.head.number
    )
    self._to(session, pb.ToIsland(welcome=welcome))
    self._say(self._round.again(member.island))
    self._find_donor(now)

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
      member.record = self._counting(hello.record)
      return pb.Welcome.START_GO_ON
    member.state = State.JOINING
    if not self.head.number and self._initialiser() in (None, member):
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
    if (hello.island, hello.incarnation) in self._steering.evicted:
      return (
        f"An operator evicted this process of island {hello.island!r}. Start"
        " it again when what was wrong with it is mended."
      )
    return self._members.refusal(hello, now)

  def _on_chain(self, hello: pb.Hello) -> bool:
    return (
      hello.record < len(self.log)
      and self.log[hello.record].hash == hello.record_hash
    )

  def _counting(self, record: int) -> int:
    """The record, or -1 if it does not count: it is annulled, or unknown."""
    return record if any(r.number == record for r in self._effective) else -1

  def _initialiser(self) -> Member | None:
    """Who has the initial state or was told to make it; None: nobody."""
    for member in self._members.members.values():
      told = member.session is not None and member.island not in self._stateless
      if told or member.state is State.IN or self.head.number > 0:
        return member
    return None

  def _on_ready(self, member: Member, ready: pb.Ready, now: float) -> None:
    if ready.record >= len(self._records):
      return
    if member.island in self._told_to_wait:
      return  # said before it heard that
    if not member.hung:
      member.state = State.IN
    member.record = max(member.record, self._counting(ready.record))
    self._stateless.discard(member.island)
    self._try_to_plan(now)

  def _on_heartbeat(
    self, member: Member, heartbeat: pb.Heartbeat, now: float
  ) -> None:
    trained = max(heartbeat.tokens_trained, member.heartbeat.tokens_trained)
    self._members.note(member, heartbeat, now)
    member.heartbeat.tokens_trained = trained
    if heartbeat.record > member.record:
      member.record = max(member.record, self._counting(heartbeat.record))
    for evaluation in heartbeat.evaluations:
      if evaluation.record not in self.evaluations:
        self.evaluations[evaluation.record] = evaluation.loss
        save = SaveEvaluation(evaluation.record, evaluation.loss)
        self._actions.append(save)

  def _on_leave(self, member: Member, leave: pb.Leave, now: float) -> None:
    self._depart(member, leave.reason)
    member.state = State.LEFT
    self._unreachable(member, now)

  def _on_dropped(
    self, member: Member, dropped: pb.Dropped, now: float
  ) -> None:
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
      self._told_to_wait.discard(member.island)
    self._find_donor(now)
    self._find_initialiser()
    if self._round.gone(member.island):
      self._round.abandon()
    self._try_to_commit(now)
    self._try_to_plan(now)

  # ------------------------------------------------------ state transfers

  def _on_state_ready(
    self, member: Member, ready: pb.StateReady, now: float
  ) -> None:
    if not self._records:
      genesis = pb.Genesis(state=ready.state.id)
      self._append(pb.Record(genesis=genesis, islands=1), now)
    elif ready.record == 0 and ready.state.id != self._records[0].genesis.state:
      self._refuse(member, "its initial state differs from the run's")
      return
    member.state_record, member.state_hash = ready.record, ready.state.id
    if ready.record == self._agreed[0] and ready.state.id != self._agreed[1]:
      self._donor = ""
      self._repair(member, now)
      return
    if not ready.state.parts:
      return
    self._donor = ""
    restore = pb.ToIsland(
      restore=pb.Restore(record=ready.record, state=ready.state)
    )
    for island in sorted(self._stateless):
      self._to_member(island, restore)
    self._told_to_wait -= self._stateless
    self._stateless.clear()  # who cannot fetch it says so

  def _find_initialiser(self) -> None:
    """Who was to make record 0 is gone: the next one in line makes it."""
    if self._stateless and self._initialiser() is None:
      island = min(self._stateless)
      self._stateless.discard(island)
      self._told_to_wait.discard(island)
      start = pb.Welcome.START_INITIALISE
      welcome = pb.Welcome(run_id=self.run_id, start=start)
      self._to_member(island, pb.ToIsland(welcome=welcome))

  def _watch_donor(self, now: float) -> None:
    """A donor that takes too long is one no more; the next is asked."""
    patience = self.run.elastic.offer_patience
    if self._donor and now - self._donor_asked_at > patience:
      self._donor = ""

  def _find_donor(self, now: float) -> None:
    """Asks one member for its state, if somebody waits for one."""
    if self._donor or not self._stateless:
      return
    donors = sorted(self._members.reachable() - self._stateless)
    if donors:
      self._donor_asked_at = now
      self._donor = donors[self._donors_asked % len(donors)]
      self._donors_asked += 1
      self._to_member(self._donor, pb.ToIsland(offer_state=pb.OfferState()))

  def _refuse(self, member: Member, reason: str) -> None:
    if member.session is not None:
      self._to(member.session, pb.ToIsland(refusal=pb.Refusal(reason=reason)))
      self._actions.append(Close(member.session))

  # ---------------------------------------------------------- data leases

  def _on_lease_request(
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

  def _on_proposal(
    self, member: Member, proposal: pb.Proposal, now: float
  ) -> None:
    if proposal.base != self.head.number or self.final:
      return  # it has not heard of the newest record; the record is on its way
    if member.island in self._told_to_wait:
      return
    if member.state not in (State.JOINING, State.IN):
      return
    beat = member.heartbeat  # may be older than the proposal
    beat.tokens_trained = max(beat.tokens_trained, proposal.tokens_trained)
    for window in proposal.windows:
      holder = Holder(member.island, member.incarnation, window.number)
      if not self._pool.holds(holder, chain.intervals(window)):
        self._void_windows(member)
        return
    known = self._settled(member) + sum(w.tokens for w in proposal.windows)
    beat.tokens_trained = max(beat.tokens_trained, known)
    member.state, member.hung = State.IN, False
    self._stateless.discard(member.island)
    member.record = max(member.record, proposal.base)
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
    if self._steering.paused:
      return
    if (
      self.head.number == 0
      and len(self._members.inside()) < elastic.start_islands
    ):
      return
    late = self._late() and not self._round.planned
    if late and now < self._deadline():
      return
    if not self._agree(now):
      return
    ready = set(self._round.proposals) & self._members.reachable()
    needed = self._needed(now)
    if len(ready) < needed:
      return
    members = ready - self._round.left_out()
    if len(members) < needed:  # void; all of it is carried
      if now < self._forgive_at:
        return
      self._round.forgive()
      members = ready
    self._attempts += 1
    number = self.head.number + 1
    self._say(
      self._round.start(number, sorted(members), self.term, self._attempts)
    )

  def _last_step(self) -> pb.Record:
    steps = (r for r in reversed(self._effective) if r.HasField("step"))
    return next(steps, pb.Record())

  def _half(self) -> int:
    """Half of the last step's members, not counting who left in good order."""
    members = [m.island for m in self._last_step().step.members]
    left = {
      m.island for m in self._members.members.values() if m.state is State.LEFT
    }
    return -(-len(set(members) - left) // 2)

  def _count_who_is_there(self, now: float) -> None:
    if len(self._members.reachable()) >= self._half():
      self._enough_at = now

  def _needed(self, now: float) -> int:
    """Islands that a round needs: a minority waits, it may not be alone."""
    elastic = self.run.elastic
    if now - self._enough_at > elastic.minority_patience:
      return elastic.min_islands
    return max(elastic.min_islands, self._half())

  def _announce_closing(self, now: float) -> None:
    """Tells the slow in time when the round will be planned without them."""
    deadline = self._deadline()
    if self._round.planned or self.final or now > deadline:
      return
    for island in self._late():
      member = self._members.members[island]
      needs = _HAND_IN_SLACK * member.heartbeat.hand_in_seconds + _HAND_IN_TICK
      if island not in self._closing_told and now >= deadline - needs:
        self._closing_told.add(island)
        closing = pb.Closing(number=self.head.number + 1)
        self._to_member(island, pb.ToIsland(closing=closing))

  def _agree(self, now: float) -> bool:
    """Whether all that propose hold the same state; most are right.

    A minority is given the others' state. A tie is for the operator to settle.
    """
    hashes = collections.Counter(self._base_states.values())
    if len(hashes) < 2:
      return True
    (common, votes), (_, next_votes) = hashes.most_common(2)
    if votes > next_votes:
      self._agreed = self.head.number, common
      for island, state in list(self._base_states.items()):
        if state != common:
          self._repair(self._members.members[island], now)
      return True
    if not self._late():
      said = "; ".join(
        f"{island} has {state.hex()[:16]}"
        for island, state in sorted(self._base_states.items())
      )
      reason = (
        f"islands disagree on the state at record {self.head.number}: {said}."
        " Evict who is wrong, or roll back, and resume"
      )
      self._actions.append(Warn(f"The run is paused: {reason}."))
      pause = pb.Settings.PAUSE_BEGIN
      settings = pb.Settings(pause=pause, reason=reason)
      self._change(settings, now)
    return False

  def _repair(self, member: Member, now: float) -> None:
    """A member's state is not the run's: it goes back to theirs."""
    text = f"{member.island} diverged at record {self.head.number}"
    self._actions.append(Warn(f"{text}, and is given the others' state."))
    self._depart(member, f"its state at record {self.head.number} had diverged")
    member.state, member.record = State.JOINING, -1
    self._base_states.pop(member.island, None)
    if self._round.gone(member.island):
      self._round.abandon()
    self._stateless.add(member.island)
    self._told_to_wait.add(member.island)
    welcome = pb.Welcome(
      run_id=self.run_id,
      evicted=True,
      start=pb.Welcome.START_RESTORE,
      head=self.head.number,
    )
    self._to_member(member.island, pb.ToIsland(welcome=welcome))
    self._find_donor(now)

  def _on_share_reduced(
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

  def _on_prepared(
    self, member: Member, prepared: pb.Prepared, now: float
  ) -> None:
    self._round.prepared(member.island, prepared.attempt)
    self._try_to_commit(now)

  def _on_fetch_failed(
    self, member: Member, report: pb.FetchFailed, now: float
  ) -> None:
    if not report.attempt:  # a state, not a delta: ask somebody else
      self._stateless.add(member.island)
      if member.state is State.IN:  # nobody waits for it meanwhile
        member.state = State.JOINING
      self._find_donor(now)
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
      learning_rate=float(np.float32(outer.learning_rate)),
      momentum=float(np.float32(outer.momentum)),
      base_state=next(iter(self._base_states.values()), b""),
      minority=len(plan.members) < self._half(),
    )
    if step.minority:
      members = ", ".join(member.island for member in plan.members)
      self._actions.append(
        Warn(
          f"Record {plan.number} is that of a minority ({members}): the others"
          " have been away too long, and may be going on elsewhere."
        )
      )
    tokens = 0
    for member in plan.members:
      step.members.add().CopyFrom(member)
      step.members[-1].ClearField("delta")
      tokens += sum(window.tokens for window in member.windows)
      for window in member.windows:
        holder = Holder(member.island, member.incarnation, window.number)
        self._pool.consume(holder, chain.intervals(window))
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
    self._closing_told.clear()

  def _annul(self, to: int, reason: str, now: float) -> None:
    """Takes back the records after `to`; their samples are free again."""
    windows = chain.committed_windows(self._effective)
    tokens = self._records[to].total_tokens
    self._open_round()
    self._append(
      pb.Record(
        annulment=pb.Annulment(to=to, reason=reason), total_tokens=tokens
      ),
      now,
    )
    kept = {holder for holder, _ in chain.committed_windows(self._effective)}
    for holder, window in windows:
      if holder not in kept:
        self._pool.annul(chain.intervals(window))
        self._committed[holder[:2]] -= window.tokens
        self._lose(holder.island, holder.incarnation, window.tokens, reason)
    for member in self._members.members.values():
      if member.record > to:  # it goes back, and says when it is ready
        member.record = -1
        if member.state is State.IN:
          member.state = State.JOINING

  def _holders_of(self, record: int) -> list[str]:
    """Islands that are here and hold the state of `record`, or a later one."""
    return [
      member.island
      for member in self._members.members.values()
      if member.record >= record
      and (member.session is not None or member.state is State.LEFT)
    ]

  def _annul_what_nobody_has(self, now: float) -> None:
    """Who held the newest mean is lost: back to the newest that is here."""
    newest = chain.newest_state(self._effective).number
    if not self._records or self._holders_of(newest):
      self._held_at = now
      return
    here = [m for m in self._members.members.values() if m.session is not None]
    to = max((member.record for member in here), default=-1)
    patience = self.run.elastic.annul_patience
    waited = now - self._held_at > patience
    if waited and to >= 0 and len(here) >= self._needed(now):
      reason = f"no island had the state of record {newest} for {patience:g} s"
      self._actions.append(Warn(f"Back to record {to}: {reason}."))
      self._annul(to, reason, now)
      self._held_at = now

  def _append(self, record: pb.Record, now: float) -> None:
    """Completes a record, makes it durable, then announces it."""
    record.number = len(self.log)
    record.term = self.term
    record.previous = self.log[-1].hash if self.log else b""
    record.islands = max(1, len(self._members.inside()))
    record.final = record.total_tokens >= self.run.tokens or (
      record.HasField("step") and self._steering.finish
    )
    sealed = chain.seal(record)
    self._keep(record, sealed, now)
    self._announce(sealed)

  def _announce(self, sealed: pb.SealedRecord) -> None:
    announced = pb.SealedRecord()
    announced.CopyFrom(sealed)
    announced.holders.extend(self.holders())
    for member in self._members.members.values():
      if member.session is not None:
        self._to(member.session, pb.ToIsland(record=announced))

  def _keep(
    self, record: pb.Record, sealed: pb.SealedRecord, now: float
  ) -> None:
    """The log has a further record, durable before anything that follows."""
    self.log.append(sealed)
    self._records.append(record)
    self._effective = chain.effective([*self._effective, record])
    self._actions.append(Append(record, sealed))
    self._committed_at = now
    if self._steering != Steering() or not record.HasField("step"):
      self._read_settings()

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
    here = [member for member in late if not member.hung]
    if any(member.record == self.head.number for member in here):
      return
    if late and not self._holders_of(self.head.number):
      return  # nobody saved the end: it is annulled, in time
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

  # ------------------------------------------------------------- steering

  def control(
    self, request: pb.ControlRequest, now: float
  ) -> tuple[pb.ControlReply, list[Action]]:
    """What an operator wants; the reply may go out once the actions are done."""
    if self._stopped or not self._records or self.final:
      refusal = "the run is over, or has not begun: there is nothing to steer"
    else:
      try:
        refusal = self._steer(request, now)
      except UserError as error:
        refusal = str(error)
    reply = pb.ControlReply(refusal=refusal, record=self.head.number)
    return reply, self._taken()

  def _steer(self, request: pb.ControlRequest, now: float) -> str:
    """Makes a change. Returns why not, or an empty string."""
    number = len(self.log)  # of the record that says so
    settings = pb.Settings(reason=request.reason)
    match request.WhichOneof("change"):
      case "set":
        values, at = dict(request.set.values), request.set.at_record
        if not values or 0 < at <= number:
          return f"no values, or record {at} is not ahead of {number}"
        with_values(self.run, values)  # or a UserError
        settings.values.update(values)
        settings.at_record = at or number + 1
      case "pause":
        paused = request.pause.paused
        if paused == bool(self._steering.paused):
          return "the run is paused already" if paused else "it is not paused"
        begin, end = pb.Settings.PAUSE_BEGIN, pb.Settings.PAUSE_END
        settings.pause = begin if paused else end
      case "finish":
        settings.finish = True
      case "evict":
        member = self._members.members.get(request.evict.island)
        if member is None or member.state not in (State.IN, State.JOINING):
          return f"no island {request.evict.island!r} is in the run"
        settings.evicted.island = member.island
        settings.evicted.incarnation = member.incarnation
      case "rollback":
        return self._roll_back(request.rollback.to, request.reason, now)
      case _:
        return "it asks for nothing"
    self._change(settings, now)
    return ""

  def _change(self, settings: pb.Settings, now: float) -> None:
    """Appends settings; islands propose again what is undecided."""
    tokens = self.head.total_tokens
    self._open_round()
    self._append(pb.Record(settings=settings, total_tokens=tokens), now)
    if settings.HasField("evicted"):
      member = self._members.members[settings.evicted.island]
      self._refuse(member, f"an operator evicted it: {settings.reason}")
      self._evict(member, "evicted by an operator", now)
      member.state = State.LEFT

  def _roll_back(self, to: int, reason: str, now: float) -> str:
    if self._counting(to) < 0 or to == self.head.number:
      return f"record {to} is not one of those before {self.head.number}"
    reach = [m.heartbeat.oldest for m in self._members.inside()]
    if to < min(reach, default=0):
      return f"no island's checkpoints reach back to {to}, only to {min(reach)}"
    self._annul(to, reason or "an operator rolled back", now)
    return ""

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
