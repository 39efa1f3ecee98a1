"""Replicas in one process are what a swarm of islands is."""

import jax
import numpy as np
import pytest

from benchmarks.replicas import Replicas
from intellect_jax import config as config_lib
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import sharding
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
