"""One seed, from the first hello to the end."""

import random
from typing import Any

from intellect_jax.elastic.samples import Holder, merge, subtract
from simulation import faults
from simulation.island import LEFT
from simulation.symbols import is_flipped
from simulation.training import SAMPLES
from simulation.world import World

FAULTS = 8.0  # seconds of trouble
PATIENCE = 150.0  # virtual seconds after the last fault until the end


def simulate(seed: int, trace: bool = False) -> World:
  """Runs a swarm through faults that the seed decides.

  Raises:
    AssertionError: if an invariant does not hold; the message names the seed.
  """
  try:
    sparse = seed // 2 % 2 == 1
    world = World(
      seed,
      islands=2 + seed % 3,
      trace=trace,
      sparse=sparse,
      outer={} if sparse else _in_flight(seed),
      min_islands=1 + seed % 2,
      deadline=seed % 5 == 0,
      hang_seconds=3.0,
      offer_patience=3.0,
    )
    faults.disturb(world, FAULTS)
    if world.random.random() < 0.2:
      faults.flip_late(world)
    finish(world)
  except Exception as error:
    kind = "" if isinstance(error, AssertionError) else type(error).__name__
    raise AssertionError(f"seed {seed}: {kind} {error}") from error
  return world


def _in_flight(seed: int) -> dict[str, Any]:
  """Settings for rounds that go on beside each other, and beside steps.

  None for one in four: then there is one fragment, and islands wait.
  """
  draw = random.Random(f"in flight {seed}")
  if draw.random() < 0.25:
    return {}
  outer = dict(
    fragments=draw.choice((1, 2, 2, 3, 3)),
    inner_steps=SAMPLES,
    overlap_steps=draw.choice((0, 0, 1, 2, 3)),
    max_ahead_steps=draw.choice((0, 0, 2, 4, 8)),
    merge_alpha=draw.choice((0.0, 0.5)),
  )
  ahead = max(outer["overlap_steps"], outer["max_ahead_steps"])
  eager = ahead > 0 == outer["merge_alpha"] and draw.random() < 0.5
  return outer | dict(eager=eager)


def finish(world: World, patience: float = PATIENCE) -> None:
  """Without faults the run ends; nothing is left over."""
  faults.mend_all(world)
  faults.operate_until_over(world, patience)
  assert world.over, f"it does not end: {world.describe()}"
  (machine,) = [
    s.machine for s in world.seats if s.machine and s.machine.done()
  ]
  for loss in machine.losses:
    if loss.cause == LEFT:  # and not what should have been said before
      process = loss.island, loss.incarnation
      assert loss.tokens <= world.left_with[process], f"{process}: forgotten"
  end = world.invariants.links[machine.log[-1].hash]
  ends = {
    island.theta
    for island in world.islands
    if island.alive and island.held == machine.head.number
  }
  assert len(ends) == 1, "islands end with different states"
  (theta,) = ends
  for held, right in zip(theta, end.theta, strict=True):
    assert held == right or is_flipped(held), "they end elsewhere"
  # What was not committed can be leased again, all of it.
  free = machine.books.accounts.pool.lease(Holder("probe", 1, 1), 10_000)
  used = list(end.samples)
  assert merge([*free, *used]) == [(0, free[-1][1])], "samples were forgotten"
  assert subtract(free, used) == free, "samples are leased that were used"
