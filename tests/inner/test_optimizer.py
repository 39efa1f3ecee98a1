"""The schedule's values, what is decayed, and AdamW against optax's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
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


@pytest.mark.parametrize(
  "decay, quarter, half", [("sqrt", 0.5, 0.7071068), ("linear", 0.25, 0.5),
                           ("cosine", 0.1464466, 0.5)]
)  # fmt: skip
def test_ways_down(tiny, decay, quarter, half):
  """From the peak, whatever the way, to what is to be left of it."""
  inner = tiny.run.inner
  inner.update(learning_rate=1.0, warmup_tokens=0, decay_tokens=400)
  inner.update(decay=decay, decay_to=0.1)
  for position, fallen in (
    (0, 0), (600, 0), (700, quarter), (800, half), (1000, 1), (1100, 1),
  ):  # fmt: skip
    rate = optimizer.learning_rate(inner, 1000, position)
    np.testing.assert_allclose(rate, 1 - 0.9 * fallen, rtol=1e-5)


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


def muon_of(tiny):
  tiny.run.inner.update(optimizer="muon", clip_norm=1e9, weight_decay=0.0)
  return optimizer.make_optimizer(tiny.run.inner)


def some_gradient(abstract):
  leaves, tree = jax.tree.flatten(abstract)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  return tree.unflatten(
    jax.random.normal(key, a.shape) for key, a in zip(keys, leaves, strict=True)
  )


def test_muon_takes_each_layers_matrices_by_themselves(tiny):
  """As optax does on the matrices of one layer; heads side by side."""
  c = llama.LlamaConfig.of(tiny.run.model, tiny.island.model)
  inputs = dict(query=1, output=2, down=1)  # axes that a matrix multiplies
  blocks = llama.abstract_params(c)["blocks"]
  gradient = some_gradient({"blocks": {name: blocks[name] for name in inputs}})
  muon = muon_of(tiny)
  updates = jax.jit(lambda g: muon.update(g, muon.init(g), g)[0])(gradient)
  alone = optax.contrib.muon(-1.0, beta=0.95, consistent_rms=0.2)
  update_alone = jax.jit(lambda g: alone.update(g, alone.init(g), g)[0])

  for name, axes in inputs.items():
    for layer in range(c.layers):
      matrix = gradient["blocks"][name][layer]
      rows = int(np.prod(matrix.shape[:axes]))
      expected = update_alone(matrix.reshape(rows, -1)).reshape(matrix.shape)
      seen = updates["blocks"][name][layer]
      chex.assert_trees_all_close(seen, expected, rtol=1e-3, atol=1e-4)
      size = float(jnp.sqrt(jnp.mean(seen**2)))
      assert 0.1 < size < 0.3, name  # about muon_rms


def test_muon_leaves_norms_and_tables_to_adam(tiny):
  c = llama.LlamaConfig.of(tiny.run.model, tiny.island.model)
  params = llama.abstract_params(c)
  muon = muon_of(tiny)
  tiny.run.inner.optimizer = "adamw"
  adamw = optimizer.make_optimizer(tiny.run.inner)
  others = {"embed", "unembed", "final_norm", "attention_norm", "mlp_norm"}
  gradient = some_gradient(
    {k: v for k, v in params.items() if k != "blocks"}
    | {"blocks": {k: v for k, v in params["blocks"].items() if k in others}}
  )
  by_muon, by_adamw = (
    tx.update(gradient, tx.init(gradient), gradient)[0] for tx in (muon, adamw)
  )
  chex.assert_trees_all_close(by_muon, by_adamw)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_moment_lives_where_its_parameter_does(tiny, name):
  """And the state counts no schedule: positions come from the swarm."""
  tiny.run.inner.optimizer = name
  c = llama.LlamaConfig.of(tiny.run.model, tiny.island.model)
  params = llama.abstract_params(c)
  tx = optimizer.make_optimizer(tiny.run.inner)
  state = jax.eval_shape(tx.init, params)
  marked = optimizer.as_params(state, params, otherwise=None)
  moments = 0
  for (path, leaf), mark in zip(
    jax.tree.leaves_with_path(state),
    jax.tree.leaves(marked, is_leaf=lambda x: x is None),
    strict=True,
  ):
    assert (mark is None) == (leaf.size < 4), path
    if mark is not None:
      assert mark.shape == leaf.shape, path
      moments += 1
  count = len(jax.tree.leaves(params))
  assert moments == {"adamw": 2 * count, "muon": 2 * 5 + 7}[name]
  assert "Schedule" not in str(jax.tree.structure(state))
