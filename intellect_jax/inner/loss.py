"""Cross-entropy of the next token, as sums: parts of a batch just add up."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class TokenLosses(NamedTuple):
  """Of each token; float32 BxL."""

  nll: jax.Array  # nats
  max_logit: jax.Array


class LossSums(NamedTuple):
  """Over all tokens, each times its weight; float32 scalars."""

  nll: jax.Array  # nats
  z: jax.Array  # squared largest logits
  max_logit: jax.Array  # a maximum, not a sum


def token_losses(
  logits_BxLxV: jax.Array, targets_BxL: jax.Array
) -> TokenLosses:
  """What each target takes, in nats, and how large its logits are."""
  chex.assert_shape(targets_BxL, logits_BxLxV.shape[:2])
  chex.assert_type(logits_BxLxV, jnp.float32)
  target_BxL = jnp.take_along_axis(
    logits_BxLxV, targets_BxL[..., None], axis=-1
  )[..., 0]
  nll_BxL = jax.nn.logsumexp(logits_BxLxV, axis=-1) - target_BxL
  return TokenLosses(nll_BxL, jnp.max(logits_BxLxV, axis=-1))


def chunked_token_losses(
  logits: Callable[[jax.Array], jax.Array],
  x_BxLxD: jax.Array,
  targets_BxL: jax.Array,
  chunk: int,
) -> TokenLosses:
  """`token_losses` of `logits(x)`, for `chunk` positions of each sequence at once.

  The logits of a large vocabulary are the largest array of a step. Here no more
  of them exist than B x chunk x V: the backward pass computes them again.

  Args:
    logits: maps BxSxD to BxSxV float32, each position on its own.
    chunk: positions; divides L. 0: all at once, nothing computed twice.
  """
  if not chunk:
    return token_losses(logits(x_BxLxD), targets_BxL)

  def split(x_BxLx_):
    B, L, *rest = x_BxLx_.shape
    return jnp.moveaxis(x_BxLx_.reshape(B, L // chunk, chunk, *rest), 1, 0)

  @jax.checkpoint
  def of_part(_, part):
    x_BxSxD, targets_BxS = part
    return None, token_losses(logits(x_BxSxD), targets_BxS)

  parts = jax.tree.map(split, (x_BxLxD, targets_BxL))
  losses = jax.lax.scan(of_part, None, parts)[1]
  return jax.tree.map(
    lambda x_NxBxS: jnp.moveaxis(x_NxBxS, 0, 1).reshape(targets_BxL.shape),
    losses,
  )


def loss_sums(losses: TokenLosses, weights_BxL: jax.Array) -> LossSums:
  """Sums of the losses of tokens; divide by the sum of weights for means.

  z is for the max-z-loss (Baichuan 2, arXiv 2309.10305): it keeps the largest
  logit of each token near 0.
  """
  chex.assert_equal_shape([losses.nll, weights_BxL])
  return LossSums(
    nll=jnp.sum(losses.nll * weights_BxL),
    z=jnp.sum(losses.max_logit**2 * weights_BxL),
    max_logit=jnp.max(losses.max_logit),
  )
