"""What becomes of x when a record moves theta."""

import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.errors import UserError
from intellect_jax.outer import nesterov, overlap

X = {"w": np.array([1.0, 2.0], np.float32)}
THETA = {"w": np.array([3.0, -2.0], np.float32)}


@pytest.mark.parametrize(
  ("alpha", "expected"), [(0.0, [3, -2]), (0.5, [2, 0]), (1.0, [1, 2])]
)
def test_a_blend_goes_from_theta_to_x(alpha, expected):
  blended = overlap.blend(X, THETA, alpha)["w"]
  np.testing.assert_array_equal(blended, expected)


def test_what_was_done_since_the_anchor_goes_along_with_theta():
  anchor = {"w": np.array([0.5, 2.5], np.float32)}
  rebased = overlap.rebase(overlap.displacement(X, anchor), THETA)["w"]
  np.testing.assert_array_equal(rebased, [3.5, -2.5])


def test_a_lone_island_takes_the_outer_step_at_once():
  """Bit for bit, as its record will have it."""
  rng = np.random.default_rng(0)
  theta, b, x = rng.standard_normal((3, 1000)).astype(np.float32)
  ahead = overlap.eager(x, theta, b, 1.0, 0.7, 0.9)
  nesterov.apply(theta, b, theta - x, 0.7, 0.9)
  np.testing.assert_array_equal(ahead, theta)


def test_without_momentum_eager_steps_are_as_published():
  """arXiv 2502.12996: each island has a theta of its own there, and steps by

  mean of the round before + (own delta - own delta of the round before) / M
  """
  rng, eta, count = np.random.default_rng(0), 0.5, 4
  work = rng.standard_normal((6, count, 1000)).astype(np.float32)
  theta = rng.standard_normal(1000).astype(np.float32)
  published = np.tile(theta, (count, 1))
  b, x = np.zeros_like(theta), np.tile(theta, (count, 1))
  before, anchors, mean = np.zeros_like(x), x, None
  for deltas in work:
    x = x - deltas  # what inner steps do
    if mean is not None:  # the record of the round before
      theta = theta - eta * mean
      x = overlap.rebase(overlap.displacement(x, anchors), theta)
    mean = np.mean(theta - x, axis=0)
    x = anchors = overlap.eager(x, theta, b, 1 / count, eta, 0.0)
    published -= eta * (before.mean(0) + (deltas - before) / count)
    before = deltas
    np.testing.assert_allclose(x, published, atol=1e-5)


@pytest.mark.parametrize(
  ("outer", "ahead", "blends", "throws"),
  [
    (dict(), 0, False, False),  # plain DiLoCo
    (dict(max_ahead_steps=3), 3, False, False),
    (dict(overlap_steps=5, merge_alpha=0.5), 5, True, False),
    (dict(overlap_steps=5, max_ahead_steps=9, merge_alpha=0.5), 9, True, False),
    (dict(overlap_steps=5), 5, True, True),
    (dict(merge_alpha=0.5), 0, True, False),
    (dict(overlap_steps=5, eager=True), 5, False, False),
    (dict(max_ahead_steps=3, eager=True), 3, False, False),
  ],
)
def test_settings_say_how_far_ahead_and_by_which_rule(
  outer, ahead, blends, throws
):
  run = config_lib.base().run
  run.outer.update(outer)
  config_lib.validate_run(run)
  assert overlap.most_ahead(run.outer) == ahead
  assert overlap.blends(run.outer) == blends
  assert bool(overlap.throws_away(run.outer)) == throws


@pytest.mark.parametrize(
  ("outer", "name"),
  [
    (dict(overlap_steps=100), "overlap_steps"),  # as long as a window
    (dict(overlap_steps=-1), "overlap_steps"),
    (dict(merge_alpha=1.0), "merge_alpha"),
    (dict(eager=True), "eager"),  # no steps are taken ahead
    (dict(eager=True, overlap_steps=5, merge_alpha=0.5), "eager"),
  ],
)
def test_settings_that_cannot_be_are_refused_by_name(outer, name):
  run = config_lib.base().run
  run.outer.update(outer)
  with pytest.raises(UserError, match=f"run.outer.{name}"):
    config_lib.validate_run(run)
