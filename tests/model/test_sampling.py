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


def sample(model, steps=4, temperature=1.0, top_k=0, seed=0, **options):
  c, params = model
  key = jax.random.key(seed)
  return sampling.sample(
    c, params, PROMPT, steps, temperature, top_k, key, **options
  )


def greedy(model, steps=4, window=10**9):
  """Without padding: one forward pass over exactly what is there."""
  c, params = model
  text = list(PROMPT)
  for _ in range(steps):
    tokens = jnp.array([text[-window:]])
    positions = jnp.arange(tokens.shape[1])[None]
    logits = apply(c, params, tokens, positions, jnp.ones_like(tokens))
    text.append(int(jnp.argmax(logits[0, -1])))
  return text[len(PROMPT) :]


def test_temperature_0_is_greedy(model):
  assert sample(model, temperature=0.0) == greedy(model)


def test_top_1_is_greedy_at_any_temperature(model):
  assert sample(model, temperature=9.0, top_k=1) == greedy(model)


def test_the_window_slides(model):
  assert sample(model, top_k=1, window=4) == greedy(model, window=4)


def test_stop_ends_the_text_and_is_left_out(model):
  expected = greedy(model)
  stop = expected[2]
  text = sample(model, top_k=1, stop=stop)
  assert text == expected[: expected.index(stop)]


def test_the_key_decides_the_text(model):
  assert sample(model, seed=0) == sample(model, seed=0) != sample(model, seed=1)
