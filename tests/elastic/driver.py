"""Drives a coordinator's state machine as islands and a clock would."""

from simulation.world import run_config

from intellect_jax import config as config_lib
from intellect_jax.elastic import rpc
from intellect_jax.elastic.actions import (
  Append,
  CoordinatorAction,
  EndLeases,
  SaveLease,
  SaveLosses,
  Tell,
)
from intellect_jax.elastic.books import History
from intellect_jax.elastic.coordination import Coordinator
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder

TOKENS = 40  # a window
BLOCK = 64 * 1024  # bytes of a delta, a 64th of it


class Driver:
  """A coordinator, its disk, and islands that say what a test tells them."""

  def __init__(self, **elastic):
    self.run = run_config(**elastic)
    self.now = 0.0
    self.log: list[pb.SealedRecord] = []
    self.leases = {}
    self.losses: list[pb.Loss] = []
    self.term = 0
    self.norms: dict[str, float] = {}  # of deltas, other than 2
    self.links: dict[str, tuple[float, float]] = {}  # bytes/s up and down
    self.kept: dict[str, tuple[int, list[int]]] = {}  # record, checkpoints
    self.sessions: dict[str, int] = {}
    self.incarnations: dict[str, int] = {}
    self.trained: dict[str, int] = {}
    self.sent: dict[str, list[pb.ToIsland]] = {}
    self.restart()

  def restart(self) -> None:
    self.term += 1
    history = History(
      "run", self.term, list(self.log), dict(self.leases), list(self.losses)
    )
    self.machine = Coordinator(self.run, history, self.now)

  def act(self, actions) -> list[CoordinatorAction]:
    """Carries actions out, in order, as service.py does."""
    for action in actions:
      match action:
        case Tell(session, message):
          for island, open_session in self.sessions.items():
            if session == open_session:
              self.sent.setdefault(island, []).append(message)
        case Append(record, sealed):
          self.log.append(sealed)
          for member in record.step.members:
            for window in member.windows:
              self.leases.pop(
                Holder(member.island, member.incarnation, window.number), None
              )
        case SaveLease(holder, samples):
          self.leases[holder] = samples
        case EndLeases(holders, loss):
          for holder in holders:
            self.leases.pop(holder, None)
          self.losses.extend([loss] if loss is not None else [])
        case SaveLosses(losses):
          self.losses = list(losses)
    return actions

  def say(self, island: str, term: int = 0, **message):
    message = pb.FromIsland(term=term, **message)
    session = self.sessions[island]
    return self.act(self.machine.handle(session, message, self.now))

  def tick(self, seconds: float = 0.0):
    self.now += seconds
    return self.act(self.machine.tick(self.now))

  def wait(self, seconds: float, beating: str = "") -> None:
    """Time passes; islands in `beating` are heard, the others are not."""
    end = self.now + seconds
    while self.now < end:
      for island in beating:
        self.beat(island)
      self.tick(0.25)

  def beat(self, island: str) -> None:
    trained = self.trained.get(island, 0)
    up, down = self.links.get(island, (0.0, 0.0))
    beat = pb.Heartbeat(
      tokens_trained=trained, upload_rate=up, download_rate=down
    )
    if island in self.kept:
      beat.record, checkpoints = self.kept[island]
      beat.checkpoints.extend(checkpoints)
    self.say(island, heartbeat=beat)

  def hello(self, island: str, incarnation: int = 1, record=None, **fields):
    """Opens a new stream; `record` is what the island stands at, if any."""
    self.incarnations[island] = incarnation
    self.sessions[island] = 1 + max(self.sessions.values(), default=0)
    hello = pb.Hello(
      protocol=rpc.PROTOCOL_VERSION,
      run_digest=config_lib.digest(self.run),
      island=island,
      incarnation=incarnation,
      process=b"%s%d" % (island.encode(), incarnation),
      addresses=[f"{island}:{incarnation}"],
    )
    if record is not None:
      hello.has_state, hello.record = True, record
      hello.record_hash = fields.pop("record_hash", "") or (
        self.log[record].hash
      )
    hello.MergeFrom(pb.Hello(**fields))
    return self.say(island, hello=hello)

  def cut(self, island: str) -> None:
    session = self.sessions[island]
    self.act(self.machine.disconnected(session, self.now))

  def take(self, island: str, kind: str):
    """The messages of a kind that came to an island since the last look."""
    messages = self.sent.get(island, [])
    found = [m for m in messages if m.WhichOneof("message") == kind]
    self.sent[island] = [m for m in messages if m not in found]
    return [getattr(m, kind) for m in found]

  def begin(self, islands: str) -> None:
    """The first makes record 0, the others restore it; all are in."""
    for island in islands:
      self.hello(island)
    self.offer(islands[0])
    for island in islands:
      self.say(island, ready=pb.Ready(record=0))
      self.sent[island] = []

  def control(self, **change) -> pb.ControlReply:
    request = pb.ControlRequest(**change)
    reply, actions = self.machine.control(request, self.now)
    self.act(actions)
    return reply

  @property
  def state(self) -> bytes:
    """The hash of theta and b at the newest record."""
    return b"theta%d" % self.machine.books.chain.state

  def offer(self, island: str, state: bytes = b"") -> None:
    part = pb.Part(addresses=[island])
    blob = pb.Blob(id=state or self.state, parts=[part])
    ready = pb.StateReady(record=self.machine.head.number, state=blob)
    self.say(island, state_ready=ready)

  def propose(self, islands: str, window: int = 1, state: bytes = b"") -> None:
    for island in islands:
      self.say(island, lease_request=pb.LeaseRequest(window=window, samples=4))
      (grant,) = self.take(island, "lease_grant")
      self.trained[island] = self.trained.get(island, 0) + TOKENS
      self.beat(island)
      done = pb.Window(number=window, tokens=TOKENS, samples=grant.samples)
      self.repeat(island, [done], state)

  def repeat(self, island: str, windows, state: bytes = b"") -> None:
    part = pb.Part(addresses=[f"{island}:1"])
    proposal = pb.Proposal(
      base=self.machine.head.number,
      windows=windows,
      delta=pb.Blob(id=island.encode(), length=64 * BLOCK, parts=[part]),
      norm=self.norms.get(island, 2.0),
      base_state=state or self.state,
    )
    self.say(island, proposal=proposal)

  def reduce(self, islands: str) -> bytes:
    """Owners report; returns the attempt."""
    for island in islands:
      plan = self.take(island, "plan")[-1]
      share = [s.owner for s in plan.shares].index(island)
      report = pb.ShareReduced(
        attempt=plan.attempt,
        share=share,
        mean=pb.Blob(id=b"mean" + island.encode()),
        squared_norms=[4.0 / len(plan.shares)] * len(plan.members),
      )
      self.say(island, share_reduced=report)
    return plan.attempt

  def prepare(self, islands: str, attempt: bytes):
    for island in islands:
      actions = self.say(island, prepared=pb.Prepared(attempt=attempt))
    return actions

  def commit(self, islands: str, window: int = 1) -> pb.Record:
    self.propose(islands, window)
    self.prepare(islands, self.reduce(islands))
    return self.machine.head


def asked(driver: Driver, islands: str) -> list[str]:
  """Those that were asked for their state since the last look."""
  return [i for i in islands for _ in driver.take(i, "offer_state")]


def donors_in(restore: pb.Restore) -> list[str]:
  return [a for part in restore.state.parts for a in part.addresses]


def lost(driver: Driver) -> int:
  return sum(loss.tokens for loss in driver.losses)


# ------------------------------------------------------------------ rounds
