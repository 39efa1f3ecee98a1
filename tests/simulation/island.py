"""An island of the simulation: real rounds and windows, symbolic training."""

import collections
from collections.abc import Callable
import dataclasses
import itertools
from typing import TYPE_CHECKING

from intellect_jax.elastic import chain, rpc, shares
from intellect_jax.elastic import round as round_lib
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder
from intellect_jax.elastic.windows import Window, Windows
from intellect_jax.outer import overlap
from intellect_jax.outer.feedback import ErrorFeedback
from simulation.invariants import (
  NOTHING,
  Theta,
  delta_id,
  genesis,
  hash_of,
  left_by,
  mean_id,
  next_theta,
  state_id,
)

if TYPE_CHECKING:
  from simulation.world import Stream, World

SAMPLES = 4  # a window, and steps
SAMPLE_TOKENS = 10
BLOCKS = 64  # of the codec
WORK = 0.01, 0.6  # seconds that a reduction or a gathering takes
# Bytes/s, of links so unlike that shares are too; 0: not known yet.
UPLOAD = dict(zip("abcdefgh", itertools.cycle([1e7, 2e6, 0.0])))
STEP = 0.5 / SAMPLES, 1.5 / SAMPLES  # seconds
EARLY = 0.05  # of the steps after which it proposes before its turn
LEFT = "the run is over"
SYNC = 0.01, 1.0  # seconds until what was written outlives a power loss


@dataclasses.dataclass
class Disk:
  """What an island has after a crash, and after a power loss."""

  record: int | None = None  # of its checkpoint
  theta: Theta = ()  # of its checkpoint
  left: tuple[bytes, bytes] = NOTHING, b""  # error feedback, and its attempt
  log: dict[int, pb.SealedRecord] = dataclasses.field(default_factory=dict)
  means: set[bytes] = dataclasses.field(default_factory=set)
  synced: set[int] = dataclasses.field(default_factory=set)  # records
  term: int = 0

  def lose_power(self) -> None:
    """Records and means that were not synced are gone."""
    for number in set(self.log) - self.synced:
      step = pb.Record.FromString(self.log.pop(number).body).step
      self.means -= {share.mean.id for share in step.shares}

  def restore(self, to: int | None = None) -> tuple[int | None, Theta]:
    """The record it can stand at and theta there, as holdings.py does."""
    if self.record is None or self.record not in self.log:
      return None, ()
    if to is not None and self.record > to:
      return None, ()
    records: list[pb.Record] = []
    number, theta = self.record, self.theta
    while (sealed := self.log.get(number + 1 + len(records))) is not None:
      record = pb.Record.FromString(sealed.body)
      if record.HasField("annulment"):
        records = [r for r in records if r.number <= record.annulment.to]
        break
      records.append(record)
    for record in records:
      have = {share.mean.id for share in record.step.shares} <= self.means
      if not have or (to is not None and record.number > to):
        break
      number, theta = record.number, next_theta(theta, record)
    return number, theta

  def records(self) -> list[pb.Record]:
    """The log, as far as it is one."""
    sealed = itertools.takewhile(
      lambda found: found is not None, map(self.log.get, itertools.count())
    )
    return [pb.Record.FromString(found.body) for found in sealed if found]

  def feedback(self, island: str, to: int) -> tuple[bytes, bytes]:
    """What there is of it at a record from `restore`."""
    assert self.record is not None
    for number in range(self.record + 1, to + 1):
      step = pb.Record.FromString(self.log[number].body).step
      if any(member.island == island for member in step.members):
        return NOTHING, b""
    return self.left

  def save(self, record: int, theta: Theta, left: ErrorFeedback) -> None:
    """Writes a checkpoint, whole or not at all."""
    self.record, self.theta = record, theta
    self.left = left.values, left.attempt
    self.synced.add(record)


