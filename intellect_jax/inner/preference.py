"""Direct preference optimization (DPO, arXiv 2305.18290), of packed pairs.

In a sample the segments 1 and 2 are chosen and rejected of a pair, 3 and 4 of
the next one, and so on; weights are 1 for the targets that are compared.
Dimensions: B sequences, L length, P pairs that a sequence can have.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class PairSums(NamedTuple):
  """Over all pairs; float32 scalars."""

  loss: jax.Array  # nats
  correct: jax.Array  # pairs whose chosen has gained more than their rejected
  margin: jax.Array  # beta times how much more, nats
  chosen_nll: jax.Array  # of the chosen answers, nats a token of each


def pair_sums(
  nll_BxL: jax.Array,
  reference_nll_BxL: jax.Array,
  weights_BxL: jax.Array,
  segment_ids_BxL: jax.Array,
  beta: float,
) -> PairSums:
  """Sums over pairs; divide by their count for means.

    loss = -log sigmoid(margin)
    margin = beta ((log p - log q)(chosen) - (log p - log q)(rejected))

  where p is the model that is trained and q the reference (equation 7). An
  answer's NLL is a mean over its tokens, so that long ones weigh no more.

  Args:
    nll_BxL: -log p of each target, float32.
    reference_nll_BxL: -log q.
    weights_BxL, segment_ids_BxL: of the batch.
    beta: how dear it is to leave the reference.
  """
  chex.assert_equal_shape(
    [nll_BxL, reference_nll_BxL, weights_BxL, segment_ids_BxL]
  )
  gained_BxL = weights_BxL * (reference_nll_BxL - nll_BxL)
  gained_BxPx2 = _by_pair(gained_BxL, segment_ids_BxL)
  margin_BxP = beta * (gained_BxPx2[..., 0] - gained_BxPx2[..., 1])
  present_BxP = _present(weights_BxL, segment_ids_BxL)
  nll_BxP = _by_pair(weights_BxL * nll_BxL, segment_ids_BxL)[..., 0]
  tokens_BxP = _by_pair(weights_BxL, segment_ids_BxL)[..., 0]
  return PairSums(
    loss=jnp.sum(present_BxP * jax.nn.softplus(-margin_BxP)),
    correct=jnp.sum(present_BxP * (margin_BxP > 0)),
    margin=jnp.sum(present_BxP * margin_BxP),
    chosen_nll=jnp.sum(present_BxP * nll_BxP / jnp.maximum(tokens_BxP, 1)),
  )


def count_pairs(
  weights_BxL: jax.Array, segment_ids_BxL: jax.Array
) -> jax.Array:
  """How many pairs a batch has, a float32 scalar."""
  return jnp.sum(_present(weights_BxL, segment_ids_BxL))


def _present(weights_BxL: jax.Array, segment_ids_BxL: jax.Array) -> jax.Array:
  """1 where there is a pair, else 0; float32 BxP."""
  weights_BxPx2 = _by_pair(weights_BxL, segment_ids_BxL)
  return jnp.all(weights_BxPx2 > 0, axis=-1).astype(jnp.float32)


def _by_pair(x_BxL: jax.Array, segment_ids_BxL: jax.Array) -> jax.Array:
  """Sums over segments, of chosen and rejected side by side; BxPx2."""
  B, L = x_BxL.shape
  pairs = (L + 1) // 2  # each segment takes a place
  sums = jax.vmap(
    lambda x_L, ids_L: jax.ops.segment_sum(x_L, ids_L, 2 * pairs + 1)
  )
  return sums(x_BxL, segment_ids_BxL)[:, 1:].reshape(B, pairs, 2)
