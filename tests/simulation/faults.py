"""What goes wrong, and when: one fault after the other, each mended later."""

from intellect_jax.elastic.coordination import Coordinator
from simulation.island import Island
from simulation.symbols import flip
from simulation.world import World

_KINDS = (
  "stream",
  "kill",
  "evict",
  "replace",
  "sent",
  "freeze",
  "hang",
  "flip",
  "slow",
  "pair",
  "partition",
  "coordinator",
  "torn",
  "unsynced",
  "snapshot",
  "second",
  "back",
  "fork",
  "gone",
  "power",
  "control",
)
_MEND = 0.2, 4.0  # seconds
_MOMENTS = "", "plan", "fix", "prepared", "record", "offer_state", "welcome"


def disturb(world: World, seconds: float) -> None:
  """Faults for so many seconds, often just when it hurts."""
  end = world.now + seconds
  snapshot = world.seats[0].disk.copy()
  while world.now < end:
    kind = world.random.choice(_KINDS)
    if world.random.random() < 0.1:
      snapshot = world.leader().disk.copy()
    _strike(world, kind, snapshot)
    moment = world.random.choice(_MOMENTS)
    world.advance(world.random.uniform(0.0, 1.5), until=moment)
    _operate(world)


def _strike(world: World, kind: str, snapshot) -> None:
  random = world.random
  island = random.choice(world.islands)
  seat = world.leader()
  mend = random.uniform(*_MEND)
  world.note(f"{kind} {island.name} {seat.name}, {mend:.1f} s")
  match kind:
    case "stream" if island.stream is not None:
      island.stream.cut(notice=random.choice((0.0, 0.5, 3.0)))
    case "kill" if island.alive and not island.done:
      empty = random.random() < 0.3
      world.kill(island)
      world.later(mend, lambda: world.restart(island.name, empty))
    case "replace":  # while one member is at work, another process comes
      world.advance(3.0, until="prepared")
      island, other = random.sample(world.islands, 2)
      frozen = world.now + random.uniform(0.5, 1.8)
      other.frozen_until = max(other.frozen_until, frozen)
      if island.alive and not island.done:
        world.kill(island)
        world.later(0.2, lambda: world.restart(island.name))
    case "sent" if world.codec.sparse:  # the same, and its disk does not know
      island = _sending_again(world, 8.0)
      if island is not None:
        world.kill(island)
        world.later(0.2, lambda: world.restart(island.name))
    case "evict":
      seat.control(evict={"island": island.name})
    case "freeze":
      island.frozen_until = max(island.frozen_until, world.now + mend)
    case "hang":
      island.hung = True
      world.later(mend, lambda: _unhang(island))
    case "flip" if island.theta:
      fragment = random.randrange(world.fragments) if world.streams else 0
      island.theta = flip(island.theta, random.random(), fragment)
    case "slow":
      island.slowness = random.choice((1.0, 3.0, 8.0))
    case "pair":
      other = random.choice([i for i in world.islands if i is not island])
      _cut(world, island.name, other.name, mend)
    case "partition":
      _cut(world, island.name, seat.name, mend)
      for other in world.islands:
        if other is not island and random.random() < 0.5:
          _cut(world, island.name, other.name, mend)
    case "coordinator":
      seat.kill()
    case "torn" if seat.machine is not None:
      seat.crash_in = random.randrange(12)
    case "unsynced":  # the disk lied about its newest record, and what followed
      seat.kill()
      before, term = seat.disk.before, seat.disk.term
      if before is not None and before.log:
        seat.disk, seat.disk.term = before, term
    case "snapshot":  # an old copy of the database comes back
      seat.kill()
      kept = any(map(_has_state, world.islands))  # or all is lost, rightly
      if snapshot.log and snapshot.term <= seat.disk.term and kept:
        seat.disk = snapshot.copy()
    case "second":  # another coordinator, while this one lives on, cut off
      other = next(s for s in world.seats if s is not seat)
      known = all(map(_has_state, world.islands))
      if seat.machine is not None and not other.up and known:
        cut = random.sample(
          world.islands, random.randint(1, len(world.islands))
        )
        for lonely in cut:
          _cut(world, lonely.name, seat.name, mend)
        other.recover()
        world.later(mend, seat.kill)
    case "back":  # who was replaced is started again, on its old ledger
      other = next(s for s in world.seats if s is not seat)
      if seat.up and other.disk.log and not other.stopped:
        other.start()
        world.later(mend, other.kill)
    case "fork":  # … and meets an island that the new one has heard, just so
      other = next(s for s in world.seats if s is not seat)
      known = all(map(_has_state, world.islands))
      if seat.machine is not None and not other.up and known:
        seat.kill()
        other.recover()
        other.when_leading = lambda: _part(world, seat, other, island, mend)
    case "gone":  # for good; the others can go on
      others = [i for i in world.islands if i is not island]
      enough = len(others) >= max(2, world.run.elastic.min_islands)
      if enough and not world.gone and all(map(_has_state, others)):
        world.gone.add(island.name)
        world.kill(island)
    case "power":
      for each in world.seats:
        each.kill()
      for each in world.islands:
        if not each.done:
          world.kill(each)
          each.disk.lose_power()
          world.restart_later(each.name)
    case "control" if seat.machine is not None:
      _steer(world, seat)


