"""The training thread of a simulated island, after mesh.py and follow.py.

The windows are the real ones. How far a fragment of x has gone from theta is the
list of the steps that moved it.
"""

import collections
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, TypeVar

from intellect_jax.elastic import chain
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder, Interval, take
from intellect_jax.elastic.windows import Window, Windows
from intellect_jax.outer import overlap
from simulation.symbols import STEP_TOKENS, Delta, next_theta

if TYPE_CHECKING:
  from simulation.island import Island

SAMPLES = 4  # a window
WINDOW = 0.5, 1.5  # seconds of training

T = TypeVar("T")
Thread = Generator[Callable[[], bool], None, T]  # yields what it waits for


class Training:
  """What an island trains, proposes, and merges.

  Attributes:
    windows: of this process.
    window: number of the newest one that was begun.
    grants: leases of what no record has decided.
    unanswered: requests for samples, by window.
    adopted: records that are not merged yet.
  """

  def __init__(self, island: "Island"):
    self._island = island
    self._world = world = island.world
    self._outer = outer = world.run.outer
    self.windows = Windows(1, STEP_TOKENS, outer.max_carry, outer.fragments)
    self.window = 0
    self.grants: dict[int, pb.LeaseGrant] = {}
    self.unanswered: dict[int, pb.FromIsland] = {}
    self._leases: dict[int, pb.LeaseGrant] = {}  # of windows not begun yet
    self._unleased = False  # it waits for that of its next window
    self.adopted: collections.deque[pb.Record] = collections.deque()
    self._x: list[list[int]] = [[] for _ in range(outer.fragments)]
    # By fragment, the record that it had better be proposed for.
    self._asked_for: dict[int, int] = {}
    self._thread: Thread[None] | None = None
    self._waits: Callable[[], bool] = lambda: True
    self._running = False
    self._steps: object | None = None  # that are under way
    self._early = False  # they were to end at once
    self._over = False  # the final record is merged

  @property
  def busy(self) -> bool:
    return self._steps is not None

  # ------------------------------------------------------------ the thread

  def go_on(self, anyway: bool = False) -> None:
    """Does what can be done by now; `anyway`: also if the thread hangs."""
    hangs = self._island.hung and not anyway
    if self._running or hangs or (self._over and self._world.streams):
      return
    self._running = True
    if self._thread is None:
      self._thread = self._train()
      self._waits = next(self._thread)
    while self._waits():
      self._waits = next(self._thread)
    self._running = False

  def _train(self) -> Thread[None]:
    """One window after the other, as in `ElasticDeviceMesh.batches`."""
    windows = self.windows
    while True:
      lease = yield from self._lease()
      yield from self._pass()
      window = self._start(lease)
      while windows.open is window:
        self._count(window)
        yield from self._after_steps()
        if windows.open is not window or window.steps == windows.length:
          break
        yield from self._pass()

  def _lease(self) -> Thread[list[Interval]]:
    island = self._island
    yield lambda: island.in_run and not island.done
    number = self.window + 1
    if number not in self._leases:
      self._request()
      self._unleased = True
      yield lambda: number in self._leases
    self.window, self._unleased = number, False
    return chain.intervals(self._leases.pop(number))

  def _request(self) -> None:
    """Asks for the samples of the next window."""
    request = pb.LeaseRequest(window=self.window + 1, samples=SAMPLES)
    message = pb.FromIsland(lease_request=request)
    self.unanswered[request.window] = message
    self._island.send(message)

  def granted(self, grant: pb.LeaseGrant) -> None:
    self.unanswered.pop(grant.window, None)
    self.grants[grant.window] = self._leases[grant.window] = grant
    if self._unleased:
      self.go_on(anyway=True)  # it hangs when it has begun

  def leases_ended(self) -> None:
    """With its membership."""
    self.grants.clear()
    self._leases.clear()

  def _pass(self) -> Thread[None]:
    """Time, until the next steps are done: a window's, or one in a stream."""
    self._early = False
    self._steps = steps = object()
    seconds = self._island.slowness * self._world.random.uniform(*WINDOW)
    if self._world.streams:
      seconds /= SAMPLES
    else:
      self._island.later([seconds / 2] * 2, lambda: self._half_done(steps))
    self._island.later([seconds] * 2, lambda: self._done(steps))
    yield lambda: self._steps is None

  def _half_done(self, steps: object) -> None:
    if self._steps is steps and not (self._island.hung or self._over):
      self._request()

  def _done(self, steps: object) -> None:
    if self._steps is steps and not self._island.hung:
      self._steps = None
      self.go_on()

  def hurry(self) -> None:
    """What is under way ends now."""
    if self._steps is not None and not self._island.hung:
      self._early = True
      self._done(self._steps)

  def _start(self, lease: list[Interval]) -> Window:
    """Begins with as many samples as are used; the rest goes back."""
    if not self._world.streams:
      few = self._early or self._world.random.random() < 0.2
      lease = take(lease, 1 if few else SAMPLES)
    self.windows.next = self.window
    return self.windows.start(lease)

  def _count(self, window: Window) -> None:
    island, windows = self._island, self.windows
    for _ in range(1 if self._world.streams else windows.length):
      windows.step()
      for x in self._x:
        x.append(windows.steps)
    if self._world.streams and window.steps == max(1, windows.length // 2):
      self._request()
    done = pb.Window(
      number=window.number,
      steps=window.steps,
      tokens=window.steps * STEP_TOKENS,
    )
    for start, stop in take(window.lease, window.steps):
      done.samples.add(start=start, stop=stop)
    holder = Holder(island.name, island.incarnation, window.number)
    self._world.invariants.has_trained(holder, done)

  # ------------------------------------------------------------ proposals

  def hand_in(self, number: int, fragment: int) -> None:
    """A fragment had better be proposed for a record."""
    self._asked_for[fragment] = number
    if not self._world.streams:
      self.hurry()

  @property
  def _asked(self) -> list[int]:
    parts, asked_for = self.windows.parts, self._asked_for
    return self.windows.before(lambda f: asked_for.get(f, 0) > parts[f].moved)

  @property
  def _far_ahead(self) -> bool:
    most, parts = overlap.most_ahead(self._outer), self.windows.parts
    return any(parts[f].ahead >= most for f in self.windows.proposed)

  def _after_steps(self) -> Thread[None]:
    windows, first = self.windows, []
    turn = windows.at_turn or self._asked
    yield from self._wait(lambda: not self._far_ahead)
    if not turn:
      return
    if windows.open is not None and windows.at_turn:
      yield from self._wait(lambda: bool(windows.turns))
      first = windows.turns[:1]
    for fragment in self._asked or first:
      if windows.parts[fragment].steps and self._island.standing:
        self._propose(fragment)
    yield from self._wait(lambda: not self._far_ahead)

  def _wait(self, enough: Callable[[], bool]) -> Thread[None]:
    """Merges what comes until it is enough."""
    while not enough():
      if self.adopted:
        self.merge(early=True)
      else:
        yield lambda: enough() or bool(self.adopted)

  def _propose(self, fragment: int) -> None:
    island, windows = self._island, self.windows
    proposal = windows.propose(fragment)
    steps, base = tuple(self._x[fragment]), island.theta[fragment]
    assert proposal.steps == len(steps), "x has gone as far as its steps"
    delta = Delta(
      island.name,
      island.incarnation,
      proposal.serial,
      fragment,
      tuple(window.number for window in proposal.windows),
      steps,
      base,
      island.feedback.values,
    )
    weight = sum(window.tokens for window in proposal.windows)
    blob, norm = island.exchange.serve(delta, weight or proposal.tokens)
    proposal.base = island.held
    proposal.delta.CopyFrom(blob)
    proposal.norm = norm
    proposal.base_state = base
    proposal.tokens_trained = windows.tokens_trained
    if self._outer.fragments > 1:
      proposal.blocks.add(start=fragment, stop=fragment + 1)
    island.carry_out(island.round.propose(proposal))

  # -------------------------------------------------------------- records

  def adopt(self, record: pb.Record) -> None:
    """A record is committed: it is merged in time."""
    own = self._island.name, self._island.incarnation
    for holder, _ in chain.windows_of(record):
      if holder[:2] == own:
        self.grants.pop(holder.window, None)
    self.adopted.append(record)
    self.merge(early=False)

  def merge(self, early: bool) -> None:
    """Merges what has come; `early`: also what would be merged later."""
    while self.adopted and (early or not self._overlaps):
      record = self.adopted.popleft()
      if record.number > self._island.held:
        self._merge(record)

  @property
  def _overlaps(self) -> bool:
    record = self.adopted[0]
    part = self.windows.parts[record.step.fragment]
    early = part.proposed and part.ahead < self._outer.overlap_steps
    return record.HasField("step") and bool(early) and not record.final

  def _merge(self, record: pb.Record) -> None:
    island = self._island
    island.theta = next_theta(island.theta, record)
    island.held = record.number
    self._world.invariants.check_adopted(
      island.disk.log[record.number], island.theta
    )
    island.settle(record)
    stays = self._world.streams and record.HasField("settings")
    if record.number == 0 or (not stays and self._world.random.random() < 0.5):
      island.disk.save(record.number, island.theta, island.feedback)
    if record.HasField("step"):
      self.decide(record)
    else:
      self.follow()
    self._over = record.final
    if record.final:
      island.end()

  def includes(self, step: pb.OuterStep) -> bool:
    """Whether a record includes what was proposed last."""
    island = self._island
    return self.windows.includes(step, island.name, island.incarnation)

  def decide(self, record: pb.Record) -> None:
    """A step moved theta: what was proposed is committed, or carried."""
    windows, step = self.windows, record.step
    part, x = windows.parts[step.fragment], self._x[step.fragment]
    included, lost = self.includes(step), False
    if included:
      del x[: part.proposed]  # with an alpha, a part of it stays for ever
      windows.commit(step.fragment)
    else:
      lost = windows.carry(step.fragment)
    part.moved = record.number
    if included and overlap.blends(self._outer) and not self._outer.merge_alpha:
      x.clear()
      thrown = windows.throw_away(step.fragment)
      self._dropped(thrown, "thrown away at a merge")
    if lost and step.fragment:
      part.drop()
      x.clear()
    elif lost:
      self.drop("carried too long")

  def drop(self, cause: str) -> None:
    """Nothing of what it has trained will be proposed: x is theta."""
    self._dropped(self.windows.drop(), cause)
    for x in self._x:
      x.clear()

  def _dropped(self, windows: list[pb.Window], cause: str) -> None:
    """Tells what it will not propose, after how much it has trained."""
    island = self._island
    windows = [window for window in windows if window.tokens]
    if windows:
      island.send_heartbeat()
      dropped = pb.Dropped(windows=windows, cause=cause)
      island.send(pb.FromIsland(dropped=dropped))
    for window in windows:
      self.grants.pop(window.number, None)

  def give_up(self, cause: str) -> None:
    """What it has trained and not committed is void, and what it does now."""
    island = self._island
    island.feedback.withdraw()
    if self.windows.proposed:
      who = island.name, island.incarnation
      self._world.invariants.gave_up.add(who)
    self.drop(cause)
    self._thread = self._steps = None
    self._unleased = False
    self.grants.pop(self.window, None)

  def follow(self) -> None:
    """Reads from the log up to here which records have moved what."""
    island = self._island
    records = chain.effective(island.disk.records())
    for fragment, part in enumerate(self.windows.parts):
      moved = (r.number for r in records if chain.moves(r, fragment))
      part.moved = max((n for n in moved if n <= island.held), default=-1)
    self._over = any(r.final and r.number == island.held for r in records)
