"""Replicas in one process are what a swarm of islands is."""

import jax
import numpy as np
import pytest

from benchmarks.replicas import Replicas
from benchmarks.sparse import Largest
from intellect_jax import config as config_lib
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import sharding
from intellect_jax.outer.fragments import partition
from intellect_jax.outer.schedule import Schedule

STEPS = 4


@pytest.fixture(scope="module")
def world():
  config = config_lib.load(config_lib.base_path().parent / "tiny.py")
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  step = TrainStep(config.run, config.island, mesh)
  return (
    config.run,
    step,
    GlobalIndex(config.run.data, tokenizer_of(config.run)),
  )


@pytest.mark.parametrize(("count", "inner_steps"), [(1, 2), (2, STEPS)])
def test_with_rate_1_theta_is_the_mean_of_plain_trainings(
  world, count, inner_steps
):
  """Of one island whatever H is, of two in one round."""
  run, step, index = world
  run = run.copy_and_resolve_references()
  batch, length = run.inner.batch_size, run.data.sequence_length
  run.tokens = STEPS * count * batch * length
  run.outer.update(codec="float32", learning_rate=1.0, momentum=0.0)
  run.outer.inner_steps = inner_steps
  replicas = Replicas(run, count, step, index)
  rounds = []
  replicas.train(rounds.append)
  assert rounds == list(range(1, STEPS // inner_steps + 1))

  trained = []
  for island in range(count):
    state = step.init(jax.random.key(run.seed))
    for at in range(STEPS):
      first = (at * count + island) * batch
      samples = next(index.batches([(first, first + batch)], batch))
      schedule = Schedule(at * count * batch * length, run.tokens)
      state, _ = step(state, samples, schedule)
    trained.append(replicas.layout.flatten(state.params))
  expected = np.mean(trained, axis=0)
  np.testing.assert_allclose(replicas.theta, expected, rtol=1e-4, atol=1e-6)


def test_with_overlap_x_comes_back_to_theta_by_halves(world):
  """H = 2, tau = 1: theta is x after step 2, and enters x after step 3."""
  run, step, index = world
  run = run.copy_and_resolve_references()
  batch, length = run.inner.batch_size, run.data.sequence_length
  run.tokens = STEPS * batch * length
  run.outer.update(codec="float32", learning_rate=1.0, momentum=0.0)
  run.outer.update(inner_steps=2, overlap_steps=1, merge_alpha=0.5)
  replicas = Replicas(run, 1, step, index)
  replicas.train()

  state, theta = step.init(jax.random.key(run.seed)), None
  for at, samples in enumerate(index.batches([(0, STEPS * batch)], batch)):
    state, _ = step(state, samples, Schedule(at * batch * length, run.tokens))
    if at == 1:
      theta = jax.tree.map(jax.numpy.copy, state.params)
    elif at == 2:
      halves = jax.tree.map(lambda x, t: (x + t) / 2, state.params, theta)
      state = state._replace(params=halves)
  expected = replicas.layout.flatten(state.params)
  np.testing.assert_allclose(replicas.theta, expected, rtol=1e-4, atol=1e-6)


def test_fragments_are_moved_in_turn(world):
  """H = 2, P = 2: fragment 0 ends windows, the other one their first halves."""
  run, step, index = world
  run = run.copy_and_resolve_references()
  batch, length = run.inner.batch_size, run.data.sequence_length
  run.tokens = STEPS * batch * length
  run.outer.update(codec="float32", learning_rate=1.0, momentum=0.0)
  run.outer.update(inner_steps=2, fragments=2)
  replicas = Replicas(run, 1, step, index)
  replicas.train()

  state, trained = step.init(jax.random.key(run.seed)), []
  for at, samples in enumerate(index.batches([(0, STEPS * batch)], batch)):
    state, _ = step(state, samples, Schedule(at * batch * length, run.tokens))
    trained.append(replicas.layout.flatten(state.params))
  for fragment, after in zip(
    partition(replicas.layout, 2), (4, 3), strict=True
  ):
    for tensor in fragment.tensors:
      np.testing.assert_allclose(
        tensor.of(replicas.theta),
        tensor.of(trained[after - 1]),
        rtol=1e-4,
        atol=1e-6,
      )


def test_a_lone_island_that_is_eager_goes_on_from_theta(world):
  """With a record that comes one step late, it is as if it came at once."""
  run, step, index = world
  thetas = []
  for late in (0, 1):
    run = run.copy_and_resolve_references()
    run.tokens = STEPS * run.inner.batch_size * run.data.sequence_length
    run.outer.update(codec="float32", learning_rate=0.7, momentum=0.9)
    run.outer.update(inner_steps=2, overlap_steps=late, eager=late > 0)
    replicas = Replicas(run, 1, step, index)
    replicas._moved = [True]  # as if there had been a record
    replicas.train()
    thetas.append(replicas.theta)
  np.testing.assert_allclose(*thetas, rtol=1e-4, atol=1e-5)


def test_a_code_that_keeps_every_value_is_float32(world):
  run, step, index = world
  run = run.copy_and_resolve_references()
  run.tokens = 2 * STEPS * run.inner.batch_size * run.data.sequence_length
  run.outer.update(learning_rate=1.0, momentum=0.0, inner_steps=2)
  thetas = []
  for name, codec in (("float32", None), ("sparse2", Largest(4096))):
    run.outer.codec = name
    replicas = Replicas(run, 2, step, index, codec)
    replicas.train()
    theta = replicas.theta
    thetas.append([tensor.of(theta) for tensor in replicas.layout.tensors])
  for exact, coded in zip(*thetas, strict=True):
    np.testing.assert_allclose(exact, coded, rtol=1e-4, atol=1e-6)
