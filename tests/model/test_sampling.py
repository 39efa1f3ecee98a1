"""Sampling says what the model says."""

import jax
import jax.numpy as jnp
import pytest

from intellect_jax import config
from intellect_jax.model import llama, sampling, sharding

PROMPT = [5, 300, 17]
apply = jax.jit(llama.apply, static_argnums=0)


@pytest.fixture(scope="module")
def model():
  tiny = config.load(config.base_path().parent / "tiny.py")
  c = llama.LlamaConfig.of(tiny.run.model, tiny.island.model)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return c, llama.init_params(c, jax.random.key(0), mesh)


def greedy(c, params, steps, window=10**9):
  """Without padding: one forward pass over exactly what is there."""
  text = list(PROMPT)
  for _ in range(steps):
    tokens = jnp.array([text[-window:]])
    positions = jnp.arange(tokens.shape[1])[None]
    logits = apply(c, params, tokens, positions, jnp.ones_like(tokens))
    text.append(int(jnp.argmax(logits[0, -1])))
  return text[len(PROMPT) :]


def test_temperature_0_is_greedy(model):
  key = jax.random.key(0)
  assert sampling.sample(*model, PROMPT, 4, 0.0, 0, key) == greedy(*model, 4)


def test_top_1_is_greedy_at_any_temperature(model):
  key = jax.random.key(0)
  assert sampling.sample(*model, PROMPT, 4, 9.0, 1, key) == greedy(*model, 4)


def test_the_window_slides(model):
  sampled = sampling.sample(
    *model, PROMPT, 4, 0.0, 0, jax.random.key(0), window=4
  )
  assert sampled == greedy(*model, 4, window=4)


def test_stop_ends_the_text_and_is_left_out(model):
  expected = greedy(*model, 4)
  stop = expected[2]
  sampled = sampling.sample(
    *model, PROMPT, 4, 0.0, 0, jax.random.key(0), stop=stop
  )
  assert sampled == expected[: expected.index(stop)]


def test_the_key_decides_the_text(model):
  a, b, c = (
    sampling.sample(*model, PROMPT, 4, 1.0, 0, jax.random.key(seed))
    for seed in (0, 0, 1)
  )
  assert a == b != c
