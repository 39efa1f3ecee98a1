"""Tokens are drawn by the rule of their row."""

import jax
import jax.numpy as jnp
import numpy as np

from intellect_jax.model.sampling import choose

PROBABILITIES = np.array([0.1, 0.5, 0.15, 0.25])  # the order is 1, 3, 2, 0
DRAWS = 2000


def draw(temperature=1.0, top_k=0, top_p=1.0, seed=0, rows=DRAWS, first=0):
  """Draws of one rule, at steps one after the other."""
  logits = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))

  def full(value, dtype):
    return jnp.full(rows, value, dtype)

  drawn = jax.jit(choose)(
    jnp.tile(logits, (rows, 1)),
    full(temperature, jnp.float32),
    full(top_k, jnp.int32),
    full(top_p, jnp.float32),
    full(seed, jnp.uint32),
    first + jnp.arange(rows),
  )
  return np.asarray(drawn)


def assert_frequencies(drawn, expected):
  """Within five standard deviations of a binomial."""
  expected = np.asarray(expected) / np.sum(expected)
  seen = np.bincount(drawn, minlength=4) / len(drawn)
  deviation = np.sqrt(expected * (1 - expected) / len(drawn))
  assert np.all(np.abs(seen - expected) <= 5 * deviation), seen


def test_each_token_has_its_probability():
  assert_frequencies(draw(), PROBABILITIES)


def test_temperature_divides_the_logits():
  assert_frequencies(draw(temperature=2.0), np.sqrt(PROBABILITIES))


def test_temperature_0_and_top_1_take_the_likeliest():
  assert set(draw(temperature=0.0)) == set(draw(top_k=1)) == {1}


def test_top_k_leaves_the_likeliest():
  assert_frequencies(draw(top_k=3), [0, 0.5, 0.15, 0.25])
  assert_frequencies(draw(top_k=9), PROBABILITIES)


def test_top_p_leaves_the_fewest_with_enough():
  assert_frequencies(draw(top_p=0.49), [0, 1, 0, 0])
  assert_frequencies(draw(top_p=0.6), [0, 0.5, 0, 0.25])
  # Of the three that top-k leaves, 0.5 / 0.9 is enough for 0.55.
  assert_frequencies(draw(top_k=3, top_p=0.55), [0, 1, 0, 0])


def test_a_draw_depends_on_seed_and_step_alone():
  drawn = draw(rows=64)
  np.testing.assert_array_equal(draw(rows=32, first=32), drawn[32:])
  assert np.any(draw(rows=64, seed=1) != drawn)
