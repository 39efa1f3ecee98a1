"""Text from a model, one token at a time."""

import functools

import jax
import jax.numpy as jnp

from intellect_jax.model import llama


def sample(
  c: llama.LlamaConfig,
  params: llama.Params,
  prompt_tokens: list[int],
  steps: int,
  temperature: float,
  top_k: int,
  key: jax.Array,
  stop: int | None = None,
  window: int | None = None,
) -> list[int]:
  """Continues a prompt; every token costs a forward pass over the window.

  Args:
    params: of numpy or jax.
    prompt_tokens: at least one.
    steps: most tokens to add.
    temperature: divides the logits; 0 takes the most likely token.
    top_k: choose among so many of the likeliest tokens; 0: among all.
    key: of jax.random.
    stop: the token that ends the text; it is not returned.
    window: how far the model looks back, in tokens: what it was trained on.
      By default as far as the prompt begins.

  Returns:
    The new tokens, without the prompt.
  """
  if not prompt_tokens:
    raise ValueError("sample needs at least one token to continue")
  params = jax.device_put(params)
  window = window or len(prompt_tokens) + steps
  text = list(prompt_tokens)
  for step in range(steps):
    seen = text[-window:]
    token = _next_token(
      c,
      params,
      jnp.array([seen + [0] * (window - len(seen))]),
      len(seen) - 1,
      temperature,
      top_k,
      jax.random.fold_in(key, step),
    )
    if token == stop:
      break
    text.append(int(token))
  return text[len(prompt_tokens) :]


@functools.partial(jax.jit, static_argnames=("c", "top_k"))
def _next_token(c, params, tokens_1xL, last, temperature, top_k, key):
  """A token after position `last`; what comes later is hidden by causality."""
  positions_1xL = jnp.arange(tokens_1xL.shape[1])[None]
  logits_1xLxV = llama.apply(
    c, params, tokens_1xL, positions_1xL, jnp.ones_like(tokens_1xL)
  )
  logits_V = logits_1xLxV[0, last]
  if top_k:
    least = jax.lax.top_k(logits_V, top_k)[0][-1]
    logits_V = jnp.where(logits_V < least, -jnp.inf, logits_V)
  hot = jax.random.categorical(key, logits_V / jnp.maximum(temperature, 1e-6))
  return jnp.where(temperature == 0, jnp.argmax(logits_V), hot)
