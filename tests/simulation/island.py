"""An island of the simulation: the real round, symbolic training."""

from collections.abc import Callable
import itertools
from typing import TYPE_CHECKING

from intellect_jax.elastic import chain, rebuild, rpc, shares
from intellect_jax.elastic import round as round_lib
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder, take
from intellect_jax.outer.feedback import ErrorFeedback
from simulation.disk import Disk
from simulation.invariants import (
  GENESIS,
  NOTHING,
  delta_id,
  hash_of,
  is_flipped,
  left_by,
  mean_id,
  next_theta,
)

if TYPE_CHECKING:
  from simulation.world import Stream, World

SAMPLES = 4  # a window
SAMPLE_TOKENS = 10
BLOCKS = 64  # of the codec
WORK = 0.01, 0.6  # seconds that a reduction or a gathering takes
LONG = 5.0  # times as long takes one in ten
# Bytes/s, of links so unlike that shares are too; 0: not known yet.
UPLOAD = dict(zip("abcdefgh", itertools.cycle([1e7, 2e6, 0.0])))
WINDOW = 0.5, 1.5  # seconds of training
LEFT = "the run is over"
SYNC = 0.01, 1.0  # seconds until what was written outlives a power loss


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
    self.frozen_until = 0.0
    self._asleep: list[
      Callable[[], None]
    ] = []  # what is done once it is thawed
    self.stream: Stream | None = None
    self.seat = 0  # that it turns to first
    standing, self.theta = disk.restore()
    self.feedback = ErrorFeedback(NOTHING, world.run.outer.feedback)
    if standing is not None:
      self.feedback.restore(*disk.feedback(name, standing))
    self.round = round_lib.IslandRound(name, standing)
    self.stood: int | None = standing  # also while what it holds is of no use
    self.blobs = set(disk.means)
    self.state: tuple[int, bytes] | None = None  # that is served
    self.head = 0  # when it was welcomed
    self.in_run = False
    self.work = 0  # counts attempts, so that cancelled work shows
    self.window = 0
    self.grants: dict[int, pb.LeaseGrant] = {}  # of what is not decided
    self.steps = 0
    self.training: Callable[[bool], None] | None = None  # ends the window
    self.unanswered: dict[int, pb.FromIsland] = {}  # requests for samples
    self.leases: dict[int, pb.LeaseGrant] = {}  # of windows not begun yet
    self.waits = False  # for the lease of its next window
    self.carried: list[pb.Window] = []
    self.carries = 0
    self.proposed = False
    self.trained = 0
    self.ending = False  # it holds the final state
    self.connect()
    self.beat()

  # --------------------------------------------------------- the stream

  def awake(self, call: Callable[[], None]) -> None:
    """Calls now, or once the process is thawed; never if it is dead."""
    if not self.alive:
      return
    if self.world.now < self.frozen_until or self._asleep:
      self._asleep.append(call)
      if len(self._asleep) == 1:
        self.wake()
    else:
      call()

  def wake(self) -> None:
    """Does what came while it was frozen, in that order, if it is thawed."""
    left = self.frozen_until - self.world.now
    if left > 1e-9:
      self.world.later(left, self.wake)
      return
    self.frozen_until = 0.0
    calls, self._asleep = self._asleep, []
    for call in calls:
      self.awake(call)

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
      tokens_trained=self.trained,
      tokens_open=sum(window.tokens for window in self.carried),
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
      tokens_trained=self.trained,
      step=self.steps,
      window=self.window,
      activity="training" if busy else "waiting",
      hand_in_seconds=0.1,
      upload_rate=UPLOAD[self.name],
      download_rate=1e7,
    )
    beat.record = max(0, self.round.record or 0)
    beat.oldest = min(self.disk.saved, default=0)
    self.send(pb.FromIsland(heartbeat=beat))

  def hear(self, message: pb.ToIsland) -> None:
    if message.term < self.disk.term:
      return
    self.disk.term = message.term
    kind = message.WhichOneof("message")
    getattr(self, f"on_{kind}")(getattr(message, kind))

  # -------------------------------------------------- joining, as agent.py

  def on_welcome(self, welcome: pb.Welcome) -> None:
    self.head = welcome.head
    if welcome.evicted:
      self.leases.clear()
      self.grants.clear()
      self.drop("evicted while it was silent")
      self.give_up()
      self.carry_out(self.round.withdraw())
    if welcome.start == pb.Welcome.START_INITIALISE:
      self.theta = GENESIS
      if self.carried:
        self.drop("its state was lost")
        self.give_up()
      self.feedback.clear()
      self.state = (0, self.theta)
      self.carry_out(self.round.stand(-1))
      self.say_state(0)
      self.read_log(0)
    elif welcome.start == pb.Welcome.START_RESTORE:
      self.forget()
    elif self.round.record is None:
      pass  # it waits for a state
    elif welcome.head > self.standing:
      self.read_log(self.standing + 1)
    else:
      self.ready()
    for request in self.unanswered.values():
      self.send(request)

  def give_up(self) -> None:
    """What it has trained and not committed is void."""
    self.feedback.withdraw()
    if self.proposed:
      self.world.invariants.gave_up.add((self.name, self.incarnation))
    for number in (self.window, *(window.number for window in self.carried)):
      self.grants.pop(number, None)
    self.carried, self.carries, self.proposed = [], 0, False
    self.training, self.waits = None, False
    self.in_run = False

  def forget(self) -> None:
    """What it stands at is of no use; a Restore follows."""
    if self.round.record is not None:
      self.stood = self.standing
    self.carry_out(self.round.withdraw())
    self.round.forget()
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

  def say_state(self, record: int) -> None:
    part = pb.Part(addresses=[self.address])
    blob = pb.Blob(id=self.theta, parts=[part])
    ready = pb.StateReady(record=record, state=blob)
    self.send(pb.FromIsland(state_ready=ready))

  def on_offer_state(self, _) -> None:
    self.world.offers += 1
    if self.round.record is not None and self.standing >= 0:
      self.state = (self.standing, self.theta)
      self.say_state(self.standing)

  def on_restore(self, restore: pb.Restore) -> None:
    def fetched() -> None:
      record = self.round.record
      if record is not None and record >= restore.record:
        return
      addresses = shares.addresses(restore.state)
      donor = self.world.serving(self, addresses)
      log = self.world.log_for(self)
      served = any(d.state == (restore.record, restore.state.id) for d in donor)
      if not served or len(log) <= restore.record:
        self.send(pb.FromIsland(fetch_failed=pb.FetchFailed(peer="donor")))
        return
      self.theta = restore.state.id
      self.disk.log = dict(enumerate(log[: restore.record + 1]))
      self.disk.synced = set(self.disk.log)
      self.take_over(self.stood if record is None else record)
      self.disk.save(restore.record, self.theta, self.feedback)
      self.drop("too far behind")
      self.give_up()
      self.carry_out(self.round.stand(restore.record))
      self.read_log(restore.record + 1)
      if pb.Record.FromString(log[restore.record].body).final:
        self.end()

    self.later(WORK, fetched)

  def on_recheck(self, recheck: pb.Recheck) -> None:
    """Replays the log, as rebuild.py does."""

    def replayed() -> None:
      if self.hung:
        self.on_recheck(recheck)
      elif self.round.record is not None and self.standing >= 0:
        self.send(pb.FromIsland(rechecked=self.recheck(recheck.right)))
        self.ready()
        self.train()

    self.later(WORK, replayed)

  def recheck(self, right: bytes) -> pb.Rechecked:
    disk, record = self.disk, self.standing
    answer = pb.Rechecked(record=record, state=self.theta)
    for start in rebuild.starts(disk.records(), self.name, disk.whole()):
      if start.checkpoint > record:
        continue
      reach, theta = disk.replay(start.checkpoint, record)
      saved = disk.saved[start.checkpoint][1]
      if reach < record or start.agreed not in (b"", saved):
        continue
      sure = bool(start.agreed) or theta == right
      if sure or not answer.rebuilt:
        answer.checkpoint, answer.rebuilt = start.checkpoint, theta
        answer.agreed, answer.mended = bool(start.agreed), sure
      if sure or not right:
        break
    answer.mended &= answer.rebuilt != self.theta
    if answer.mended:
      self.theta = answer.state = answer.rebuilt
      self.carry_out(self.round.withdraw())
      self.drop("its state was not what its log comes to")
      inside = self.in_run
      self.give_up()
      self.in_run = inside
    return answer

  def take_over(self, record: int | None) -> None:
    """Error feedback stays as far as the log has it, as in follow.py."""
    log = self.disk.log.values()
    records = [pb.Record.FromString(sealed.body) for sealed in log]
    for each in records:
      if record is None or each.number > record:
        self.settle(each)
    counting = {each.step.attempt for each in chain.effective(records)}
    if self.feedback.attempt not in counting:
      self.feedback.clear()

  def settle(self, record: pb.Record) -> None:
    """What a step makes of the code that it has proposed, as in holdings.py."""
    if not record.HasField("step"):
      return
    numbers = [window.number for window in self.carried]
    own = [m for m in record.step.members if m.island == self.name]
    included = self.proposed and any(
      m.incarnation == self.incarnation
      and [window.number for window in m.windows] == numbers
      for m in own
    )
    self.feedback.decide(record.step.attempt, included, lost=bool(own))

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
    self.in_run = True
    self.train()

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
    if self.ending:
      self.leave()
    self.done = True

  # ------------------------------------------------------------ training

  def train(self) -> None:
    busy = self.training or self.waits or self.proposed
    if busy or self.done or not self.in_run or self.hung:
      return
    if self.window + 1 in self.leases:
      self.begin()
    else:
      self.waits = True
      self.request()

  def request(self) -> None:
    """Asks for the samples of the next window."""
    request = pb.LeaseRequest(window=self.window + 1, samples=SAMPLES)
    message = pb.FromIsland(lease_request=request)
    self.unanswered[request.window] = message
    self.send(message)

  def on_lease_grant(self, grant: pb.LeaseGrant) -> None:
    self.unanswered.pop(grant.window, None)
    self.grants[grant.window] = self.leases[grant.window] = grant
    if self.waits and grant.window == self.window + 1:
      self.begin()

  def begin(self) -> None:
    """Trains on the next window, whose samples are leased."""
    self.waits, self.window = False, self.window + 1
    grant = self.leases.pop(self.window)
    leased = [(i.start, i.stop) for i in grant.samples]

    def end(early: bool) -> None:
      """Hands the window in; what it did not use goes back to the pool."""
      if self.training is not end or self.hung:
        return
      self.training = None
      few = early or self.world.random.random() < 0.2
      used = take(leased, 1 if few else SAMPLES)
      tokens = SAMPLE_TOKENS * sum(stop - start for start, stop in used)
      steps = tokens // SAMPLE_TOKENS  # of one sample each
      window = pb.Window(number=grant.window, steps=steps, tokens=tokens)
      for start, stop in used:
        window.samples.add(start=start, stop=stop)
      self.trained += tokens
      self.steps += 1
      holder = Holder(self.name, self.incarnation, grant.window)
      self.world.invariants.has_trained(holder, window)
      self.carried.append(window)
      if self.round.record is not None:
        self.propose()

    def half() -> None:
      """In mid-window it asks for the samples of the next one."""
      if self.training is end and not self.hung:
        self.request()

    self.training = end
    seconds = self.slowness * self.world.random.uniform(*WINDOW)
    self.later((seconds / 2, seconds / 2), half)
    self.later((seconds, seconds), lambda: end(early=False))

  def propose(self) -> None:
    about = self.name, self.incarnation, self.carried, self.theta
    blob_id = delta_id(*about, self.feedback.values)
    if self.world.codec.sparse:
      self.feedback.propose(left_by(blob_id))
    else:
      self.feedback.propose(NOTHING)
    self.blobs.add(blob_id)
    part = pb.Part(addresses=[self.address])
    proposal = pb.Proposal(
      base=self.standing,
      windows=self.carried,
      delta=pb.Blob(id=blob_id, length=self.length, parts=[part]),
      norm=norm(self.carried),
      base_state=self.theta,
      tokens_trained=self.trained,
    )
    self.proposed = True
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
        case round_lib.Cancel():
          self.work += 1
        case round_lib.Reduce(plan, index):
          self.start(lambda p=plan, i=index: self.reduce(p, i))
        case round_lib.Gather():
          gather = lambda a=action: self.gather(a)  # noqa: E731
          if action.late:
            self.later(WORK, gather)
          else:
            self.start(gather)
        case round_lib.Adopt(record, sealed):
          self.adopt(record, sealed)
        case round_lib.Keep(sealed):
          number = pb.Record.FromString(sealed.body).number
          self.disk.log[number] = sealed
        case round_lib.ReadLog(start):
          self.read_log(start)
        case round_lib.HandIn():
          if self.training is not None:
            self.training(True)
        case round_lib.Diverged(record, to):
          self.diverged(record, to)

  def start(self, work: Callable[[], None]) -> None:
    attempt = self.work
    long = LONG if self.world.random.random() < 0.1 else 1.0
    bounds = tuple(seconds * self.slowness * long for seconds in WORK)
    self.later(bounds, lambda: work() if self.work == attempt else None)

  def diverged(self, record: int, to: int) -> None:
    """Back to a state of its own that still counts, or to another's."""
    self.forget()
    back, theta = self.disk.restore(to)
    if back is None:
      failed = pb.FetchFailed(reason=f"record {record} was annulled")
      self.send(pb.FromIsland(fetch_failed=failed))
      return
    self.theta = theta
    self.world.invariants.gave_up.add((self.name, self.incarnation))
    self.feedback.restore(*self.disk.feedback(self.name, back))
    self.drop("its base was annulled")
    self.give_up()
    self.carry_out(self.round.stand(back))
    self.read_log(back + 1)

  def go_on(self) -> None:
    """The training thread moves again."""
    if self.training is not None:
      self.training(True)
    else:
      self.train()

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
      squared_norms=[norm(m.windows) ** 2 * part_of_all for m in plan.members],
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
    self.carry_out(self.round.gathered(action.attempt))

  def retry(self, number: int) -> None:
    self.carry_out(self.round.late_fetch_failed(number))

  def can_get(self, blob_id: bytes, addresses) -> bool:
    holders = self.world.serving(self, addresses)
    return blob_id in self.blobs or any(blob_id in h.blobs for h in holders)

  def adopt(self, record: pb.Record, sealed: pb.SealedRecord) -> None:
    self.theta = next_theta(self.theta, record)
    if not is_flipped(self.theta):
      self.world.invariants.check_adopted(sealed, self.theta)
    self.disk.log[record.number] = sealed
    disk, number = self.disk, record.number
    self.later(SYNC, lambda: disk.synced.add(number))
    self.settle(record)
    if record.number == 0 or self.world.random.random() < 0.5:
      self.disk.save(record.number, self.theta, self.feedback)
    if record.HasField("step"):
      self.decide(record)
    if record.final:
      self.end()
    elif self.in_run:
      self.train()
    else:
      self.ready()

  def decide(self, record: pb.Record) -> None:
    """A step moved theta: what was proposed is committed, or carried."""
    mine = [
      window.number
      for m in record.step.members
      if (m.island, m.incarnation) == (self.name, self.incarnation)
      for window in m.windows
    ]
    self.carries = self.carries + 1 if self.carried and not mine else 0
    self.carried = [w for w in self.carried if w.number not in mine]
    for number in mine:
      self.grants.pop(number, None)
    if self.carries > self.world.run.outer.max_carry:
      self.drop("carried too long")
      for window in self.carried:
        self.grants.pop(window.number, None)
      self.carried, self.carries = [], 0
    self.proposed = False

  def drop(self, cause: str) -> None:
    """Tells what it will not propose, after how much it has trained."""
    if self.carried:
      self.send_heartbeat()
      dropped = pb.Dropped(windows=self.carried, cause=cause)
      self.send(pb.FromIsland(dropped=dropped))

  def end(self) -> None:
    """Holds the final state: until it is known to be the others', it stays."""
    if not self.ending:
      self.ending = True
      self.say_end()

  def say_end(self) -> None:
    if not self.ending or self.done:
      return
    self.send_heartbeat()
    if self.round.record is not None:
      self.say_state(self.standing)
    self.later((1.0, 1.0), self.say_end)

  def leave(self) -> None:
    self.send_heartbeat()
    tokens = sum(window.tokens for window in self.carried)
    self.world.left_with[self.name, self.incarnation] = tokens
    self.send(pb.FromIsland(leave=pb.Leave(reason=LEFT)))
    self.done = True


def norm(windows) -> float:
  return 1.0 + sum(window.tokens for window in windows)
