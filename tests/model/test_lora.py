"""Adapters: nothing at first, what is trained alone, and part of W when merged."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax import config
from intellect_jax.inner.step import EvalStep, TrainStep
from intellect_jax.model import llama, lora, sharding
from intellect_jax.model.huggingface import from_weight, tensor_names, to_weight
from intellect_jax.outer.layout import Layout

RANK = 3


def tiny(rank=RANK, dpo=False):
  tiny = config.load(config.base_path().parent / "tiny.py")
  tiny.run.model.update(lora_rank=rank, lora_alpha=6.0)
  tiny.run.data.sequence_length = 32
  if dpo:
    tiny.run.inner.loss = "dpo"
  return tiny


def batch():
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 256, (8, 32), np.int32)
  return dict(
    tokens=tokens,
    targets=(tokens + 1) % 256,
    segment_ids=1 + (np.arange(32) >= 16) * np.ones((8, 1), np.int32),
    positions=np.arange(32) % 16 * np.ones((8, 1), np.int32),
    weights=np.ones((8, 32), np.float32),
  )


def start(fsdp=1, tensor=1, **settings):
  c = tiny(**settings)
  devices = jax.devices()[: fsdp * tensor]
  step = TrainStep(c.run, c.island, sharding.make_mesh(fsdp, tensor, devices))
  whole = config.load(config.base_path().parent / "tiny.py")
  base_c = llama.LlamaConfig.of(whole.run.model, whole.island.model)
  mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
  base = jax.tree.map(
    np.array, llama.init_params(base_c, jax.random.key(7), mesh)
  )
  step.freeze(base)
  return c, step, base


def train(step, steps):
  state, losses = step.init(jax.random.key(0)), []
  for _ in range(steps):
    state, metrics = step(state, batch(), 4096.0)
    losses.append(float(metrics["loss"]))
  return state, losses


@pytest.fixture(scope="module")
def trained():
  c, step, base = start()
  return c, step, base, *train(step, 5)


def test_only_adapters_are_trained(trained):
  """They are theta: of the frozen model's size there is nothing else."""
  _, step, base, state, losses = trained
  assert losses[-1] < losses[0] - 0.3
  chex.assert_trees_all_equal(jax.tree.map(np.array, step.frozen), base)
  assert list(state.params) == ["blocks"]
  assert len(state.params["blocks"]) == 2 * len(lora.MATRICES)
  size = sum(a.size for a in jax.tree.leaves(state.params))
  assert size < 0.3 * sum(a.size for a in jax.tree.leaves(base))
  moments = sum(a.size for a in jax.tree.leaves(state.opt_state))
  assert moments < 2.01 * size
  for name, leaf in state.params["blocks"].items():
    assert np.abs(leaf).max() > 0, name  # B no longer 0


def test_at_first_the_model_is_what_is_frozen(trained):
  c, step, base, _, losses = trained
  plain = config.load(config.base_path().parent / "tiny.py").run
  evaluate = EvalStep(plain, c.island, step.mesh)
  assert evaluate(base, [batch()]) == pytest.approx(losses[0], rel=1e-6)


def test_merged_it_is_the_same_model(trained):
  c, step, base, state, _ = trained
  adapted = llama.LlamaConfig.of(c.run.model, c.island.model)
  adapters = jax.tree.map(np.array, state.params)
  before = jax.tree.map(np.copy, base)
  merged = lora.merge(adapted, base, adapters)
  chex.assert_trees_all_equal(base, before)
  assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, base)
  x = [jnp.asarray(batch()[n]) for n in ("tokens", "positions", "segment_ids")]
  apart = llama.apply(adapted, lora.join(base, adapters), *x)
  plain = dataclasses.replace(adapted, lora_rank=0)
  together = llama.apply(plain, merged, *x)
  np.testing.assert_allclose(apart, together, atol=2e-5)
  assert np.abs(together - llama.apply(plain, base, *x)).max() > 0.1
  evaluate = EvalStep(c.run, c.island, step.mesh, step.frozen)
  assert evaluate(adapters, [batch()]) < trained[4][-1]


def test_adapters_have_a_place_in_the_canonical_vector(trained):
  state = trained[3]
  adapters = jax.tree.map(np.array, state.params)
  layout = Layout.of(adapters, tensor_names(adapters))
  assert len(layout.tensors) == 2 * 2 * len(lora.MATRICES)
  back = layout.unflatten(layout.flatten(adapters))
  chex.assert_trees_all_equal(back, adapters)
  name = "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"
  assert name in {tensor.name for tensor in layout.tensors}
  for tensor in layout.tensors:
    values = tensor.of(layout.flatten(adapters))
    weight = to_weight(tensor.path, values)
    assert weight.shape["lora_B" in tensor.name] == RANK
    again = from_weight(tensor.path, weight, values.shape)
    np.testing.assert_array_equal(again, values)


def test_preferences_are_compared_with_the_model_without_adapters():
  """On a mesh of four, too, where adapters are shared like what they adapt."""
  _, step, _ = start(2, 2, dpo=True)
  state = step.init(jax.random.key(0))
  rejected = batch()
  rejected["targets"][:, 16:] = 0
  seen = []
  for _ in range(5):
    state, metrics = step(state, rejected, 4096.0)
    seen.append((float(metrics["loss"]), float(metrics["margin"])))
  assert seen[0] == (pytest.approx(np.log(2), rel=1e-6), 0.0)
  assert seen[-1][0] < 0.3 and seen[-1][1] > 1
  assert jax.tree.map(lambda a: a.sharding, state) == step.state_shardings
  assert not state.params["blocks"]["up" + lora.A].sharding.is_fully_replicated
