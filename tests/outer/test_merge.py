"""The rule of the deltas' own norm, and the cosine that norms give away."""

import numpy as np
import pytest

from intellect_jax.outer.codec import make_codec
from intellect_jax.outer.merge import mean_cosine, rda_scale


def merged(weights, deltas):
  """The plain mean, and what is known of it: weights, norms, its norm."""
  mean = np.average(deltas, axis=0, weights=weights)
  norms = [float(np.linalg.norm(delta)) for delta in deltas]
  return mean, (weights, norms, float(np.linalg.norm(mean)))


def random_deltas(members=5, cosine=0.0):
  rng = np.random.default_rng(members)
  common = rng.standard_normal(10_000)
  own = rng.standard_normal((members, 10_000))
  together = np.sqrt(cosine) * common + np.sqrt(1 - cosine) * own
  return together * np.arange(1, members + 1)[:, None]  # unlike norms too


@pytest.mark.parametrize("members", [1, 2, 8, 64])
@pytest.mark.parametrize("cosine", [0.0, 0.5])
def test_the_norm_is_the_mean_norm_whatever_the_directions(members, cosine):
  weights = [*range(1, members + 1)]
  mean, known = merged(weights, random_deltas(members, cosine))
  norm = np.linalg.norm(rda_scale(*known) * mean)
  assert norm == pytest.approx(np.average(known[1], weights=weights), rel=1e-6)


def test_deltas_that_are_alike_stay_as_they_are():
  _, known = merged([3, 1, 2], np.tile(random_deltas(1), (3, 1)))
  assert rda_scale(*known) == pytest.approx(1, abs=1e-6)


def test_a_zero_delta_lowers_the_norm_only_through_the_mean_norm():
  deltas = random_deltas(2)
  mean, known = merged([1, 1], deltas)
  with_zero, known_with = merged([1, 1, 1], [*deltas, np.zeros(10_000)])
  before, after = rda_scale(*known) * mean, rda_scale(*known_with) * with_zero
  np.testing.assert_allclose(after, before * 2 / 3, rtol=1e-6)


def test_deltas_that_cancel_have_no_direction():
  delta = random_deltas(1)[0]
  assert rda_scale(*merged([1, 1], [delta, -delta])[1]) == 1
  assert rda_scale(*merged([1, 1], np.zeros((2, 256)))[1]) == 1
  # What coding leaves of them is no direction either.
  codec, total = make_codec("int8"), np.zeros(9984, np.float32)
  codes = np.empty(39 * codec.block_bytes, np.uint8)
  for values in (delta[:9984], -1.001 * delta[:9984]):
    codec.encode(values.astype(np.float32), codes)
    codec.accumulate(total, codes, 0.5)
  norm = float(np.linalg.norm(delta))
  assert 0 < np.linalg.norm(total) < 0.01 * norm
  assert rda_scale([1, 1], [norm, norm], float(np.linalg.norm(total))) == 1


def test_a_mean_that_nobody_measured_is_left_alone():
  assert rda_scale([1, 1], [2.0, 2.0], 0.0) == 1


def pairwise(weights, deltas):
  """Mean cosine of all pairs, each weighted by the product of its w |d|."""
  weighted = np.array(weights)[:, None] * deltas
  lengths = np.linalg.norm(weighted, axis=1)
  pairs = ~np.eye(len(weights), dtype=bool)
  inner, outer = weighted @ weighted.T, np.outer(lengths, lengths)
  return inner[pairs].sum() / outer[pairs].sum()


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.9])
def test_the_cosine_follows_from_norms(cosine):
  weights, deltas = [4, 1, 2, 2, 3], random_deltas(5, cosine)
  found = mean_cosine(*merged(weights, deltas)[1])
  assert found == pytest.approx(pairwise(weights, deltas), abs=1e-9)
  assert found == pytest.approx(cosine, abs=0.05)


def test_the_cosine_of_what_is_alike_and_of_opposites():
  delta = random_deltas(1)[0]
  alike, opposite = [delta, delta], [delta, -3 * delta]
  assert mean_cosine(*merged([1, 5], alike)[1]) == pytest.approx(1)
  assert mean_cosine(*merged([1, 5], opposite)[1]) == pytest.approx(-1)


def test_a_lone_delta_has_nothing_to_compare_with():
  delta = random_deltas(1)[0]
  assert mean_cosine(*merged([7], [delta])[1]) is None
  assert mean_cosine(*merged([7, 7], [delta, 0 * delta])[1]) is None
