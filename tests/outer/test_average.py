"""Averages against their sums in float64."""

import numpy as np
import pytest

from intellect_jax.outer import average

SIZE, COUNT = 300_000, 12  # more than a piece
RANDOM = np.random.default_rng(0)
THETAS = 3 + RANDOM.standard_normal((COUNT, SIZE), np.float32)


def averaged(part):
  total = average.Average(part)
  theta = np.empty(SIZE, np.float32)
  for values in THETAS:
    theta[:] = values  # in place, as a replay goes on
    total.add(theta)
  assert total.count == COUNT and total.value.dtype == np.float32
  return total.value


def test_the_mean_is_the_mean():
  expected = THETAS.mean(0, np.float64)
  np.testing.assert_allclose(averaged(average.mean), expected, rtol=2e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
def test_the_exponential_mean(decay):
  weights = (1 - decay) * decay ** np.arange(COUNT)[::-1]
  weights[0] /= 1 - decay  # it stands for all before it
  assert weights.sum() == pytest.approx(1)
  expected = weights @ THETAS.astype(np.float64)
  found = averaged(average.exponential(decay))
  np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)
