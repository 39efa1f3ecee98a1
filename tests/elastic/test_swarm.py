"""Many seeds of faults on the real state machines; see harness.py."""

from harness import SAMPLES, World
import pytest

from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder, merge, subtract

SEEDS = 60  # a case; more find rarer orders


def disturb(world: World, seconds: float) -> None:
  """One fault after the other, each mended a while later."""
  end = world.now + seconds
  uniform, choice = world.random.uniform, world.random.choice
  while world.now < end:
    index = world.random.randrange(len(world.islands))
    island = world.islands[index]
    mend = uniform(0.2, 5.0)
    match choice(("stream", "kill", "freeze", "pair", "coordinator", "torn")):
      case "stream" if island.link is not None:
        island.link.cut(notice=choice((0.0, 0.5, 3.0)))
      case "kill" if island.alive and not island.done:
        empty = world.random.random() < 0.3
        world.kill(index)
        world.later(mend, lambda i=index, e=empty: world.restart(i, e))
      case "freeze":
        island.frozen_until = world.now + mend
      case "pair":
        other = choice([i for i in world.islands if i is not island])
        pair = frozenset((island.name, other.name))
        world.cut_pairs.add(pair)
        world.later(mend, lambda p=pair: world.cut_pairs.discard(p))
      case "coordinator" if world.coordinator is not None:
        world.kill_coordinator()
      case "torn" if world.coordinator is not None:
        world.crash_in = world.random.randrange(12)
    # Often just when it hurts, now and then two faults at once.
    moment = choice(("", "plan", "fix", "record", "offer_state"))
    world.advance(uniform(0.0, 2.0), until=moment)
    if world.coordinator is None:
      world.later(mend, world.start_coordinator)


def finish(world: World, seconds: float) -> None:
  """Without faults the run ends; nothing is left over."""
  world.crash_in = None
  world.start_coordinator()
  world.advance(seconds)
  assert world.over(), world.describe()
  coordinator = world.coordinator
  assert coordinator is not None
  for island in world.islands:
    if island.alive and island.round.record == coordinator.head.number:
      assert island.theta == world.thetas[-1]
  # What was not committed can be leased again, all of it.
  free = coordinator._pool.lease(Holder("probe", 1, 1), 100_000)
  top = free[-1][1]
  assert merge([*free, *world.samples]) == [(0, top)]
  assert subtract(free, world.samples) == free


@pytest.mark.parametrize("islands", [1, 2, 4])
def test_an_undisturbed_run_commits_every_token(islands):
  world = World(seed=islands, islands=islands, start_islands=islands)
  finish(world, seconds=120)
  lost = sum(loss.tokens for loss in world.losses)
  committed = pb.Record.FromString(world.log[-1].body).total_tokens
  assert committed + lost == sum(i.trained for i in world.islands)
  assert lost <= islands * SAMPLES * 10  # windows that the end cut short


@pytest.mark.parametrize("min_islands", [1, 2])
def test_faults_break_no_invariant_and_the_run_goes_on(min_islands):
  for seed in range(SEEDS):
    try:
      world = World(seed, islands=3, min_islands=min_islands)
      disturb(world, seconds=20)
      finish(world, seconds=120)
    except AssertionError as error:
      raise AssertionError(f"seed {seed}: {error}") from error
