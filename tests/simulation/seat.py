"""A coordinator of the simulation: the real machine, a disk, an operator."""

from collections.abc import Callable, Sequence
import copy
import dataclasses
from typing import TYPE_CHECKING

from intellect_jax.elastic import actions as actions_lib
from intellect_jax.elastic import chain as chain_lib
from intellect_jax.elastic.books import History
from intellect_jax.elastic.coordination import Coordinator
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.recovery import TERMS, Recovery
from intellect_jax.elastic.samples import Holder, Interval, subtract

if TYPE_CHECKING:
  from simulation.world import World


@dataclasses.dataclass
class Ledger:
  """What ledger.py keeps in SQLite."""

  term: int = 0
  log: list[pb.SealedRecord] = dataclasses.field(default_factory=list)
  leases: dict[Holder, list[Interval]] = dataclasses.field(default_factory=dict)
  losses: list[pb.Loss] = dataclasses.field(default_factory=list)
  returned: list[Interval] = dataclasses.field(default_factory=list)
  before: "Ledger | None" = None  # as it was when the newest record came

  def copy(self) -> "Ledger":
    return Ledger(
      self.term,
      list(self.log),
      dict(self.leases),
      copy.copy(self.losses),
      list(self.returned),
      self.before,
    )

  def end(self, holder: Holder, consumed: Sequence[Interval] = ()) -> None:
    self.returned += subtract(self.leases.pop(holder, []), list(consumed))


