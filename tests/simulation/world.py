"""The clock and the network of a simulated run."""

from collections.abc import Callable, Mapping
import heapq
import itertools
import random
import types
from typing import Any

from intellect_jax import config as config_lib
from intellect_jax.elastic import shares
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer import overlap
from intellect_jax.outer.codec import make_codec
from simulation.disk import Disk
from simulation.invariants import Invariants
from simulation.island import Island
from simulation.seat import Seat
from simulation.symbols import STEP_TOKENS, Theta, whole
from simulation.training import SAMPLES

TICK = 0.1  # seconds, as in service.py
WINDOWS = 10  # that a run commits
_IDEMPOTENT = frozenset(
  [
    "heartbeat",
    "ready",
    "lease_request",
    "lease_grant",
    "proposal",
    "plan",
    "share_reduced",
    "fix",
    "prepared",
    "record",
    "dropped",
  ]
)
_BASE = config_lib.base().run


def run_config(
  windows: int = 24,
  sparse: bool = False,
  outer: Mapping[str, Any] = types.MappingProxyType({}),
  **elastic,
):
  """The run half for a simulated swarm."""
  run = _BASE.copy_and_resolve_references()
  run.tokens = windows * SAMPLES * STEP_TOKENS
  run.outer.update(codec="float32", **outer)
  if sparse:
    run.outer.update(codec="sparse2", learning_rate=1, momentum=0.0)
  run.elastic.lease_seconds = 2.0
  run.elastic.fetch_patience = 1.0
  for name, value in elastic.items():
    run.elastic[name] = value
  return run


class Stream:
  """A control stream: both directions in order; cut, it loses what flies.

  What a state machine must bear twice, it now and then gets twice.
  """

  def __init__(self, world: "World", island: Island, seat: Seat, session: int):
    self.world = world
    self.island = island
    self.seat = seat
    self.session = session
    self.dead = False
    self._free_at = {"up": 0.0, "down": 0.0}

  def _carry(
    self, direction: str, kind: str | None, deliver: Callable[[], None]
  ) -> None:
    world = self.world
    arrival = world.now + world.random.uniform(*world.latency)
    arrival = max(arrival, self._free_at[direction])
    self._free_at[direction] = arrival
    twice = kind in _IDEMPOTENT and world.random.random() < world.twice
    for _ in range(2 if twice else 1):
      world.later(arrival - world.now, lambda: None if self.dead else deliver())

  def up(self, message: pb.FromIsland) -> None:
    said = pb.FromIsland()
    said.CopyFrom(message)
    kind = message.WhichOneof("message")
    self._carry("up", kind, lambda: self._up(said))

  def _up(self, message: pb.FromIsland) -> None:
    if self.world.trace:
      self.world.say(self.island.name, self.seat.name, message)
    self.seat.heard(self.session, message)

  def down(self, message: pb.ToIsland) -> None:
    island = self.island

    def hear() -> None:
      if self.world.trace:
        self.world.say(self.seat.name, island.name, message)
      island.hear(message)

    kind = message.WhichOneof("message")
    self._carry("down", kind, lambda: island.awake(hear))

  def end(self) -> None:
    """The coordinator closes the stream, after what was sent on it."""
    self._carry("down", "end", lambda: self.cut(notice=0.0))

  def cut(self, notice: float) -> None:
    """Either end notices within `notice` seconds, in any order."""
    if self.dead:
      return
    self.dead = True
    uniform, world = self.world.random.uniform, self.world
    world.later(uniform(0, notice), lambda: self.island.lost(self))
    world.later(uniform(0, notice), lambda: world.disconnected(self))


