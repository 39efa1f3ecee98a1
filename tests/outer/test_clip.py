"""Who stands out is scaled down to what the others agree on, and no further."""

import pytest

from intellect_jax.outer.clip import clip_factors


def test_what_stands_out_is_brought_to_the_bound():
  norms, steps = [1.0, 2.0, 30.0, 3.0], [10, 10, 10, 10]
  factors = clip_factors(norms, steps, ratio=2.0)
  assert factors[:2] + factors[3:] == [1.0] * 3
  assert norms[2] * factors[2] == pytest.approx(2.0 * 2.5)


def test_longer_windows_may_have_larger_deltas():
  assert clip_factors([1.0, 1.0, 9.0], [10, 10, 90], 1.5) == [1.0] * 3


@pytest.mark.parametrize(
  ("norms", "ratio"),
  [([1.0, 1.0, 50.0], 0.0), ([1.0, 50.0], 1.5), ([0.0, 0.0, 5.0], 1.5)],
)
def test_nothing_is_scaled_where_nothing_can_be_told(norms, ratio):
  assert clip_factors(norms, [1] * len(norms), ratio) == [1.0] * len(norms)
