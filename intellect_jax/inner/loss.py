"""Cross-entropy of the next token, as sums: parts of a batch just add up."""

from collections.abc import Callable
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


def chunked_loss_sums(
  logits: Callable[[jax.Array], jax.Array],
  x_BxLxD: jax.Array,
  targets_BxL: jax.Array,
  weights_BxL: jax.Array,
  chunk: int,
) -> LossSums:
  """`loss_sums` of `logits(x)`, for `chunk` positions of each sequence at once.

  The logits of a large vocabulary are the largest array of a step. Here no more
  of them exist than B x chunk x V: the backward pass computes them again.

  Args:
    logits: maps BxSxD to BxSxV float32, each position on its own.
    chunk: positions; divides L. 0: all at once, nothing computed twice.
  """
  if not chunk:
    return loss_sums(logits(x_BxLxD), targets_BxL, weights_BxL)

  def split(x_BxLx_):
    B, L, *rest = x_BxLx_.shape
    return jnp.moveaxis(x_BxLx_.reshape(B, L // chunk, chunk, *rest), 1, 0)

  @jax.checkpoint
  def add(sums, part):
    x_BxSxD, targets_BxS, weights_BxS = part
    more = loss_sums(logits(x_BxSxD), targets_BxS, weights_BxS)
    return LossSums(
      nll=sums.nll + more.nll,
      z=sums.z + more.z,
      max_logit=jnp.maximum(sums.max_logit, more.max_logit),
    ), None

  zero = jnp.float32(0)
  parts = jax.tree.map(split, (x_BxLxD, targets_BxL, weights_BxL))
  return jax.lax.scan(add, LossSums(zero, zero, jnp.float32(-jnp.inf)), parts)[
    0
  ]