class World:
  """Seats, islands, and what is between them.

  Attributes:
    fragments: of the model.
    streams: whether rounds and steps go on beside each other.
  """

  def __init__(
    self,
    seed: int,
    islands: int = 3,
    trace: bool = False,
    sparse: bool = False,
    outer: Mapping[str, Any] = types.MappingProxyType({}),
    **elastic,
  ):
    """A swarm whose rounds are as `outer` and `elastic` say."""
    self.random = random.Random(seed)
    self.trace = trace
    self.now = 0.0
    elastic = {"minority_patience": 12.0, "annul_patience": 6.0} | elastic
    self.run = run_config(WINDOWS, sparse, outer, **elastic)
    self.fragments = self.run.outer.fragments
    self.streams = self.fragments > 1 or overlap.most_ahead(self.run.outer) > 0
    self.codec = make_codec(self.run.outer.codec)
    self.digest = config_lib.digest(self.run)
    self.latency = 0.001, self.random.choice((0.02, 0.1, 0.3))
    self.twice = 0.02  # share of the messages that come twice
    self._events: list[tuple[float, int, Callable[[], None]]] = []
    self._counter = itertools.count()
    self._sessions = itertools.count(1)
    self._streams: dict[int, Stream] = {}
    self.over = False  # the run is, and every island has left
    self.cut_pairs: set[frozenset[str]] = set()  # of islands and seats
    self.gone: set[str] = set()  # islands that never come back
    self.moment: str | None = ""  # what was said last, that faults wait for
    self.offers = 0  # times that somebody was asked for its state
    self.invariants = Invariants(self.fragments, sparse)
    self.left_with: dict[tuple[str, int], int] = {}  # tokens not committed
    self.seats = [Seat(self, "A"), Seat(self, "B")]
    self.seats[0].start()
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

    Stops early when a coordinator sends a message of the kind `until`, or
    hears that a member is "prepared".
    """
    end = self.now + seconds
    self.moment = ""
    while self._events and self._events[0][0] <= end and not self.over:
      self.now, _, call = heapq.heappop(self._events)
      call()
      if until and self.moment == until:
        return
    self.now = max(self.now, end)

  def _tick(self) -> None:
    for seat in self.seats:
      seat.tick()
      self.over |= seat.machine is not None and seat.machine.done()
    self.later(TICK, self._tick)

  # --------------------------------------------------------- the network

  def joined(self, one: str, other: str) -> bool:
    return frozenset((one, other)) not in self.cut_pairs

  def cut(self, one: str, other: str) -> None:
    """Two parts cannot reach each other any more."""
    self.cut_pairs.add(frozenset((one, other)))
    for stream in list(self._streams.values()):
      if {stream.island.name, stream.seat.name} == {one, other}:
        stream.cut(notice=1.0)

  def mend(self, one: str, other: str) -> None:
    self.cut_pairs.discard(frozenset((one, other)))

  def open_stream(self, island: Island) -> Stream | None:
    """To the next coordinator in the island's list, if that one answers."""
    seat = self.seats[island.seat % len(self.seats)]
    if not seat.up or not self.joined(island.name, seat.name):
      return None
    stream = Stream(self, island, seat, next(self._sessions))
    self._streams[stream.session] = stream
    return stream

  def send_down(self, session: int, message: pb.ToIsland) -> None:
    if session in self._streams:
      self._streams[session].down(message)

  def island_at(self, session: int) -> Island | None:
    """Who is at the other end; None: the stream has broken."""
    stream = self._streams.get(session)
    return stream.island if stream is not None else None

  def attending(self, seat: Seat) -> set[tuple[str, int]]:
    """Islands, and their incarnations, that a coordinator can hear."""
    return {
      (stream.island.name, stream.island.incarnation)
      for stream in self._streams.values()
      if stream.seat is seat and not stream.dead
    }

  def end_stream(self, session: int) -> None:
    if session in self._streams:
      self._streams[session].end()

  def cut_streams(self, seat: Seat) -> None:
    for stream in list(self._streams.values()):
      if stream.seat is seat:
        stream.cut(notice=0.1)
        del self._streams[stream.session]

  def disconnected(self, stream: Stream) -> None:
    if self._streams.pop(stream.session, None) is not None:
      stream.seat.disconnected(stream.session)

  def _led_by(self, island: Island):
    stream = island.stream
    return stream.seat.machine if stream is not None else None

  def log_for(self, island: Island) -> list[pb.SealedRecord]:
    """What ReadLog answers, from the coordinator that it attends."""
    machine = self._led_by(island)
    return list(machine.log) if machine is not None else []

  def holders_for(self, island: Island) -> list[str]:
    machine = self._led_by(island)
    return machine.holders() if machine is not None else []

  def serving(self, reader: Island, addresses) -> list[Island]:
    """Islands at these addresses that `reader` can fetch from just now."""
    return [
      island
      for island in self.islands
      if island.address in addresses
      and island.alive
      and self.now >= island.frozen_until
      and self.joined(island.name, reader.name)
    ]

  def served(self, reader: Island, restore: pb.Restore) -> Theta | None:
    """The state that a reader is offered; None if it cannot have it."""
    addresses = shares.addresses(restore.state)
    for donor in self.serving(reader, addresses):
      if donor.state is not None:
        record, theta = donor.state
        if (record, whole(theta)) == (restore.record, restore.state.id):
          return theta
    return None

  # ------------------------------------------------------------- islands

  def kill(self, island: Island) -> None:
    island.alive = False
    if island.stream is not None:
      island.stream.cut(notice=1.0)

  def restart(self, name: str, empty: bool = False) -> None:
    """Starts another process of a dead island, with its workdir or without."""
    index = [island.name for island in self.islands].index(name)
    old = self.islands[index]
    if old.alive or name in self.gone:
      return
    # Somebody must have kept everything: else the run is lost, rightly.
    kept = any(
      island.disk.restore()[0] is not None
      for island in self.islands
      if island is not old
      and island.name not in self.gone
      and not (island.alive and island.round.record is None)
    )
    disk = Disk(term=old.disk.term) if empty and kept else old.disk
    new = Island.__new__(Island)
    self.islands[index] = new
    new.__init__(self, name, old.incarnation + 1, disk)

  def restart_later(self, name: str) -> None:
    self.later(self.random.uniform(0.2, 3.0), lambda: self.restart(name))

  # -------------------------------------------------------------- words

  def leader(self) -> Seat:
    """The seat with the highest term."""
    return max(self.seats, key=lambda seat: seat.disk.term)

  def say(self, who: str, to: str, message) -> None:
    kind = message.WhichOneof("message")
    if kind == "heartbeat":
      return
    text = str(getattr(message, kind)) if kind else ""
    shown = " ".join(text.split())[:100]
    print(f"{self.now:8.3f}  {who} > {to}  t{message.term}  {kind}  {shown}")

  def note(self, text: str) -> None:
    if self.trace:
      print(f"{self.now:8.3f}  -- {text}")

  def describe(self) -> str:
    """Where the run stands, for a failing seed."""
    lines = []
    for seat in self.seats:
      if seat.machine is not None:
        status = seat.machine.status(self.now)
        states = {
          i.island: (i.state, i.heartbeat.record) for i in status.islands
        }
        lines.append(
          f"{seat.name}: term {status.term}, record {status.record},"
          f" {status.total_tokens} of {status.run_tokens} tokens,"
          f" {status.phase}; {states}; {list(status.warnings)}"
        )
      elif seat.recovery is not None:
        lines.append(f"{seat.name}: {seat.recovery.describe()}")
      else:
        lines.append(f"{seat.name}: down {seat.stopped}")
    return f"t={self.now:.1f}: " + " | ".join(lines)
