"""Cross-entropy of the next token, as sums: parts of a batch just add up."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class LossSums(NamedTuple):
  """Over all tokens, each times its weight; float32 scalars."""

  nll: jax.Array  # nats
  z: jax.Array  # squared largest logits
  max_logit: jax.Array  # a maximum, not a sum


def loss_sums(
  logits_BxLxV: jax.Array, targets_BxL: jax.Array, weights_BxL: jax.Array
) -> LossSums:
  """Sums of the losses of tokens; divide by the sum of weights for means.

  z is for the max-z-loss (Baichuan 2, arXiv 2309.10305): it keeps the largest
  logit of each token near 0.
  """
  chex.assert_shape([targets_BxL, weights_BxL], logits_BxLxV.shape[:2])
  chex.assert_type(logits_BxLxV, jnp.float32)
  max_BxL = jnp.max(logits_BxLxV, axis=-1)
  target_BxL = jnp.take_along_axis(
    logits_BxLxV, targets_BxL[..., None], axis=-1
  )[..., 0]
  nll_BxL = jax.nn.logsumexp(logits_BxLxV, axis=-1) - target_BxL
  return LossSums(
    nll=jnp.sum(nll_BxL * weights_BxL),
    z=jnp.sum(max_BxL**2 * weights_BxL),
    max_logit=jnp.max(max_BxL),
  )
