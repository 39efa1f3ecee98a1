"""A run in one process: the real state machines over a network with a seed.

One Coordinator and several IslandRounds exchange real messages in virtual
time. What they mean is symbolic: a delta is the list of its windows, a mean is
a hash of what went into it, theta a hash of the means that moved it. So
"once", "the same bits" and "nothing lost" are exact, and are checked after
each event. The same seed gives the same run.
"""

import collections
from collections.abc import Callable
import dataclasses
import heapq
import itertools
import random

from blake3 import blake3

from intellect_jax import config as config_lib
from intellect_jax.elastic import coordination, rpc
from intellect_jax.elastic import round as round_lib
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder, Interval, merge, subtract

SAMPLES = 4  # a window
SAMPLE_TOKENS = 10
BLOCK_BYTES = 1024  # of the float32 codec
BLOCKS = 64
LATENCY = 0.001, 0.1  # seconds
WORK = 0.01, 0.6  # seconds that a reduction or a gathering takes
WINDOW = 0.5, 1.5  # seconds of training
LEASE = 2.0
PATIENCE = 1.0


def run_config(**elastic):
  """The run half for a simulated swarm."""
  run = config_lib.base().run
  run.tokens = 24 * SAMPLES * SAMPLE_TOKENS
  run.outer.codec = "float32"
  run.elastic.lease_seconds = LEASE
  run.elastic.fetch_patience = PATIENCE
  for name, value in elastic.items():
    run.elastic[name] = value
  return run


def hash_of(*parts) -> bytes:
  return blake3(repr(parts).encode()).digest()


GENESIS = hash_of("initial parameters")


def mean_id(members, start: int, stop: int, deltas: list[bytes]) -> bytes:
  """The mean of a share, as a symbol: who, with which weight, over what."""
  return hash_of(
    [(m.island, m.incarnation, m.weight, m.clip) for m in members],
    deltas,
    sum(m.weight for m in members),
    (start, stop),
  )


def delta_id(island: str, incarnation: int, windows, base: int) -> bytes:
  numbers = [window.number for window in windows]
  return hash_of("delta", island, incarnation, numbers, base)


class Link:
  """A control stream: both directions in order; cut, it loses what flies."""

  def __init__(self, world: "World", island: "Island", session: int):
    self.world = world
    self.island = island
    self.session = session
    self.dead = False
    self._free_at = {"up": 0.0, "down": 0.0}

  def _carry(self, direction: str, deliver: Callable[[], None]) -> None:
    world = self.world
    arrival = world.now + world.random.uniform(*LATENCY)
    self._free_at[direction] = max(arrival, self._free_at[direction])
    delay = self._free_at[direction] - world.now
    world.later(delay, lambda: None if self.dead else deliver())

  def up(self, message: pb.FromIsland) -> None:
    self._carry("up", lambda: self.world.heard(self.session, message))

  def down(self, message: pb.ToIsland) -> None:
    island = self.island
    self._carry("down", lambda: island.awake(lambda: island.hear(message)))

  def end(self) -> None:
    """The coordinator closes the stream, after what was sent on it."""
    self._carry("down", lambda: self.cut(notice=0.0))

  def cut(self, notice: float) -> None:
    """Either end notices within `notice` seconds, in any order."""
    if self.dead:
      return
    self.dead = True
    uniform, world = self.world.random.uniform, self.world
    world.later(uniform(0, notice), lambda: self.island.lost(self))
    world.later(uniform(0, notice), lambda: world.disconnected(self.session))


@dataclasses.dataclass
class Disk:
  """What an island has after a crash."""

  record: int | None = None  # of its checkpoint
  theta: bytes = b""
  log: dict[int, pb.SealedRecord] = dataclasses.field(default_factory=dict)
  means: set[bytes] = dataclasses.field(default_factory=set)


