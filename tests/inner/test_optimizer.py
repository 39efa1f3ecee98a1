"""The schedule's values, what is decayed, and AdamW against optax's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from intellect_jax import config
from intellect_jax.inner import optimizer
from intellect_jax.model import llama


@pytest.fixture
def tiny():
  return config.load(config.base_path().parent / "tiny.py")


@pytest.mark.parametrize(
  "position, fraction",
  [
    (0, 0.0),
    (50, 0.5),
    (100, 1.0),
    (500, 1.0),
    (600, 1.0),
    (700, 0.5),  # 1 - sqrt(1/4)
    (1000, 0.0),
    (1200, 0.0),  # past the end
  ],
)
def test_warmup_stable_decay(tiny, position, fraction):
  inner = tiny.run.inner
  inner.update(learning_rate=3e-4, warmup_tokens=100, decay_tokens=400)
  rate = jax.jit(lambda p: optimizer.learning_rate(inner, 1000, p))(position)
  assert rate.dtype == jnp.float32
  np.testing.assert_allclose(rate, 3e-4 * fraction, rtol=1e-6)


@pytest.mark.parametrize("position", [0, 999, 2000])
def test_without_warmup_and_decay_the_rate_is_constant(tiny, position):
  inner = tiny.run.inner
  inner.update(learning_rate=3e-4, warmup_tokens=0, decay_tokens=0)
  assert optimizer.learning_rate(inner, 1000, position) == jnp.float32(3e-4)


def test_all_but_norms_decay(tiny):
  """Though stacked norm scales have two axes, as matrices do."""
  c = llama.LlamaConfig.of(tiny.run.model, tiny.island.model)
  params = llama.abstract_params(c)
  mask = optimizer.decays(params)
  assert params["blocks"]["mlp_norm"].ndim == 2
  kept = {
    path[-1].key for path, decay in jax.tree.leaves_with_path(mask) if not decay
  }
  assert kept == {"attention_norm", "mlp_norm", "final_norm"}


def test_equals_adamw_of_optax_after_a_clip(tiny):
  inner, rate = tiny.run.inner, 0.01
  ours = optax.chain(optimizer.make_optimizer(inner), optax.scale(-rate))
  theirs = optax.chain(
    optax.clip_by_global_norm(inner.clip_norm),
    optax.adamw(
      rate,
      inner.beta1,
      inner.beta2,
      inner.epsilon,
      weight_decay=inner.weight_decay,
    ),
  )

  def trajectory(adamw):
    params = {"up": jnp.linspace(-1, 1, 12).reshape(3, 4)}
    state = adamw.init(params)
    for _ in range(5):
      gradient = jax.tree.map(lambda p: 3 * jnp.sin(5 * p), params)
      updates, state = adamw.update(gradient, state, params)
      params = optax.apply_updates(params, updates)
    return params

  chex.assert_trees_all_close(trajectory(ours), trajectory(theirs), rtol=1e-6)