class Island:
  """One process of an island."""

  def __init__(self, world: "World", name: str, incarnation: int, disk: Disk):
    self.world = world
    self.name = name
    self.incarnation = incarnation
    self.disk = disk
    self.address = f"{name}.{incarnation}"
    self.process = hash_of(name, incarnation, world.random.random())
    self.slowness = 1.0
    self.alive = True
    self.done = False
    self.hung = False  # the training thread, not the others
    self.flipped = False  # a bit of its theta
    self.frozen_until = 0.0
    self.stream: Stream | None = None
    self.seat = 0  # that it turns to first
    standing, self.theta = disk.restore()
    self.held = -1 if standing is None else standing  # record of theta
    self.tip = self.theta  # at the newest record that is adopted
    self.adopted: collections.deque[pb.Record] = collections.deque()
    self.feedback = ErrorFeedback(NOTHING, world.run.outer.feedback)
    if standing is not None:
      self.feedback.restore(*disk.feedback(name, standing))
    self.round = round_lib.IslandRound(name, standing)
    self.blobs = set(disk.means)
    self.state: tuple[int, Theta] | None = None  # that is served
    self.head = 0  # when it was welcomed
    self.in_run = False
    self.ready_said = False  # since the last welcome
    # By fragment, counts attempts, so that cancelled work shows.
    self.work: collections.Counter[int] = collections.Counter()
    outer = world.run.outer
    self.windows = Windows(1, SAMPLE_TOKENS, outer.max_carry, outer.fragments)
    self.grants: dict[int, pb.LeaseGrant] = {}  # of what is not decided
    self.training: Callable[[], None] | None = None  # ends the step
    self.turn = False  # a fragment is to be proposed
    self.hand_in: dict[int, int] = {}  # by fragment, as in news.py
    self.requested: pb.FromIsland | None = None
    self.stands()
    self.connect()
    self.beat()

  # --------------------------------------------------------- the stream

  def awake(self, call: Callable[[], None]) -> None:
    """Calls now, or once the process is thawed; never if it is dead."""
    if not self.alive:
      return
    if self.world.now < self.frozen_until:
      delay = self.frozen_until - self.world.now
      self.world.later(delay, lambda: self.awake(call))
    else:
      call()

  def later(self, bounds, call: Callable[[], None]) -> None:
    delay = self.world.random.uniform(*bounds)
    self.world.later(delay, lambda: self.awake(call))

  def connect(self) -> None:
    if self.done or self.stream is not None:
      return
    self.stream = self.world.open_stream(self)
    if self.stream is None:
      self.seat += 1
      self.later((0.2, 0.4), self.connect)
      return
    record = self.round.record
    hello = pb.Hello(
      protocol=rpc.PROTOCOL_VERSION,
      run_digest=self.world.digest,
      run_id="run",
      island=self.name,
      incarnation=self.incarnation,
      process=self.process,
      addresses=[self.address],
      has_state=record is not None and record >= 0,
      tokens_trained=self.windows.tokens_trained,
      tokens_open=self.windows.tokens_uncommitted,
      leases=self.grants.values(),
    )
    if hello.has_state:
      hello.record = hello.head = self.standing
      hello.record_hash = self.disk.log[self.standing].hash
      while hello.head + 1 in self.disk.log:
        hello.head += 1
    self.send(pb.FromIsland(hello=hello))

  def lost(self, stream: "Stream") -> None:
    def notice() -> None:
      if self.stream is stream:
        self.stream = None
        self.later((0.1, 0.3), self.connect)

    self.awake(notice)

  def send(self, message: pb.FromIsland) -> None:
    if self.stream is not None:
      message.term = self.disk.term
      self.stream.up(message)

  def beat(self) -> None:
    if not self.done:
      self.send_heartbeat()
      lease = self.world.run.elastic.lease_seconds
      self.later((lease / 5, lease / 4), self.beat)

  def send_heartbeat(self) -> None:
    busy = self.training is not None or self.hung
    beat = pb.Heartbeat(
      tokens_trained=self.windows.tokens_trained,
      step=self.windows.steps,
      window=self.windows.next,
      activity="training" if busy else "waiting",
      hand_in_seconds=0.1,
      upload_rate=UPLOAD[self.name],
      download_rate=1e7,
    )
    beat.record = max(0, self.held)
    beat.oldest = self.disk.record or 0
    self.send(pb.FromIsland(heartbeat=beat))

  def hear(self, message: pb.ToIsland) -> None:
    if message.term < self.disk.term:
      return
    self.disk.term = message.term
    kind = message.WhichOneof("message")
    getattr(self, f"on_{kind}")(getattr(message, kind))

  # -------------------------------------------------- joining, as agent.py

  def on_welcome(self, welcome: pb.Welcome) -> None:
    self.head, self.ready_said = welcome.head, False
    if welcome.evicted:
      self.carry_out(self.round.withdraw())
      self.give_up("evicted while it was silent")
      self.grants.clear()
    if welcome.start == pb.Welcome.START_INITIALISE:
      if self.round.record is None:
        self.take(0, genesis(self.world.run.outer.fragments))
        self.give_up("its state was lost")
        self.feedback.clear()
        self.state = (0, self.theta)
        self.carry_out(self.round.stand(-1))
      self.say_state()
      self.read_log(0)
    elif welcome.start == pb.Welcome.START_RESTORE:
      self.forget()
    elif welcome.head > self.standing:
      self.read_log(self.standing + 1)
    else:
      self.ready()
    if self.requested is not None:
      self.send(self.requested)

  def take(self, record: int, theta: Theta) -> None:
    """Theta is that of a record, wherever it comes from."""
    self.held, self.theta, self.tip = record, theta, theta
    self.flipped = False
    self.adopted.clear()
    self.stands()

  def stands(self) -> None:
    """Knows which record moved each fragment, as follow.py does."""
    records = chain.effective(self.disk.records())
    for fragment, part in enumerate(self.windows.parts):
      moved = [r.number for r in records if chain.moves(r, fragment)]
      part.moved = max((n for n in moved if n <= self.held), default=-1)

  def give_up(self, cause: str) -> None:
    """What it has trained and not committed is void."""
    self.feedback.withdraw()
    if self.windows.proposed:
      self.world.invariants.gave_up.add((self.name, self.incarnation))
    self.training = self.requested = None
    self.turn = self.in_run = False
    self.drop(self.windows.drop(), cause)

  def forget(self) -> None:
    """What it stands at is of no use; a Restore follows."""
    self.carry_out(self.round.withdraw())
    self.round.forget()
    self.adopted.clear()
    self.in_run = False

  @property
  def length(self) -> int:
    """Of its encoded delta."""
    return BLOCKS * self.world.codec.block_bytes

  @property
  def standing(self) -> int:
    """The record that it stands at; it has one."""
    assert self.round.record is not None
    return self.round.record

  def say_state(self) -> None:
    part = pb.Part(addresses=[self.address])
    blob = pb.Blob(id=state_id(self.theta), parts=[part])
    ready = pb.StateReady(record=self.held, state=blob)
    if len(self.theta) > 1:
      ready.fragments.extend(self.theta)
    self.send(pb.FromIsland(state_ready=ready))

  def on_offer_state(self, _) -> None:
    self.world.offers += 1
    if self.round.record is not None:
      self.state = (self.held, self.theta)
      self.say_state()

  def on_restore(self, restore: pb.Restore) -> None:
    def fetched() -> None:
      record = self.round.record
      if record is not None and record >= restore.record:
        return
      addresses = shares.addresses(restore.state)
      donor = self.world.serving(self, addresses)
      log = self.world.log_for(self)
      served = [
        d.state[1]
        for d in donor
        if d.state is not None
        and (d.state[0], state_id(d.state[1]))
        == (restore.record, restore.state.id)
      ]
      if not served or len(log) <= restore.record:
        self.send(pb.FromIsland(fetch_failed=pb.FetchFailed(peer="donor")))
        return
      self.disk.log = dict(enumerate(log[: restore.record + 1]))
      self.disk.synced = set(self.disk.log)
      before = self.held
      self.take(restore.record, served[0])
      self.take_over(before)
      self.disk.save(restore.record, self.theta, self.feedback)
      self.give_up("too far behind")
      self.carry_out(self.round.stand(restore.record))
      self.read_log(restore.record + 1)

    self.later(WORK, fetched)

  def take_over(self, before: int) -> None:
    """What the log up to another's state makes of its own work: follow.py."""
    records = self.disk.records()
    for record in records:
      after = record.number > before and record.HasField("step")
      if after and self.settle(record):
        self.windows.commit(record.step.fragment)
    counting = {each.step.attempt for each in chain.effective(records)}
    if self.feedback.attempt not in counting:
      self.feedback.clear()

  def settle(self, record: pb.Record) -> bool:
    """What a step makes of the code that it has proposed; whether it has it."""
    step = record.step
    included = self.windows.includes(step, self.name, self.incarnation)
    has = any(member.island == self.name for member in step.members)
    if self.world.codec.sparse:
      self.feedback.decide(step.attempt, included, has)
    return included

  def read_log(self, start: int) -> None:
    def answered() -> None:
      log, holders = self.world.log_for(self), self.world.holders_for(self)
      sealed = [
        pb.SealedRecord(body=s.body, hash=s.hash, holders=holders)
        for s in log[start:]
      ]
      self.carry_out(self.round.committed(sealed))
      self.ready()

    self.later(self.world.latency, answered)

  def ready(self) -> None:
    """Caught up with what was the head when it was welcomed."""
    record = self.round.record
    if record is None or record < max(self.head, 0) or self.done:
      return
    self.send(pb.FromIsland(ready=pb.Ready(record=record)))
    self.carry_out(self.round.reconnected())
    self.in_run = self.ready_said = True
    self.wake()

  def on_ask_records(self, ask: pb.AskRecords) -> None:
    head = max(self.disk.log, default=-1)
    sent = pb.Records(end=head + 1)
    for number in range(ask.start, head + 1):
      if number not in self.disk.log:
        break
      sent.records.append(self.disk.log[number])
    self.send(pb.FromIsland(records=sent))

  def on_refusal(self, refusal: pb.Refusal) -> None:
    assert "operator evicted" in refusal.reason, f"{self.name}: {refusal}"
    self.alive = False
    self.world.restart_later(self.name)

  def on_finished(self, _) -> None:
    self.done = True

  # ------------------------------------------------------------ training

  def wake(self) -> None:
    """The training thread hears of something, if it is not in a step."""
    if self.training is None and not self.hung and not self.done:
      self.merge(early=True)
      self.go_on()

  def go_on(self) -> None:
    """What it does between two steps, as follow.py: it may have to wait."""
    windows = self.windows
    if self.done or not self.in_run or self.far_ahead:
      return
    first = windows.turns[:1]
    if self.turn and not first:
      return
    wanted = self.asked or (first if self.turn else [])
    self.turn = False
    for fragment in wanted:
      if windows.parts[fragment].steps:
        self.propose(fragment)
    if not self.far_ahead:
      self.train()

  @property
  def far_ahead(self) -> bool:
    most = overlap.most_ahead(self.world.run.outer)
    parts = self.windows.parts
    return any(parts[f].ahead >= most for f in self.windows.proposed)

  @property
  def asked(self) -> list[int]:
    parts = self.windows.parts
    return self.windows.before(
      lambda f: self.hand_in.get(f, 0) > parts[f].moved
    )

  def train(self) -> None:
    windows = self.windows
    if self.training or self.requested or self.hung:
      return
    if windows.open is None or windows.open.steps == windows.length:
      request = pb.LeaseRequest(window=windows.next, samples=SAMPLES)
      self.requested = pb.FromIsland(lease_request=request)
      self.send(self.requested)
      return

    def end() -> None:
      if self.training is not end or self.hung:
        return
      self.training = None
      self.step()

    self.training = end
    bounds = tuple(seconds * self.slowness for seconds in STEP)
    self.later(bounds, end)

  def on_lease_grant(self, grant: pb.LeaseGrant) -> None:
    if self.requested is None or grant.window != self.windows.next:
      return
    self.requested = None
    self.grants[grant.window] = grant
    window = self.windows.start([(i.start, i.stop) for i in grant.samples])
    self.trains(window, 0)
    self.go_on()

  def trains(self, window: Window, tokens: int) -> None:
    holder = Holder(self.name, self.incarnation, window.number)
    self.world.invariants.has_trained(holder, window, tokens)

  def step(self) -> None:
    windows, random = self.windows, self.world.random
    windows.step()
    assert windows.open is not None
    self.trains(windows.open, SAMPLE_TOKENS)
    self.turn |= windows.at_turn or random.random() < EARLY
    self.merge(early=False)
    if self.far_ahead or (self.turn and not windows.turns):
      self.merge(early=True)
    self.go_on()

  def propose(self, fragment: int) -> None:
    proposal = self.windows.propose(fragment)
    who, theta = (self.name, self.incarnation), self.theta[fragment]
    self.world.invariants.has_proposed(who, proposal, self.windows.steps)
    about = *who, fragment, proposal.serial, theta
    blob_id = delta_id(*about, self.feedback.values)
    if self.world.codec.sparse:
      self.feedback.propose(left_by(blob_id))
    self.blobs.add(blob_id)
    part = pb.Part(addresses=[self.address])
    blob = pb.Blob(id=blob_id, length=self.length, parts=[part])
    proposal.base = self.held
    proposal.delta.CopyFrom(blob)
    windows = sum(window.tokens for window in proposal.windows)
    proposal.norm = norm(windows or proposal.tokens)
    proposal.base_state = theta
    proposal.tokens_trained = self.windows.tokens_trained
    if len(self.theta) > 1:
      proposal.blocks.add(start=fragment * BLOCKS, stop=(fragment + 1) * BLOCKS)
    self.carry_out(self.round.propose(proposal))

  # ----------------------------------------------------------- the round

  def on_plan(self, plan: pb.Plan) -> None:
    self.carry_out(self.round.plan(plan))

  def on_fix(self, fix: pb.Fix) -> None:
    self.carry_out(self.round.fix(fix))

  def on_record(self, sealed: pb.SealedRecord) -> None:
    self.carry_out(self.round.committed([sealed]))

  def on_closing(self, closing: pb.Closing) -> None:
    self.carry_out(self.round.closing(closing))

  def carry_out(self, actions: list[round_lib.Action]) -> None:
    for action in actions:
      match action:
        case round_lib.Send(message):
          self.send(message)
        case round_lib.Cancel(fragment):
          self.work[fragment] += 1
        case round_lib.Reduce(plan, index):
          reduce = lambda p=plan, i=index: self.reduce(p, i)  # noqa: E731
          self.start(reduce, plan.fragment)
        case round_lib.Gather():
          gather = lambda a=action: self.gather(a)  # noqa: E731
          if action.late:
            self.later(WORK, gather)
          else:
            self.start(gather, action.fragment)
        case round_lib.Adopt(record, sealed):
          self.adopt(record, sealed)
        case round_lib.Keep(sealed):
          number = pb.Record.FromString(sealed.body).number
          self.disk.log[number] = sealed
        case round_lib.ReadLog(start):
          self.read_log(start)
        case round_lib.HandIn(number, fragment):
          self.hand_in[fragment] = number
        case round_lib.Diverged(record, to):
          self.diverged(record, to)

  def start(self, work: Callable[[], None], fragment: int) -> None:
    attempt = self.work[fragment]
    self.later(WORK, lambda: work() if self.work[fragment] == attempt else None)

  def diverged(self, record: int, to: int) -> None:
    """Back to a state of its own that still counts, or to another's."""
    self.forget()
    to = to if to >= 0 else self.last_in_common()
    back, theta = self.disk.restore(to)
    if back is None:
      failed = pb.FetchFailed(reason=f"record {record} was annulled")
      self.send(pb.FromIsland(fetch_failed=failed))
      return
    self.take(back, theta)
    self.world.invariants.gave_up.add((self.name, self.incarnation))
    self.feedback.restore(*self.disk.feedback(self.name, back))
    self.give_up("its base was annulled")
    self.carry_out(self.round.stand(back))
    self.read_log(back + 1)

  def last_in_common(self) -> int:
    """The newest record of its own that counts in the run's chain; or -1."""
    log = self.world.log_for(self)
    records = [pb.Record.FromString(sealed.body) for sealed in log]
    counting = {record.number for record in chain.effective(records)}
    common = -1
    for number, sealed in enumerate(log):
      own = self.disk.log.get(number)
      if own is None or own.hash != sealed.hash:
        break
      common = number if number in counting else common
    return common

  def moves_again(self) -> None:
    """The training thread was hung."""
    if self.training is not None:
      self.training()
    else:
      self.wake()

  def fail(self, attempt: bytes, peer: str) -> None:
    """Nothing came from `peer`, until patience ran out."""
    patience = self.world.run.elastic.fetch_patience
    self.later(
      (patience, patience),
      lambda: self.carry_out(self.round.failed(attempt, peer, "cut")),
    )

  def reduce(self, plan: pb.Plan, index: int) -> None:
    share = plan.shares[index]
    for member in plan.members:
      if not self.can_get(member.delta.id, shares.addresses(member.delta)):
        self.fail(plan.attempt, member.island)
        return
    deltas = [member.delta.id for member in plan.members]
    if self.world.codec.sparse:
      self.blobs |= set(deltas)
      mean, part_of_all = plan.members[index].delta, 1 / len(plan.members)
    else:
      blob_id = mean_id(plan.members, share.start, share.stop, deltas)
      self.blobs.add(blob_id)
      length = (share.stop - share.start) * self.world.codec.block_bytes
      part = pb.Part(addresses=[self.address])
      mean = pb.Blob(id=blob_id, length=length, parts=[part])
      part_of_all = (share.stop - share.start) / BLOCKS
    report = pb.ShareReduced(
      attempt=plan.attempt,
      share=index,
      mean=mean,
      squared_norms=[norm(m.weight) ** 2 * part_of_all for m in plan.members],
    )
    self.carry_out(self.round.reduced(report))

  def gather(self, action: round_lib.Gather) -> None:
    for share in action.shares:
      sources = [*shares.addresses(share.mean), *action.holders]
      if not self.can_get(share.mean.id, sources):
        if action.late:
          self.later((1.0, 1.0), lambda: self.retry(action.late))
        else:
          self.fail(action.attempt, share.owner)
        return
    self.blobs |= {share.mean.id for share in action.shares}
    self.disk.means |= {share.mean.id for share in action.shares}
    self.carry_out(self.round.gathered(action.attempt, action.fragment))

  def retry(self, number: int) -> None:
    self.carry_out(self.round.late_fetch_failed(number))

  def can_get(self, blob_id: bytes, addresses) -> bool:
    holders = self.world.serving(self, addresses)
    return blob_id in self.blobs or any(blob_id in h.blobs for h in holders)

  def adopt(self, record: pb.Record, sealed: pb.SealedRecord) -> None:
    """Writes a record to the log; the training thread merges it in time."""
    self.tip = next_theta(self.tip, record)
    self.world.invariants.check_adopted(sealed, self.tip)
    self.disk.log[record.number] = sealed
    disk, number = self.disk, record.number
    self.later(SYNC, lambda: disk.synced.add(number))
    for holder, _ in chain.windows_of(record):
      if holder[:2] == (self.name, self.incarnation):
        self.grants.pop(holder.window, None)
    if record.number == 0:
      self.disk.save(0, self.tip, self.feedback)
    self.adopted.append(record)
    self.wake()
    if not self.ready_said:
      self.ready()

  def merge(self, early: bool) -> None:
    """Merges what is adopted, as follow.py does."""
    while self.adopted and (early or not self.overlaps(self.adopted[0])):
      record = self.adopted.popleft()
      if record.number <= self.held:
        self.stands()
        continue
      self.theta, self.held = next_theta(self.theta, record), record.number
      if record.HasField("step"):
        self.decide(record)
        self.windows.parts[record.step.fragment].moved = record.number
      else:
        self.stands()
      if not self.flipped and self.world.random.random() < 0.5:
        self.disk.save(record.number, self.theta, self.feedback)
      if record.final:
        self.leave()

  def overlaps(self, record: pb.Record) -> bool:
    """Whether a record is merged later: tau is a minimum."""
    part = self.windows.parts[record.step.fragment]
    tau = self.world.run.outer.overlap_steps
    early = part.proposed > 0 and part.ahead < tau
    return record.HasField("step") and early and not record.final

  def decide(self, record: pb.Record) -> None:
    """A step moved theta: what was proposed is committed, or carried."""
    fragment, windows = record.step.fragment, self.windows
    outer = self.world.run.outer
    if self.settle(record):
      windows.commit(fragment)
      if overlap.throws_away(outer):
        self.drop(windows.throw_away(fragment), "thrown away")
    elif windows.carry(fragment):
      if fragment:
        windows.parts[fragment].drop()
      else:
        self.drop(windows.drop(), "carried too long")

  def drop(self, dropped: list[pb.Window], cause: str) -> None:
    """Tells what it will not propose, after how much it has trained."""
    for window in dropped:
      self.grants.pop(window.number, None)
    if dropped:
      self.send_heartbeat()
      message = pb.Dropped(windows=dropped, cause=cause)
      self.send(pb.FromIsland(dropped=message))

  def leave(self) -> None:
    self.send_heartbeat()
    self.say_state()
    tokens = self.windows.tokens_uncommitted
    self.world.left_with[self.name, self.incarnation] = tokens
    self.send(pb.FromIsland(leave=pb.Leave(reason=LEFT)))
    self.done = True


def norm(tokens: float) -> float:
  return 1.0 + tokens
