"""The step that benchmarks compare with is the same step."""

import chex
import jax
import numpy as np

from benchmarks import plain_jax
from benchmarks.contestants import packed_batch
from intellect_jax import config as config_lib
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import sharding


def test_plain_jax_trains_the_same_model():
  config = config_lib.load(config_lib.base_path().parent / "tiny.py")
  config.run.inner.update(warmup_tokens=0)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  ours = TrainStep(config.run, config.island, mesh)
  state, batch = ours.init(jax.random.key(0)), packed_batch(config.run)
  params = jax.tree.map(np.array, state.params)

  init, step = plain_jax.make_step(config.run, scan_layers=False)
  opt_state = init(params)
  for _ in range(2):
    state, metrics = ours(state, batch, 0.0)
    params, opt_state, loss = step(params, opt_state, batch)
    np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-5)
  # Adam's first steps are nearly signs of the gradient: one that is about 0
  # may take either.
  chex.assert_trees_all_close(params, state.params, atol=1e-3)