def _sending_again(world: World, seconds: float) -> Island | None:
  """A member whose code is being committed, with error feedback of before.

  What a process of it comes back to has that error feedback too.
  """
  end = world.now + seconds
  while world.now < end:
    world.advance(end - world.now, until="prepared")
    machine = world.leader().machine
    for island in world.islands:
      saved = island.disk.saved
      sends = machine is not None and machine.rounds.uses(
        island.name, island.incarnation
      )
      left = island.feedback.attempt
      if left and sends and left == saved[max(saved)][2][1]:
        return island
  return None


def _part(world: World, old, new, island: Island, seconds: float) -> None:
  """An island and the old coordinator go on without the new one."""
  _cut(world, island.name, new.name, seconds)
  old.start()
  world.later(seconds, old.kill)


def _has_state(island: Island) -> bool:
  return island.disk.restore()[0] is not None


def _steer(world: World, seat) -> None:
  match world.random.choice(("set", "pause", "rollback")):
    case "set":
      values = {"run.outer.learning_rate": "0.5"}
      seat.control(set={"values": values})
    case "pause":
      seat.control(pause={"paused": True})
    case "rollback":
      head = seat.machine.head.number
      if head > 0:
        to = world.random.randrange(max(0, head - 2), head)
        seat.control(rollback={"to": to})


def _unhang(island: Island) -> None:
  island.hung = False
  island.awake(island.unhang)


def _cut(world: World, one: str, other: str, seconds: float) -> None:
  world.cut(one, other)
  world.later(seconds, lambda: world.mend(one, other))


def _operate(world: World) -> None:
  """Who watches starts what is dead again, sooner or later."""
  if any(seat.up for seat in world.seats):
    return
  seat = world.leader()
  wrong = seat.stopped or not seat.disk.log
  run = seat.recover if wrong and world.invariants.links else seat.start
  world.later(world.random.uniform(*_MEND), run)


def mend_all(world: World) -> None:
  """From here on nothing is wrong."""
  world.cut_pairs.clear()
  for seat in world.seats:
    seat.crash_in = None
  for island in world.islands:
    island.slowness = min(island.slowness, 3.0)
    island.frozen_until = min(island.frozen_until, world.now)
    island.wake()
    if island.hung:
      _unhang(island)


def flip_late(world: World) -> None:
  """A bit of an island flips when all else goes well, perhaps near the end."""
  island = world.random.choice(world.islands)
  if world.streams:  # a tie would pause it
    return

  def strike() -> None:
    if island.alive and island.theta and not island.ending:
      world.note(f"flip {island.name}")
      island.theta = flip(island.theta, world.random.random())

  world.later(world.random.uniform(0.0, 20.0), strike)


def operate_until_over(world: World, seconds: float) -> None:
  """Lets the run go to its end, with an operator who reads what it says."""
  end = world.now + seconds
  while world.now < end and not world.over:
    _operate(world)
    for name in [i.name for i in world.islands if not i.alive]:
      world.restart_later(name)
    machine = world.leader().machine
    if machine is not None and machine.status(world.now).paused:
      _resume(world, machine)
    for seat in world.seats:
      if seat.recovery is not None and world.now > end - seconds / 2:
        seat.kill()
        if machine is None:  # who could tell has left: --force decides
          seat.recover(force=True)
    if machine is not None and world.now > end - seconds / 2:
      _roll_back(world, machine)  # what its warning names has not come
    lower = [s for s in world.seats if s.machine and s is not world.leader()]
    for seat in lower:
      seat.kill()  # there is another
    world.advance(5.0)


def _resume(world: World, machine: Coordinator) -> None:
  """If islands disagree, and nobody can tell, without one, whose disk is wiped."""
  there = [island for island in world.islands if island.alive]
  disagree = "disagree on" in machine.status(world.now).phase
  if there and disagree and world.random.random() < 0.5:
    wrong = world.random.choice(there)
    world.note(f"wipe {wrong.name}")
    world.leader().control(evict={"island": wrong.name})
    world.kill(wrong)
    world.later(3.0, lambda: world.restart(wrong.name, empty=True))
  world.leader().control(pause={"paused": False})


def _roll_back(world: World, machine: Coordinator) -> None:
  """No island has a state of the run: back to the oldest that one has saved."""
  if any("or roll back" in w for w in machine.status(world.now).warnings):
    newest = machine.books.chain.state
    saved = [i.disk.saved for i in world.islands if i.alive and i.disk.saved]
    older = [min(each) for each in saved if min(each) < newest]
    world.leader().control(rollback={"to": max(older, default=0)})
