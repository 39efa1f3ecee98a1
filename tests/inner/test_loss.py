"""Sums of losses: their values, and that parts of a batch add up."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.inner import loss

V = 11


@jax.jit
def loss_sums(logits, targets, weights):
  return loss.loss_sums(loss.token_losses(logits, targets), weights)


def some_batch():
  keys = jax.random.split(jax.random.key(0), 3)
  return (
    jax.random.normal(keys[0], (4, 6, V)),
    jax.random.randint(keys[1], (4, 6), 0, V),
    jax.random.uniform(keys[2], (4, 6)),
  )


def test_ignorance_costs_the_logarithm_of_the_vocabulary():
  _, targets, weights = some_batch()
  sums = loss_sums(jnp.full((4, 6, V), 7.0), targets, weights)
  np.testing.assert_allclose(sums.nll, np.log(V) * weights.sum(), rtol=1e-6)
  np.testing.assert_allclose(sums.z, 49 * weights.sum(), rtol=1e-6)
  assert sums.max_logit == 7


def test_nll_is_minus_the_log_probability_of_the_targets():
  logits, targets, weights = some_batch()
  probability = jax.nn.softmax(logits)
  expected = sum(
    -weights[i] * np.log(probability[i][targets[i]])
    for i in np.ndindex(targets.shape)
  )
  sums = loss_sums(logits, targets, weights)
  np.testing.assert_allclose(sums.nll, expected, rtol=1e-5)


def test_tokens_of_weight_0_count_for_nothing():
  logits, targets, weights = some_batch()
  weights = weights.at[1].set(0)
  without = loss_sums(logits.at[1].set(99.0), targets, weights)
  chex.assert_trees_all_equal(
    without[:2], loss_sums(logits, targets, weights)[:2]
  )


def test_parts_add_up_to_the_whole():
  batch = some_batch()
  whole = loss_sums(*batch)
  first = loss_sums(*(x[:1] for x in batch))
  rest = loss_sums(*(x[1:] for x in batch))
  np.testing.assert_allclose(first.nll + rest.nll, whole.nll, rtol=1e-6)
  np.testing.assert_allclose(first.z + rest.z, whole.z, rtol=1e-6)
  assert max(first.max_logit, rest.max_logit) == whole.max_logit


def test_z_pulls_only_at_the_largest_logit_of_a_token():
  logits, targets, weights = some_batch()
  gradient = jax.grad(lambda x: loss_sums(x, targets, weights).z)(logits)
  largest = logits == logits.max(axis=-1, keepdims=True)
  expected = 2 * logits * weights[..., None] * largest
  chex.assert_trees_all_close(gradient, expected, rtol=1e-6)


def by_chunks(chunk):
  """Loss and gradients by hidden states and unembedding, jitted."""

  def objective(x_BxLxD, unembed_DxV, targets, weights):
    losses = loss.chunked_token_losses(
      lambda x: x @ unembed_DxV, x_BxLxD, targets, chunk
    )
    sums = loss.loss_sums(losses, weights)
    return sums.nll + 0.1 * sums.z, sums

  return jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))


def hidden_batch(B, L, D, V):
  keys = jax.random.split(jax.random.key(0), 4)
  return (
    jax.random.normal(keys[0], (B, L, D)),
    jax.random.normal(keys[1], (D, V)),
    jax.random.randint(keys[2], (B, L), 0, V),
    jax.random.uniform(keys[3], (B, L)),
  )


def test_chunks_change_neither_loss_nor_gradient():
  batch = hidden_batch(3, 12, 8, V)
  whole = by_chunks(0)(*batch)
  for chunk in (4, 12):
    parts = by_chunks(chunk)(*batch)
    chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("optimized")
def test_chunks_never_hold_all_logits():
  """Of 4 MiB logits an eighth at once, and one gradient of them."""
  batch = jax.eval_shape(lambda: hidden_batch(1, 256, 8, 4096))
  logits = 256 * 4096 * 4

  def temporaries(chunk):
    memory = by_chunks(chunk).lower(*batch).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes

  assert temporaries(0) > logits
  assert temporaries(32) < logits / 2
