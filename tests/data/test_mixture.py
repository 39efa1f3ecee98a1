"""What a mixture promises: proportions, and the same answer anywhere."""

import collections

import numpy as np
import pytest

from intellect_jax.data.mixture import BLOCK, Mixture, apportion

# INTELLECT-1's stages, for a run of 20M tokens: the second holds for its last
# fifth.
FIRST = (0.55, 0.10, 0.20, 0.10, 0.05)
LAST = (0.80, 0.10, 0.10, 0.0, 0.0)
STAGES = ((0, FIRST), (16_000_000, LAST))


def shares(mixture, start, stop):
  counts = collections.Counter(mixture[i][0] for i in range(start, stop))
  return np.array([counts[k] for k in range(5)]) / (stop - start)


@pytest.mark.parametrize("length", [128, 1024, 8192])
def test_proportions_within_half_a_percent_over_ten_million_tokens(length):
  mixture = Mixture(STAGES, length)
  samples = 10_000_000 // length
  assert np.abs(shares(mixture, 0, samples) - FIRST).max() < 0.005
  last = 16_000_000 // length
  # Of the 4M tokens that the last stage has here.
  np.testing.assert_allclose(
    shares(mixture, last + 1, 20_000_000 // length), LAST, atol=0.005
  )


def test_any_run_of_samples_has_the_weights_within_a_sample_or_two():
  mixture = Mixture(STAGES, 128)
  sources = np.array([mixture[i][0] for i in range(20_000)])
  for k, weight in enumerate(FIRST):
    ahead = np.cumsum(sources == k) - weight * np.arange(1, 20_001)
    assert np.ptp(ahead) < 2


def test_every_sample_of_a_source_comes_once_and_in_order_across_stages():
  mixture = Mixture(((0, FIRST), (1_000, LAST), (70_000, FIRST)), 1)
  seen = collections.defaultdict(list)
  for i in range(2 * BLOCK + 5_000):
    source, number = mixture[i]
    seen[source].append(number)
  for numbers in seen.values():
    assert numbers == list(range(len(numbers)))


def test_counts_are_what_counting_finds():
  mixture = Mixture(((0, FIRST), (1_000, LAST), (70_000, FIRST)), 1)
  for start, stop in ((0, 0), (3, 800), (900, 71_000), (69_999, 70_001)):
    sources = [mixture[i][0] for i in range(start, stop)]
    expected = np.bincount(sources, minlength=5)
    np.testing.assert_array_equal(mixture.count(start, stop), expected)


def test_far_samples_cost_no_more_than_near_ones():
  """O(1): what is before a sample is computed, not counted."""
  mixture = Mixture(STAGES, 8192)
  source, number = mixture[10**15]
  assert number == pytest.approx(LAST[source] * 10**15, rel=1e-4)


def test_a_stage_begins_with_the_sample_after_its_tokens():
  mixture = Mixture(((0, (1.0, 0.0)), (1_000, (0.0, 1.0))), 64)
  assert [mixture[i][0] for i in (0, 15, 16, 17)] == [0, 0, 1, 1]
  # Sample 15 has tokens 960 to 1023: it began before the stage did.


def test_one_source_is_left_in_its_own_order():
  mixture = Mixture(((0, (1.0,)),), 8)
  for i in (0, 1, 77, BLOCK, 10**12):
    assert mixture[i] == (0, i)


def test_weights_become_whole_numbers_that_sum_up():
  for weights in (FIRST, LAST, (1 / 3, 1 / 3, 1 / 3), (1e-9, 1 - 1e-9)):
    counts = apportion(weights, BLOCK)
    assert counts.sum() == BLOCK
    assert np.abs(counts - np.array(weights) * BLOCK).max() < 1
