"""An island of the simulation: the real round, symbolic training and means."""

from collections.abc import Callable
import itertools
from typing import TYPE_CHECKING

from intellect_jax.elastic import chain, rebuild, rpc
from intellect_jax.elastic import round as round_lib
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.feedback import ErrorFeedback
from simulation.disk import Disk
from simulation.exchange import WORK, Exchange
from simulation.symbols import NOTHING, Theta, genesis, hash_of, replaced, whole
from simulation.training import Training

if TYPE_CHECKING:
  from simulation.world import Stream, World

# Bytes/s, of links so unlike that shares are too; 0: not known yet.
UPLOAD = dict(zip("abcdefgh", itertools.cycle([1e7, 2e6, 0.0])))
LEFT = "the run is over"
SYNC = 0.01, 1.0  # seconds until what was written outlives a power loss


class Island:
  """One process of an island.

  Attributes:
    theta: by fragment.
    held: record that it stands at; the round may know of newer ones.
  """

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
    self.theta: Theta
    standing, self.theta = disk.restore()
    self.held = -1 if standing is None else standing
    self.feedback = ErrorFeedback(NOTHING, world.run.outer.feedback)
    if standing is not None:
      self.feedback.restore(*disk.feedback(name, standing))
    self.round = round_lib.IslandRound(name, standing)
    self.stood: int | None = standing  # also while what it holds is of no use
    self.exchange = Exchange(self)
    self.state: tuple[int, Theta] | None = None  # that is served
    self.head = 0  # when it was welcomed
    self.in_run = False
    self.said_ready = False  # since it was welcomed
    self.training = Training(self)
    self.training.follow()
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
    self.say_hello()

  def say_hello(self) -> None:
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
      tokens_trained=self.training.windows.tokens_trained,
      tokens_open=self.training.windows.tokens_uncommitted,
      leases=self.training.grants.values(),
    )
    if hello.has_state:
      hello.record = hello.head = self.round.record or 0
      hello.record_hash = self.disk.log[hello.record].hash
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
    busy = self.training.busy or self.hung
    beat = pb.Heartbeat(
      tokens_trained=self.training.windows.tokens_trained,
      step=self.training.windows.steps,
      window=self.training.window,
      activity="training" if busy else "waiting",
      hand_in_seconds=0.1,
      upload_rate=UPLOAD[self.name],
      download_rate=1e7,
    )
    beat.record = max(0, self.held) if self.standing else 0
    beat.checkpoints.extend(sorted(self.disk.saved))
    self.send(pb.FromIsland(heartbeat=beat))

  def hear(self, message: pb.ToIsland) -> None:
    if message.term < self.disk.term:
      return
    self.disk.term = message.term
    kind = message.WhichOneof("message")
    getattr(self, f"on_{kind}")(getattr(message, kind))

  # -------------------------------------------------- joining, as agent.py

  def on_welcome(self, welcome: pb.Welcome) -> None:
    self.head, self.said_ready = welcome.head, False
    if welcome.evicted:
      self.training.leases_ended()
      self.give_up("evicted while it was silent")
      self.carry_out(self.round.withdraw())
    if welcome.start == pb.Welcome.START_INITIALISE:
      if self.training.windows.tokens_uncommitted:
        self.give_up("its state was lost")
      if self.round.record != -1:  # if it stands at one, of another chain
        self.forget()
      self.stand(-1, genesis(self.world.fragments))
      self.feedback.clear()
      self.state = (0, self.theta)
      self.carry_out(self.round.stand(-1))
      self.say_state(0)
      self.read_log(0)
    elif welcome.start == pb.Welcome.START_RESTORE:
      self.forget()
    elif welcome.start == pb.Welcome.START_GO_BACK:
      self.go_back()
    elif self.round.record is None:
      pass  # it waits for a state
    elif welcome.head > self.round.record:
      self.read_log(self.round.record + 1)
    else:
      self.ready()
    for request in self.training.unanswered.values():
      self.send(request)

  def give_up(self, cause: str) -> None:
    """What it has trained and not committed is void."""
    self.training.give_up(cause)
    self.in_run = False

  def forget(self) -> None:
    """What it stands at is of no use; a Restore follows."""
    if self.round.record is not None:
      self.stood = self.held
    self.carry_out(self.round.withdraw())
    self.round.forget()
    self.training.adopted.clear()
    self.in_run = False

  @property
  def standing(self) -> bool:
    """Whether it has a state that may be the run's."""
    return self.round.record is not None

  def stand(self, record: int, theta: Theta) -> None:
    """It holds the state of a record, and x is theta."""
    self.held, self.theta = record, theta
    self.training.follow()

  def say_state(self, record: int) -> None:
    part = pb.Part(addresses=[self.address])
    blob = pb.Blob(id=whole(self.theta), parts=[part])
    ready = pb.StateReady(record=record, state=blob)
    if self.world.fragments > 1:
      ready.fragments.extend(self.theta)
    self.send(pb.FromIsland(state_ready=ready))

  def on_offer_state(self, _) -> None:
    self.world.offers += 1
    if self.standing and self.held >= 0:
      self.state = (self.held, self.theta)
      self.say_state(self.held)

  def on_restore(self, restore: pb.Restore) -> None:
    def fetched() -> None:
      self.training.merge(early=True)
      if self.standing and self.held >= restore.record:
        return
      theta = self.world.served(self, restore)
      log = self.world.log_for(self)
      if theta is None or len(log) <= restore.record:
        self.send(pb.FromIsland(fetch_failed=pb.FetchFailed(peer="donor")))
        return
      self.disk.log = dict(enumerate(log[: restore.record + 1]))
      self.disk.synced = set(self.disk.log)
      self.take_over(self.held if self.standing else self.stood)
      self.stand(restore.record, theta)
      self.disk.save(restore.record, self.theta, self.feedback)
      self.give_up("too far behind")
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
      elif self.standing and self.held >= 0:
        self.training.merge(early=True)
        self.send(pb.FromIsland(rechecked=self.recheck(recheck)))
        self.ready()
        self.training.go_on()

    self.later(WORK, replayed)

  def recheck(self, wanted: pb.Recheck) -> pb.Rechecked:
    disk, record, right = self.disk, self.held, wanted.right
    fragment, held = wanted.fragment, self.theta[wanted.fragment]
    answer = pb.Rechecked(record=record, fragment=fragment, state=held)
    checkpoints, records = disk.whole(), disk.records()
    for start in rebuild.starts(records, self.name, checkpoints, fragment):
      if start.checkpoint > record:
        continue
      reach, theta = disk.replay(start.checkpoint, record)
      saved = disk.saved[start.checkpoint][1]
      if reach < record or start.agreed not in (b"", saved[fragment]):
        continue
      sure = bool(start.agreed) or theta[fragment] == right
      if sure or not answer.rebuilt:
        answer.checkpoint, answer.rebuilt = start.checkpoint, theta[fragment]
        answer.agreed, answer.mended = bool(start.agreed), sure
      if sure or not right:
        break
    answer.mended &= answer.rebuilt != held
    if answer.mended:
      answer.state = answer.rebuilt
      self.theta = replaced(self.theta, fragment, answer.rebuilt)
      self.carry_out(self.round.withdraw())
      inside = self.in_run
      self.give_up("its state was not what its log comes to")
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
    own = any(m.island == self.name for m in record.step.members)
    included = self.training.includes(record.step)
    self.feedback.decide(record.step.attempt, included, lost=own)

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
    self.in_run = self.said_ready = True
    self.training.go_on()

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

  def on_lease_grant(self, grant: pb.LeaseGrant) -> None:
    self.training.granted(grant)

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
        case round_lib.Adopt(record, sealed):
          self.adopt(record, sealed)
        case round_lib.Keep(sealed):
          number = pb.Record.FromString(sealed.body).number
          self.disk.log[number] = sealed
        case round_lib.ReadLog(start):
          self.read_log(start)
        case round_lib.HandIn(number, fragment):
          self.training.hand_in(number, fragment)
        case round_lib.Diverged(record, to):
          self.diverged(record, to)
        case _:
          self.exchange.carry_out(action)

  def diverged(self, record: int, to: int) -> None:
    """Back to a state of its own that still counts, or to another's."""
    self.forget()
    back, theta = self.disk.restore(to)
    if back is None:
      failed = pb.FetchFailed(reason=f"record {record} was annulled")
      self.send(pb.FromIsland(fetch_failed=failed))
      return
    self.stand(back, theta)
    self.world.invariants.gave_up.add((self.name, self.incarnation))
    self.feedback.restore(*self.disk.feedback(self.name, back))
    self.give_up("its base was annulled")
    self.carry_out(self.round.stand(back))
    self.read_log(back + 1)

  def go_back(self) -> None:
    """What it had is not the run's: to the newest of its own that is."""
    self.forget()

    def read() -> None:
      log = self.world.log_for(self)
      if self.round.record is not None or not log:
        return
      records = [pb.Record.FromString(sealed.body) for sealed in log]
      counting = {each.number for each in chain.effective(records)}
      common = -1
      for number, sealed in enumerate(log):
        own = self.disk.log.get(number)
        if own is None or own.hash != sealed.hash:
          break
        common = number if number in counting else common
      kept = {n: s for n, s in self.disk.log.items() if n <= common}
      self.disk.log = kept
      self.diverged(-1, common)
      self.say_hello()

    self.later(self.world.latency, read)

  def unhang(self) -> None:
    """The training thread moves again."""
    if self.training.busy:
      self.training.hurry()
    else:
      self.training.go_on()

  def adopt(self, record: pb.Record, sealed: pb.SealedRecord) -> None:
    """A record is committed, and its mean is here."""
    disk, number = self.disk, record.number
    disk.log[number] = sealed
    self.later(SYNC, lambda: disk.synced.add(number))
    self.training.adopt(record)
    if record.final and self.held == number:
      pass  # it has ended
    elif self.in_run and (self.said_ready or self.world.fragments == 1):
      self.training.go_on()
    else:  # of other fragments it may have to say proposals again
      self.ready()

  def end(self) -> None:
    """Holds the final state: until it is known to be the others', it stays."""
    if not self.ending:
      self.ending = True
      self.say_end()

  def say_end(self) -> None:
    if not self.ending or self.done:
      return
    self.send_heartbeat()
    if self.standing:
      self.say_state(self.held)
    self.later((1.0, 1.0), self.say_end)

  def leave(self) -> None:
    self.send_heartbeat()
    tokens = self.training.windows.tokens_uncommitted
    self.world.left_with[self.name, self.incarnation] = tokens
    self.send(pb.FromIsland(leave=pb.Leave(reason=LEFT)))
    self.done = True
