"""DiLoCo of one island with a plain outer step is AdamW."""

import contextlib

import jax
import numpy as np

from intellect_jax import config as config_lib
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.mesh import ElasticDeviceMesh
from intellect_jax.elastic.rpc import LOOPBACK
from intellect_jax.elastic.service import CoordinatorService
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import sharding

ROUNDS = 10
STEPS = 4


def test_one_island_follows_adamw(tmp_path):
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  run, island = config.run, config.island
  run.outer.update(
    inner_steps=STEPS, learning_rate=1.0, momentum=0.0, codec="float32"
  )
  run.tokens = ROUNDS * STEPS * run.inner.batch_size * run.data.sequence_length
  step = TrainStep(run, island, sharding.make_mesh(devices=jax.devices()[:1]))
  index = GlobalIndex(run.data, tokenizer_of(run))
  losses, merged = [], []  # parameters after each merge
  with contextlib.ExitStack() as stack:
    service = CoordinatorService(run, tmp_path / "coordinator")
    stack.callback(service.close)
    identity = Identity(tmp_path / "island", "alone")
    stack.callback(identity.close)
    mesh = stack.enter_context(
      ElasticDeviceMesh(
        run,
        island,
        identity,
        step,
        index,
        None,
        [service.address],
        service.description(),
        LOOPBACK,
        alone=True,
      )
    )
    state = mesh.state
    for batch in mesh.batches():
      state, metrics = step(state, batch, mesh.schedule())
      losses.append(float(metrics["loss"]))
      record = mesh.record
      state = mesh.after_step(state, metrics)
      if mesh.record > record:
        merged.append(jax.device_get(state.params))
  assert len(losses) == ROUNDS * STEPS and len(merged) == ROUNDS

  plain = step.init(jax.random.key(run.seed))
  initial = jax.device_get(plain.params)
  samples = [(0, ROUNDS * STEPS * run.inner.batch_size)]
  tokens = run.inner.batch_size * run.data.sequence_length
  for n, batch in enumerate(index.batches(samples, run.inner.batch_size)):
    plain, metrics = step(plain, batch, n * tokens)
    assert abs(float(metrics["loss"]) - losses[n]) <= 1e-5, f"inner step {n}"
    if n + 1 == STEPS:
      jax.tree.map(assert_within_one_ulp, merged[0], plain.params, initial)


def assert_within_one_ulp(actual, expected, theta):
  """theta - (theta - x) loses at most the last bit of the larger of the two."""
  expected = np.asarray(expected)
  ulp = np.spacing(np.maximum(np.abs(theta), np.abs(expected)))
  assert (np.abs(actual - expected) <= ulp).all()
  assert (actual != theta).any()
