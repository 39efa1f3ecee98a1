"""Runs under faults, one a seed; `make simulate` runs more of them."""

import pytest

from intellect_jax.elastic import chain
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer import overlap
from simulation.run import finish, simulate
from simulation.symbols import STEP_TOKENS, flip, is_flipped
from simulation.training import SAMPLES
from simulation.world import World

SEEDS = 2000
PARTS = 16  # so that two workers share them


@pytest.mark.parametrize("part", range(PARTS))
def test_faults_break_no_invariant_and_the_run_comes_to_its_end(part):
  for seed in range(part, SEEDS, PARTS):
    simulate(seed)


IN_FLIGHT = [
  {},
  dict(fragments=2),
  dict(fragments=2, max_ahead_steps=4),
  dict(fragments=3, max_ahead_steps=8, overlap_steps=3, merge_alpha=0.5),
]


@pytest.mark.parametrize("outer", IN_FLIGHT)
@pytest.mark.parametrize("islands", [1, 2, 4])
def test_an_undisturbed_run_commits_every_token(islands, outer):
  world = World(
    seed=islands, islands=islands, outer=outer, start_islands=islands
  )
  finish(world)
  disk = world.seats[0].disk
  records = [pb.Record.FromString(sealed.body) for sealed in disk.log]
  rounds = [len(chain.steps_of(records, f)) for f in range(world.fragments)]
  assert 3 * min(rounds) >= max(rounds), "a fragment has no turns"
  lost = sum(loss.tokens for loss in disk.losses)
  windows = [island.training.windows for island in world.islands]
  trained = sum(each.tokens_trained for each in windows)
  assert records[-1].total_tokens + lost == trained
  steps = SAMPLES + overlap.most_ahead(world.run.outer)
  assert lost <= islands * steps * STEP_TOKENS  # that the end cut short


def test_the_same_seed_gives_the_same_run():
  one, other = simulate(7), simulate(7)
  assert one.now == other.now
  assert [x.hash for x in one.leader().disk.log] == [
    x.hash for x in other.leader().disk.log
  ]


@pytest.mark.parametrize(("islands", "fragments"), [(3, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_bit_is_found_and_mended(seed, islands, fragments):
  """Also where two islands disagree, and over one fragment of several."""
  outer = dict(fragments=fragments)
  world = World(seed, islands, outer=outer, start_islands=islands)
  world.advance(20.0, until="record")
  world.advance(20.0, until="plan")
  island = world.islands[seed % islands]
  island.theta = flip(island.theta, 0.0, seed % fragments)
  finish(world)
  assert not is_flipped(*island.theta)
  causes = [loss.cause for loss in world.seats[0].disk.losses]
  assert "its state was not what its log comes to" in causes
