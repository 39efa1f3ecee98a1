import jax
import numpy as np
import optax
import pytest

from intellect_jax.outer import kernels, nesterov


def test_known_vectors():
  theta, momentum = np.zeros(3, np.float32), np.zeros(3, np.float32)
  ones = np.ones(3, np.float32)
  for expected in (-1.9, -4.61, -8.049):
    nesterov.apply(theta, momentum, ones, 1.0, 0.9)
    np.testing.assert_allclose(theta, expected, rtol=3e-7)


def test_equals_optax_sgd_with_nesterov_momentum():
  rng = np.random.default_rng(0)
  theta = rng.standard_normal(1000, dtype=np.float32)
  momentum = np.zeros_like(theta)
  sgd = optax.sgd(0.7, momentum=0.9, nesterov=True)
  params = jax.numpy.array(theta)
  state = sgd.init(params)
  for _ in range(5):
    mean = rng.standard_normal(1000, dtype=np.float32)
    nesterov.apply(theta, momentum, mean, 0.7, 0.9)
    updates, state = sgd.update(jax.numpy.array(mean), state)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(theta, np.asarray(params), rtol=1e-6, atol=1e-6)


def test_rounds_as_numpy_float32_does():
  """A contracted multiply-add would differ in the last bit here and there."""
  rng = np.random.default_rng(0)
  theta, b, d = rng.standard_normal((3, 100_000), dtype=np.float32)
  eta, mu = np.float32(0.7), np.float32(0.9)
  b_new = mu * b + d
  theta_new = theta - eta * (d + mu * b_new)
  nesterov.apply(theta, b, d, 0.7, 0.9)
  np.testing.assert_array_equal(b, b_new)
  np.testing.assert_array_equal(theta, theta_new)


def test_a_scale_is_rounded_before_anything_else():
  rng = np.random.default_rng(0)
  theta, b, mean = rng.standard_normal((3, 100_000), dtype=np.float32)
  expected, expected_b = theta.copy(), b.copy()
  scaled = np.float32(1.7) * mean
  nesterov.apply(expected, expected_b, scaled, 0.7, 0.9)
  nesterov.apply(theta, b, mean, 0.7, 0.9, scale=1.7)
  np.testing.assert_array_equal(b, expected_b)
  np.testing.assert_array_equal(theta, expected)


def test_the_gain_is_the_steps_part_along_the_mean():
  """From b after the step it is what it is from b before: 1 + mu + …"""
  rng = np.random.default_rng(0)
  mu, b = 0.9, np.zeros(10_240, np.float32)
  common, gains = rng.standard_normal(10_240, dtype=np.float32), []
  for _ in range(30):
    d = common + rng.standard_normal(10_240, dtype=np.float32)
    before, theta = b.copy(), np.zeros_like(b)
    nesterov.apply(theta, b, d, 1.0, mu)
    square = kernels.dot(d, d)
    gains.append(nesterov.gain(mu, kernels.dot(b, d), square))
    known = 1 + mu + mu**2 * kernels.dot(before, d) / square
    assert gains[-1] == pytest.approx(known, rel=1e-6)
    assert gains[-1] == pytest.approx(-kernels.dot(theta, d) / square, rel=1e-5)
  assert gains[0] == pytest.approx(1 + mu, rel=1e-6)
  # Steps whose neighbours have cosine 1/2: 1 + mu + mu^2 / 2 / (1 - mu).
  assert gains[-1] == pytest.approx(1 + mu + mu**2 / 2 / (1 - mu), rel=0.05)


def test_the_dot_product_is_as_exact_as_float64():
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal((2, 256 * 1000), dtype=np.float32)
  exact = np.dot(a.astype(np.float64), b)
  assert kernels.dot(a, b) == pytest.approx(exact, rel=1e-9)


def test_without_momentum_and_at_rate_one_the_mean_is_subtracted():
  rng = np.random.default_rng(0)
  theta, d = rng.standard_normal((2, 1000), dtype=np.float32)
  expected = theta - d
  nesterov.apply(theta, np.zeros_like(d), d, 1.0, 0.0)
  np.testing.assert_array_equal(theta, expected)


def test_ranges_may_be_applied_one_by_one():
  rng = np.random.default_rng(0)
  theta, b, d = rng.standard_normal((3, 1000), dtype=np.float32)
  whole, whole_b = theta.copy(), b.copy()
  nesterov.apply(whole, whole_b, d, 0.7, 0.9)
  for part in (slice(0, 123), slice(123, 1000)):
    nesterov.apply(theta[part], b[part], d[part], 0.7, 0.9)
  np.testing.assert_array_equal(theta, whole)
  np.testing.assert_array_equal(b, whole_b)


def test_lengths_must_agree():
  a = np.zeros(4, np.float32)
  with pytest.raises(AssertionError):
    nesterov.apply(a, a.copy(), a[:3], 0.7, 0.9)
