"""The next token of each row, drawn from its logits."""

import jax
import jax.numpy as jnp


def choose(
  logits_RxV: jax.Array,
  temperature_R: jax.Array,
  top_k_R: jax.Array,
  top_p_R: jax.Array,
  seeds_R: jax.Array,
  steps_R: jax.Array,
) -> jax.Array:
  """Draws a token for each row, by its own rule; int32 [R].

  The order is that of transformers: temperature, then top-k, then top-p (the
  nucleus, arXiv 1904.09751). A row's draw depends on its seed and step alone,
  not on the rows beside it.

  Args:
    logits_RxV: float32.
    temperature_R: divides the logits; 0 takes the likeliest token.
    top_k_R: draw from so many of the likeliest; 0: from all. int32.
    top_p_R: draw from the fewest likeliest whose probabilities, after top-k,
      sum up to at least this; 1: from all.
    seeds_R: uint32.
    steps_R: how many tokens the row has drawn before; int32.
  """
  V = logits_RxV.shape[1]
  warm_R = jnp.maximum(temperature_R, 1e-6)
  hot_RxV = logits_RxV / warm_R[:, None]
  sorted_RxV = -jnp.sort(-hot_RxV)
  count_R = jnp.where(top_k_R > 0, jnp.minimum(top_k_R, V), V)
  allowed_RxV = jnp.arange(V) < count_R[:, None]
  p_RxV = jax.nn.softmax(jnp.where(allowed_RxV, sorted_RxV, -jnp.inf))
  before_RxV = jnp.cumsum(p_RxV, axis=-1) - p_RxV
  # The likeliest is always in, whatever rounding makes of top_p = 0.
  allowed_RxV &= (before_RxV < top_p_R[:, None]) | (jnp.arange(V) == 0)
  least_R = jnp.min(jnp.where(allowed_RxV, sorted_RxV, jnp.inf), axis=-1)
  hot_RxV = jnp.where(hot_RxV < least_R[:, None], -jnp.inf, hot_RxV)

  def draw(seed, step, hot_V):
    return jax.random.categorical(
      jax.random.fold_in(jax.random.key(seed), step), hot_V
    )

  drawn_R = jax.vmap(draw)(seeds_R, steps_R, hot_RxV)
  likeliest_R = jnp.argmax(logits_RxV, axis=-1)
  return jnp.where(temperature_R == 0, likeliest_R, drawn_R).astype(jnp.int32)