class Seat:
  """One coordinator's host: it may run, be dead, or recover a run."""

  def __init__(self, world: "World", name: str):
    self.world = world
    self.name = name
    self.disk = Ledger()
    self.machine: Coordinator | None = None
    self.recovery: Recovery | None = None
    self.when_leading: Callable[[], None] = lambda: None  # once, when recovered
    self.force = False  # the recovery goes on with whoever is there
    self.stopped = ""  # why its machine gave up: for the operator to read
    self.crash_in: int | None = None  # actions until it dies
    # By fragment: what islands proposed with first, by island and incarnation;
    # and of which term and record this is.
    self._claims: list[dict[tuple[str, int], bytes]] = [
      {} for _ in range(world.fragments)
    ]
    self._claims_of = [(-1, -1)] * world.fragments

  @property
  def up(self) -> bool:
    return self.machine is not None or self.recovery is not None

  def start(self) -> None:
    """Goes on with what its disk has."""
    if self.up:
      return
    self.disk.term += 1
    self._lead(
      History(
        "run",
        self.disk.term,
        list(self.disk.log),
        dict(self.disk.leases),
        list(self.disk.losses),
      )
    )

  def recover(self, force: bool = False) -> None:
    """Starts with --recover: nothing on its own disk counts."""
    if not self.up:
      self.disk, self.stopped = Ledger(), ""
      world = self.world
      serial = world.random.randrange(TERMS)
      self.recovery = Recovery(world.run, force, serial, world.now)
      self.force = force

  def _lead(self, history: History) -> None:
    world = self.world
    self.machine = Coordinator(world.run, history, world.now)

  def kill(self) -> None:
    self.machine = self.recovery = self.crash_in = None
    self.world.cut_streams(self)

  # ------------------------------------------------------------- events

  def tick(self) -> None:
    now = self.world.now
    if self.machine is not None:
      self.carry_out(self.machine.tick(now))
    elif self.recovery is not None:
      history = self.recovery.history(now)
      if history is not None:
        self._take_over(history)

  def _take_over(self, history: History) -> None:
    assert self.recovery is not None
    hellos, self.recovery = self.recovery.hellos, None
    self.disk.term, self.disk.log = history.term, list(history.log)
    heard = {m.hello.island for m in hellos.values() if m.hello.has_state}
    if not self.force:
      self.world.invariants.check_recovered(history.log[-1], heard)
    self._lead(history)
    self.when_leading()
    self.when_leading = lambda: None
    for session, hello in hellos.items():
      self.heard(session, hello)

  def heard(self, session: int, message: pb.FromIsland) -> None:
    if self.machine is not None:
      if message.HasField("prepared"):
        self.world.moment = "prepared"
      if message.HasField("proposal"):
        self._claimed(session, self.machine, message.proposal)
      self.carry_out(self.machine.handle(session, message, self.world.now))
      if message.HasField("hello"):
        self._check_claimed(session, message.hello)
    elif self.recovery is not None:
      actions = self.recovery.handle(session, message, self.world.now)
      self.carry_out(actions)

  def _claimed(
    self, session: int, machine: Coordinator, proposal: pb.Proposal
  ) -> None:
    """Notes the state that an island proposes with, if that may count."""
    fragment, chain = proposal.fragment, machine.books.chain
    of = self.disk.term, chain.made(fragment)
    if self._claims_of[fragment] != of:
      self._claims_of[fragment], self._claims[fragment] = of, {}
    island = self.world.island_at(session)
    assert island is not None, "it is heard"
    holders = [
      Holder(island.name, island.incarnation, w.number)
      for w in proposal.windows
    ]
    if proposal.base >= chain.moved(fragment) and all(
      holder in machine.books.accounts.pool.leased for holder in holders
    ):
      process = island.name, island.incarnation
      self._claims[fragment].setdefault(process, proposal.base_state)

  def disconnected(self, session: int) -> None:
    if self.machine is not None:
      self.carry_out(self.machine.disconnected(session, self.world.now))
    elif self.recovery is not None:
      self.recovery.disconnected(session, self.world.now)

  def control(self, **change) -> str:
    """An operator's wish. Returns why it was refused."""
    if self.machine is None:
      return "nobody is there"
    request = pb.ControlRequest(reason="for a test", **change)
    reply, actions = self.machine.control(request, self.world.now)
    self.carry_out(actions)
    return reply.refusal

  # ------------------------------------------------------------ actions

  def carry_out(self, actions) -> None:
    """In the machine's order; a crash may come between any two."""
    world = self.world
    for action in actions:
      if self.crash_in is not None:
        self.crash_in -= 1
        if self.crash_in < 0:
          self.kill()
          return
      match action:
        case actions_lib.Tell(session, message):
          self._sent(session, message)
          world.send_down(session, message)
        case actions_lib.Close(session):
          world.end_stream(session)
        case actions_lib.Append(record, sealed):
          self._append(record, sealed)
        case actions_lib.SaveLease(holder, samples):
          self.disk.leases[holder] = list(samples)
        case actions_lib.EndLeases(holders, loss):
          for holder in holders:
            self.disk.end(holder)
          if loss is not None:
            self.disk.losses.append(loss)
            self._check_settled()
        case actions_lib.SaveLosses(losses):
          self.disk.losses = list(losses)
          self._check_settled()
        case actions_lib.Stop(reason):
          self.stopped = reason
          self.kill()
          return

  def _append(self, record: pb.Record, sealed: pb.SealedRecord) -> None:
    world = self.world
    held = set().union(*(island.disk.means for island in world.islands))
    assert self.machine is not None
    members = self.machine.status(world.now).islands
    inside = {
      (m.island, m.incarnation) for m in members if m.state in ("in", "joining")
    }
    here = world.attending(self) & inside
    said = self._claims[record.step.fragment]
    claims = [claim for process, claim in said.items() if process in here]
    votes = {island: claim for (island, _), claim in sorted(said.items())}
    world.invariants.check_appended(
      record, sealed, held, claims, list(votes.values())
    )
    assert record.number == len(self.disk.log)
    self.disk.before = None
    self.disk.before = self.disk.copy()
    self.disk.log.append(sealed)
    for holder, window in chain_lib.windows_of(record):
      self.disk.end(holder, chain_lib.intervals(window))
    if record.HasField("step") and record.term == self.disk.term:
      self._check_settled()

  def _check_settled(self) -> None:
    head = self.disk.log[-1] if self.disk.log else None
    self.world.invariants.check_settled(head, self.disk.losses)

  def _gives_state(self, session: int) -> None:
    """What it holds of other fragments goes with what is wrong in one."""
    island = self.world.island_at(session)
    if island is not None and self.world.fragments > 1:
      for said in self._claims:
        said.pop((island.name, island.incarnation), None)

  def _check_claimed(self, session: int, hello: pb.Hello) -> None:
    """A recovered coordinator leases to islands what they say they have."""
    machine = self.machine
    if machine is None or not machine.books.recovered:
      return
    if machine._members.by_session(session) is None:
      return  # it is refused
    accounts = machine.books.accounts
    pool = accounts.pool
    free = [*pool._free, (pool._unused, 1 << 60)]
    for grant in hello.leases:
      holder = Holder(hello.island, hello.incarnation, grant.window)
      kept = holder in pool.leased or holder[:2] in accounts._departed
      samples = chain_lib.intervals(grant)
      assert kept or subtract(samples, free), f"{holder} was forgotten"

  def _sent(self, session: int, message: pb.ToIsland) -> None:
    if message.welcome.start == pb.Welcome.START_RESTORE:
      self._gives_state(session)
    kind = message.WhichOneof("message")
    self.world.moment = kind
    if kind == "fix":
      self.world.invariants.check_fix(message.fix)
    elif kind == "record":
      self.world.invariants.check_announced(message.record)
