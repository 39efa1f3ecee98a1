"""Merging against the papers' definitions, written out in float64."""

import numpy as np
import pytest

from intellect_jax.model import merging

MODELS, SIZE = 5, 4096
WEIGHTS = [0.5, 1.0, 2.0, 0.0, 1.5]
RANDOM = np.random.default_rng(0)
BASE = RANDOM.standard_normal(SIZE).astype(np.float32)
# Heavy tails: what TIES is for.
DELTAS = [
  RANDOM.standard_t(3, SIZE).astype(np.float32) * 0.1 for _ in range(MODELS)
]
EXACT = np.array(DELTAS, np.float64)


def close(actual, expected):
  assert actual.dtype == np.float32
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def paper_ties(base, deltas, weights, density, scale):
  """Algorithm 1 of arXiv 2306.01708, with weights in its disjoint mean."""
  base, deltas = base.astype(np.float64), np.array(deltas, np.float64)
  keep = int(density * base.size)
  trimmed = np.zeros_like(deltas)
  for row, delta in zip(trimmed, deltas, strict=True):
    top = np.argsort(-np.abs(delta), kind="stable")[:keep]
    row[top] = delta[top]
  merged = np.zeros_like(base)
  for p in range(base.size):
    elected = np.sign(np.dot(weights, trimmed[:, p]))
    agreeing = [
      (w, value)
      for w, value in zip(weights, trimmed[:, p], strict=True)
      if value and np.sign(value) == elected and w
    ]
    if agreeing:
      mass = sum(w for w, _ in agreeing)
      merged[p] = sum(w * value for w, value in agreeing) / mass
  return base + scale * merged


def test_linear_is_the_weighted_mean():
  expected = np.average(EXACT, axis=0, weights=WEIGHTS)
  close(merging.linear(DELTAS, WEIGHTS), expected)


@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
def test_ties_is_the_papers(density):
  trimmed = [
    merging.trim(d, merging.largest(lambda d=d: [d], density, SIZE))
    for d in DELTAS
  ]
  assert [np.count_nonzero(d) for d in trimmed] == [int(density * SIZE)] * 5
  close(
    merging.elect(BASE, trimmed, WEIGHTS, 0.7),
    paper_ties(BASE, DELTAS, WEIGHTS, density, 0.7),
  )


def test_ties_keeps_the_base_where_nobody_has_learnt_anything():
  nothing = [np.zeros(SIZE, np.float32)] * 3
  merged = merging.elect(BASE, nothing, [1, 1, 1], 1.0)
  np.testing.assert_array_equal(merged, BASE)


def test_the_threshold_is_exact_however_the_values_are_cut():
  values = np.concatenate([*DELTAS, np.zeros(100, np.float32)])
  for density in (1e-4, 0.1, 0.5, 0.99):
    rank = max(1, int(density * values.size))
    expected = np.sort(np.abs(values))[-rank]
    for cut in (values.size, 1000):
      pieces = np.split(values, range(cut, values.size, cut))
      found = merging.largest(lambda p=pieces: p, density, values.size)
      assert found == expected
  assert merging.largest(lambda: [values], 1.0, values.size) == 0


def test_dare_keeps_the_mean_and_the_part_it_should():
  delta = np.abs(np.concatenate(DELTAS)) + 1
  generator = merging.generator_of(0, 0, "a")
  kept = np.mean([merging.drop(delta, 0.1, generator) for _ in range(20)], 0)
  trials = 20 * delta.size
  part = np.count_nonzero(merging.drop(delta, 0.1, generator)) / delta.size
  assert part == pytest.approx(0.1, abs=6 * (0.09 / delta.size) ** 0.5)
  # The rescaled values have the mean of all, with this much spread.
  spread = float(np.sqrt(np.mean(delta**2) * 9 / trials))
  assert kept.mean() == pytest.approx(float(delta.mean()), abs=6 * spread)
  values = merging.drop(delta, 0.1, generator)
  close(values[values != 0], np.float64(delta[values != 0]) / 0.1)


def test_dare_drops_the_same_of_a_tensor_in_any_order():
  draws = {
    (seed, model, name): merging.generator_of(seed, model, name).random(4)
    for seed in (0, 1)
    for model in (0, 1)
    for name in ("a", "b")
  }
  again = merging.generator_of(1, 0, "b").random(4)
  np.testing.assert_array_equal(draws[1, 0, "b"], again)
  assert len({tuple(draw) for draw in draws.values()}) == 8


def test_task_arithmetic():
  deltas = np.average(EXACT, axis=0, weights=WEIGHTS)
  close(
    merging.task_arithmetic(BASE, DELTAS, WEIGHTS, 2.5), BASE + 2.5 * deltas
  )


def test_slerp_goes_along_the_arc():
  a, b = DELTAS[0] / np.linalg.norm(DELTAS[0]), DELTAS[1]
  b = b / np.linalg.norm(b)
  angle = np.arccos(merging.cosine([(a, b)]))
  for t in (0, 0.25, 0.5, 1):
    fa, fb = merging.slerp_factors(t, float(np.cos(angle)))
    x = fa * np.float64(a) + fb * np.float64(b)
    assert np.linalg.norm(x) == pytest.approx(1)
    assert np.arccos(min(1.0, x @ a)) == pytest.approx(t * angle, abs=1e-3)


def test_slerp_of_nearly_parallel_or_empty_vectors_is_linear():
  a = DELTAS[0]
  assert merging.slerp_factors(0.3, merging.cosine([(a, 2 * a)])) == (0.7, 0.3)
  zero = np.zeros_like(a)
  assert merging.slerp_factors(0.3, merging.cosine([(a, zero)])) == (0.7, 0.3)
