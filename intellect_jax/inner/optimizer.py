"""AdamW, its decay mask and its learning rate."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax


def make_optimizer(run_inner: ConfigDict) -> optax.GradientTransformation:
  """AdamW (arXiv 1711.05101) up to the learning rate, after a norm clip.

  The learning rate is left out, and with it optax's count of steps: the
  schedule follows the tokens of the whole swarm (`learning_rate`), while
  Adam's own count, for its bias correction, stays with the moments.
  """
  return optax.chain(
    optax.clip_by_global_norm(run_inner.clip_norm),
    optax.scale_by_adam(run_inner.beta1, run_inner.beta2, run_inner.epsilon),
    optax.add_decayed_weights(run_inner.weight_decay, mask=decays),
  )


def decays(params):
  """True for what is decayed: all but the scales of norms.

  By name: stacked norm scales have two axes, like matrices.
  """
  return jax.tree.map_with_path(
    lambda path, _: not path[-1].key.endswith("norm"), params
  )


def learning_rate(run_inner: ConfigDict, total_tokens: float, position):
  """Warm-up, stable, decay (arXiv 2405.18392): linear up, 1 - sqrt down.

  Args:
    run_inner: learning_rate (peak), warmup_tokens, decay_tokens.
    total_tokens: where the run ends and the rate reaches 0.
    position: tokens the swarm has trained on, a scalar, traced or not.

  Returns:
    A float32 scalar.
  """
  position = jnp.asarray(position, jnp.float32)
  rate = jnp.float32(run_inner.learning_rate)
  if run_inner.warmup_tokens:
    rate *= jnp.clip(position / run_inner.warmup_tokens, 0, 1)
  if run_inner.decay_tokens:
    decay_start = total_tokens - run_inner.decay_tokens
    decayed = jnp.clip((position - decay_start) / run_inner.decay_tokens, 0, 1)
    rate *= 1 - jnp.sqrt(decayed)
  return rate