class Island:
  """One process of an island: the real round, symbolic training."""

  def __init__(self, world: "World", name: str, incarnation: int, disk: Disk):
    self.world = world
    self.name = name
    self.incarnation = incarnation
    self.disk = disk
    self.address = f"{name}.{incarnation}"
    self.process = hash_of(name, incarnation, world.random.random())
    self.alive = True
    self.done = False
    self.frozen_until = 0.0
    self.term = 0
    self.link: Link | None = None
    self.round = round_lib.IslandRound(name, disk.record)
    self.theta = disk.theta
    self.blobs = set(disk.means)
    self.state: tuple[int, bytes] | None = None  # that is served
    self.head = 0  # when it was welcomed
    self.in_run = False
    self.work = 0  # counts attempts, so that cancelled work shows
    self.window = 0
    self.training = False
    self.requested: pb.FromIsland | None = None
    self.carried: list[pb.Window] = []
    self.carries = 0
    self.proposed = False
    self.trained = 0
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
    if self.done or self.link is not None:
      return
    self.link = self.world.open_link(self)
    if self.link is None:
      self.later((0.2, 0.4), self.connect)
      return
    record = self.round.record
    hello = pb.Hello(
      protocol=rpc.PROTOCOL_VERSION,
      run_digest=self.world.digest,
      island=self.name,
      incarnation=self.incarnation,
      process=self.process,
      addresses=[self.address],
      has_state=record is not None and record >= 0,
    )
    if hello.has_state:
      hello.record = self.standing
      hello.record_hash = self.disk.log[self.standing].hash
    self.send(pb.FromIsland(hello=hello))

  def lost(self, link: Link) -> None:
    def notice() -> None:
      if self.link is link:
        self.link = None
        self.later((0.1, 0.3), self.connect)

    self.awake(notice)

  def send(self, message: pb.FromIsland) -> None:
    if self.link is not None:
      addressed = pb.FromIsland(term=self.term)
      addressed.MergeFrom(message)
      self.link.up(addressed)

  def beat(self) -> None:
    if not self.done:
      self.send_heartbeat()
      self.later((LEASE / 5, LEASE / 4), self.beat)

  def send_heartbeat(self) -> None:
    beat = pb.Heartbeat(tokens_trained=self.trained)
    beat.record = max(0, self.round.record or 0)
    self.send(pb.FromIsland(heartbeat=beat))

  def hear(self, message: pb.ToIsland) -> None:
    if message.term < self.term:
      return
    self.term = message.term
    kind = message.WhichOneof("message")
    getattr(self, f"on_{kind}")(getattr(message, kind))

  # -------------------------------------------------- joining, as agent.py

  def on_welcome(self, welcome: pb.Welcome) -> None:
    self.head = welcome.head
    if welcome.evicted:
      self.carried, self.proposed, self.training = [], False, False
      self.requested = None
      self.in_run = False
      self.carry_out(self.round.withdraw())
    if welcome.start == pb.Welcome.START_INITIALISE:
      self.theta = GENESIS
      self.state = (0, self.theta)
      self.carry_out(self.round.stand(-1))
      self.say_state(0)
      self.read_log(0)
    elif welcome.start == pb.Welcome.START_GO_ON:
      if welcome.head > self.standing:
        self.read_log(self.standing + 1)
      else:
        self.ready()
    if self.requested is not None:
      self.send(self.requested)

  @property
  def standing(self) -> int:
    """The record that it stands at; it has one."""
    assert self.round.record is not None
    return self.round.record

  def say_state(self, record: int) -> None:
    part = pb.Part(addresses=[self.address])
    blob = pb.Blob(id=self.theta, parts=[part])
    self.send(
      pb.FromIsland(state_ready=pb.StateReady(record=record, state=blob))
    )

  def on_offer_state(self, _) -> None:
    self.world.offers += 1
    self.state = (self.standing, self.theta)
    self.say_state(self.standing)

  def on_restore(self, restore: pb.Restore) -> None:
    def fetched() -> None:
      if self.round.record is not None:
        return
      donor = self.world.serving(self, restore.state.parts[0].addresses)
      if not any(d.state == (restore.record, restore.state.id) for d in donor):
        self.send(pb.FromIsland(fetch_failed=pb.FetchFailed(peer="donor")))
        return
      self.theta = restore.state.id
      self.disk.record, self.disk.theta = restore.record, self.theta
      self.disk.log[restore.record] = self.world.log[restore.record]
      self.carry_out(self.round.stand(restore.record))
      self.read_log(restore.record + 1)

    self.later(WORK, fetched)

  def read_log(self, start: int) -> None:
    def answered() -> None:
      if self.world.coordinator is None:
        return
      log, holders = self.world.log, self.world.coordinator.holders()
      sealed = [
        pb.SealedRecord(body=s.body, hash=s.hash, holders=holders)
        for s in log[start:]
      ]
      self.carry_out(self.round.committed(sealed))
      self.ready()

    self.later(LATENCY, answered)

  def ready(self) -> None:
    """Caught up with what was the head when it was welcomed."""
    record = self.round.record
    if record is None or record < max(self.head, 0):
      return
    self.send(pb.FromIsland(ready=pb.Ready(record=record)))
    self.carry_out(self.round.reconnected())
    self.in_run = True
    self.train()

  def on_refusal(self, refusal: pb.Refusal) -> None:
    raise AssertionError(f"{self.name} was refused: {refusal.reason}")

  def on_finished(self, _) -> None:
    self.done = True

  # ------------------------------------------------------------ training

  def train(self) -> None:
    if self.training or self.proposed or self.done or not self.in_run:
      return
    self.training = True
    self.window += 1
    request = pb.LeaseRequest(window=self.window, samples=SAMPLES)
    self.requested = pb.FromIsland(lease_request=request)
    self.send(self.requested)

  def on_lease_grant(self, grant: pb.LeaseGrant) -> None:
    if self.requested is None or grant.window != self.window:
      return
    self.requested = None

    def trained() -> None:
      if not self.training or grant.window != self.window:
        return
      used = list(grant.samples)
      if self.world.random.random() < 0.2:  # the rest goes back to the pool
        used = used[:1]
      samples = sum(i.stop - i.start for i in used)
      tokens = samples * SAMPLE_TOKENS
      window = pb.Window(number=self.window, tokens=tokens, samples=used)
      self.trained += tokens
      self.world.trained[self.holder(window)] = window
      self.carried.append(window)
      self.training = False
      self.propose()

    self.later(WINDOW, trained)

  def holder(self, window: pb.Window) -> Holder:
    return Holder(self.name, self.incarnation, window.number)

  def propose(self) -> None:
    base = self.standing
    blob_id = delta_id(self.name, self.incarnation, self.carried, base)
    self.blobs.add(blob_id)
    part = pb.Part(addresses=[self.address])
    proposal = pb.Proposal(
      base=base,
      windows=self.carried,
      delta=pb.Blob(id=blob_id, length=BLOCKS * BLOCK_BYTES, parts=[part]),
      norm=norm(self.carried),
      base_state=self.theta,
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
        case round_lib.ReadLog(start):
          self.read_log(start)
        case round_lib.Diverged(record):
          raise AssertionError(f"{self.name} stands at void record {record}")

  def start(self, work: Callable[[], None]) -> None:
    attempt = self.work
    self.later(WORK, lambda: work() if self.work == attempt else None)

  def fail(self, attempt: bytes, peer: str) -> None:
    """Nothing came from `peer`, until patience ran out."""
    patience = (PATIENCE, PATIENCE)
    self.later(
      patience, lambda: self.carry_out(self.round.failed(attempt, peer, "cut"))
    )

  def reduce(self, plan: pb.Plan, index: int) -> None:
    share = plan.shares[index]
    for member in plan.members:
      if not self.can_get(member.delta.id, round_lib.addresses(member.delta)):
        self.fail(plan.attempt, member.island)
        return
    deltas = [member.delta.id for member in plan.members]
    blob_id = mean_id(plan.members, share.start, share.stop, deltas)
    self.blobs.add(blob_id)
    length = (share.stop - share.start) * BLOCK_BYTES
    part = pb.Part(addresses=[self.address])
    report = pb.ShareReduced(
      attempt=plan.attempt,
      share=index,
      mean=pb.Blob(id=blob_id, length=length, parts=[part]),
      squared_norms=[
        norm(m.windows) ** 2 * (share.stop - share.start) / BLOCKS
        for m in plan.members
      ],
    )
    self.carry_out(self.round.reduced(report))

  def gather(self, action: round_lib.Gather) -> None:
    for share in action.shares:
      sources = [*round_lib.addresses(share.mean), *action.holders]
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
    self.world.check_adopted(self, record, sealed)
    self.disk.log[record.number] = sealed
    if record.number == 0 or self.world.random.random() < 0.5:
      self.disk.record, self.disk.theta = record.number, self.theta
    mine = [
      window.number
      for m in record.step.members
      if (m.island, m.incarnation) == (self.name, self.incarnation)
      for window in m.windows
    ]
    if self.carried and not mine:
      self.carries += 1
    else:
      self.carries = 0
    self.carried = [w for w in self.carried if w.number not in mine]
    if self.carries > self.world.run.outer.max_carry:
      dropped = pb.Dropped(windows=self.carried, cause="carried too long")
      self.send(pb.FromIsland(dropped=dropped))
      self.carried, self.carries = [], 0
    self.proposed = False
    if record.final:
      self.leave()
    elif self.in_run:
      self.train()
    else:
      self.ready()

  def leave(self) -> None:
    self.send_heartbeat()
    self.say_state(self.standing)
    self.send(pb.FromIsland(leave=pb.Leave(reason="the run is over")))
    self.done = True


def norm(windows) -> float:
  return 1.0 + sum(window.tokens for window in windows)


def next_theta(theta: bytes, record: pb.Record) -> bytes:
  if not record.HasField("step"):
    return theta
  return hash_of(theta, [share.mean.id for share in record.step.shares])


class World:
  """The network, the clock, the coordinator's disk, and what must be true."""

  def __init__(self, seed: int, islands: int = 3, **elastic):
    self.random = random.Random(seed)
    self.now = 0.0
    self.run = run_config(**elastic)
    self.digest = config_lib.digest(self.run)
    self._events: list[tuple[float, int, Callable[[], None]]] = []
    self._counter = itertools.count()
    self._sessions = itertools.count(1)
    self._links: dict[int, Link] = {}
    self.cut_pairs: set[frozenset[str]] = set()
    self._last_sent: str | None = ""
    self.crash_in: int | None = None  # actions until the coordinator dies
    self.offers = 0  # times that somebody was asked for its state
    # The coordinator's disk.
    self.term = 0
    self.log: list[pb.SealedRecord] = []
    self.leases: dict[Holder, list[Interval]] = {}
    self.losses: list[pb.Loss] = []
    self.evaluations: dict[int, float] = {}
    # What the checks remember.
    self.trained: dict[Holder, pb.Window] = {}
    self.committed: set[Holder] = set()
    self.settled: collections.Counter = collections.Counter()
    self.samples: list[Interval] = []
    self.thetas: list[bytes] = []  # after each record
    self.fixed: dict[bytes, list[bytes]] = {}
    self.coordinator: coordination.Coordinator | None = None
    self.start_coordinator()
    self.islands = [
      Island(self, name, 1, Disk()) for name in "abcdefgh"[:islands]
    ]
    self._tick()

  # ----------------------------------------------------------- the clock

  def later(self, delay: float, call: Callable[[], None]) -> None:
    entry = (self.now + delay, next(self._counter), call)
    heapq.heappush(self._events, entry)

  def advance(self, seconds: float, until: str = "") -> None:
    """Lets happen what happens in the next `seconds`.

    Stops early when the coordinator sends a message of the kind `until`.
    """
    end = self.now + seconds
    self._last_sent = ""
    while self._events and self._events[0][0] <= end and not self.over():
      self.now, _, call = heapq.heappop(self._events)
      call()
      if until and self._last_sent == until:
        return
    self.now = max(self.now, end)

  def over(self) -> bool:
    return self.coordinator is not None and self.coordinator.done()

  # ----------------------------------------------------- the coordinator

  def start_coordinator(self) -> None:
    if self.coordinator is not None:
      return
    self.term += 1
    history = coordination.History(
      "run",
      self.term,
      list(self.log),
      dict(self.leases),
      list(self.losses),
      dict(self.evaluations),
    )
    self.coordinator = coordination.Coordinator(self.run, history, self.now)

  def kill_coordinator(self) -> None:
    self.coordinator = None
    self.crash_in = None
    for link in list(self._links.values()):
      link.cut(notice=0.1)
    self._links.clear()

  def open_link(self, island: Island) -> Link | None:
    if self.coordinator is None:
      return None
    link = Link(self, island, next(self._sessions))
    self._links[link.session] = link
    return link

  def _tick(self) -> None:
    if self.coordinator is not None:
      self.carry_out(self.coordinator.tick(self.now))
    self.later(0.1, self._tick)

  def heard(self, session: int, message: pb.FromIsland) -> None:
    if self.coordinator is not None:
      self.carry_out(self.coordinator.handle(session, message, self.now))

  def disconnected(self, session: int) -> None:
    if self._links.pop(session, None) and self.coordinator is not None:
      self.carry_out(self.coordinator.disconnected(session, self.now))

  def carry_out(self, actions: list[coordination.Action]) -> None:
    for action in actions:
      if self.crash_in is not None:
        self.crash_in -= 1
        if self.crash_in < 0:
          self.kill_coordinator()
          return
      match action:
        case coordination.Send(session, message):
          self._sent(message)
          if session in self._links:
            self._links[session].down(message)
        case coordination.Close(session):
          if session in self._links:
            self._links[session].end()
        case coordination.Append(record, sealed):
          self.check_appended(record, sealed)
          self.log.append(sealed)
          for member in record.step.members:
            for window in member.windows:
              holder = Holder(member.island, member.incarnation, window.number)
              self.leases.pop(holder, None)
        case coordination.SaveLease(holder, samples):
          self.leases[holder] = list(samples)
        case coordination.EndLeases(holders, loss):
          for holder in holders:
            self.leases.pop(holder, None)
          if loss is not None:
            self._lost(loss)
        case coordination.SaveEvaluation(record, loss):
          self.evaluations[record] = loss
        case coordination.Stop(reason):
          raise AssertionError(reason)

  # ------------------------------------------------------------- islands

  def serving(self, reader: Island, addresses) -> list[Island]:
    """Islands at these addresses that `reader` can fetch from just now."""
    return [
      island
      for island in self.islands
      if island.address in addresses
      and island.alive
      and self.now >= island.frozen_until
      and frozenset((island.name, reader.name)) not in self.cut_pairs
    ]

  def kill(self, index: int) -> None:
    island = self.islands[index]
    island.alive = False
    if island.link is not None:
      island.link.cut(notice=1.0)

  def restart(self, index: int, empty: bool = False) -> None:
    """Starts another process of a dead island, with its workdir or without."""
    old = self.islands[index]
    if old.alive:
      return
    # Somebody must have kept everything: else the run is lost, rightly.
    others = [island for island in self.islands if island is not old]
    kept = any(len(self.log) - 1 in other.disk.log for other in others)
    disk = Disk() if empty and kept else old.disk
    new = Island.__new__(Island)
    self.islands[index] = new
    new.__init__(self, old.name, old.incarnation + 1, disk)

  # -------------------------------------------------------- what is true

  def _sent(self, message: pb.ToIsland) -> None:
    """Notes each fix: an attempt has one mean and no other."""
    self._last_sent = message.WhichOneof("message")
    if message.WhichOneof("message") == "fix":
      means = [mean.id for mean in message.fix.means]
      known = self.fixed.setdefault(message.fix.attempt, means)
      assert known == means, "an attempt was fixed twice, to different bytes"
    if message.WhichOneof("message") == "record":
      hashes = {sealed.hash for sealed in self.log}
      assert message.record.hash in hashes, "announced before it was durable"

  def check_appended(self, record: pb.Record, sealed: pb.SealedRecord) -> None:
    """One chain; every window once; every sample once; only fixed means."""
    assert record.number == len(self.log)
    assert record.previous == (self.log[-1].hash if self.log else b"")
    assert sealed.hash == blake3(sealed.body).digest()
    step = record.step
    if record.HasField("step"):
      means = [share.mean.id for share in step.shares]
      assert means == self.fixed[step.attempt]
      deltas = [
        delta_id(m.island, m.incarnation, m.windows, step.base)
        for m in step.members
      ]
      assert means == [
        mean_id(step.members, s.start, s.stop, deltas) for s in step.shares
      ], "the divisor or the members of the mean are not those of the record"
      for member in step.members:
        tokens = sum(window.tokens for window in member.windows)
        assert member.weight == tokens > 0
      assert any(set(means) <= island.disk.means for island in self.islands), (
        "committed before anyone held the mean"
      )
      assert step.base == record.number - 1
      assert step.base_state == self.thetas[step.base]
    for member in step.members:
      for window in member.windows:
        holder = Holder(member.island, member.incarnation, window.number)
        assert holder not in self.committed, f"{holder} is committed twice"
        assert window == self.trained[holder]
        self.committed.add(holder)
        self._settle(holder[:2], window.tokens)
        for interval in window.samples:
          sample = [(interval.start, interval.stop)]
          assert subtract(sample, self.samples) == sample, "a sample again"
          self.samples = merge([*self.samples, *sample])
    theta = self.thetas[-1] if self.thetas else GENESIS
    self.thetas.append(next_theta(theta, record))

  def check_adopted(
    self, island: Island, record: pb.Record, sealed: pb.SealedRecord
  ) -> None:
    """What an island adopts is durable, and moves it to the one state."""
    assert sealed.hash == self.log[record.number].hash
    assert island.theta == self.thetas[record.number]

  def _lost(self, loss: pb.Loss) -> None:
    self.losses.append(loss)
    self._settle((loss.island, loss.incarnation), loss.tokens)

  def _settle(self, process: tuple[str, int], tokens: int) -> None:
    """No token is both committed and lost, or lost twice."""
    self.settled[process] += tokens
    trained = sum(w.tokens for h, w in self.trained.items() if h[:2] == process)
    assert self.settled[process] <= trained, f"{process}: settled twice"

  def describe(self) -> str:
    """Where the run stands, for a failing seed."""
    if self.coordinator is None:
      return f"t={self.now:.1f}: no coordinator"
    status = self.coordinator.status(self.now)
    states = {i.island: (i.state, i.heartbeat.record) for i in status.islands}
    return (
      f"t={self.now:.1f}: record {status.record}, {status.total_tokens} of"
      f" {status.run_tokens} tokens, {status.phase}; {states}"
    )
