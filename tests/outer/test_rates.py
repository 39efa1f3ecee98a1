"""Eta and mu over the tokens of a run, and over the number of islands."""

import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.outer.rates import learning_rate, rates

TOTAL = 1_000_000


def outer(**fields):
  section = config_lib.base().run.outer
  section.update(learning_rate=0.8, momentum=0.9)
  section.update(fields)
  return section


def over_the_run(section, islands=2):
  made = [rates(section, islands, at, TOTAL) for at in range(0, TOTAL, 1000)]
  return np.array(made)  # [tokens / 1000, (eta, mu)]


@pytest.mark.parametrize("islands", [1, 2, 14])
def test_without_a_schedule_nothing_changes(islands):
  expected = np.float32(0.8), np.float32(0.9)
  assert (over_the_run(outer(), islands) == expected).all()


def test_momentum_warms_up_over_the_first_tokens_alone():
  eta, mu = over_the_run(outer(momentum_warmup_tokens=200_000)).T
  assert mu[0] == 0
  np.testing.assert_allclose(np.diff(mu[:201]), 0.9 / 200, rtol=1e-4)
  assert (mu[200:] == np.float32(0.9)).all()
  assert (eta == np.float32(0.8)).all()


def test_the_rate_decays_over_the_last_tokens_alone():
  eta, mu = over_the_run(outer(decay_tokens=100_000, decay_to=0.5)).T
  assert (eta[:901] == np.float32(0.8)).all()
  np.testing.assert_allclose(np.diff(eta[900:]), -0.4 / 100, rtol=1e-3)
  assert (mu == np.float32(0.9)).all()
  at_the_end = rates(outer(decay_tokens=1, decay_to=0.5), 2, TOTAL, TOTAL)
  assert at_the_end.learning_rate == np.float32(0.4)


def test_a_run_that_is_given_more_tokens_decays_later():
  section = outer(decay_tokens=100_000, decay_to=0.5)
  early, late = (rates(section, 2, 950_000, t) for t in (TOTAL, 2 * TOTAL))
  assert early.learning_rate < late.learning_rate == np.float32(0.8)


def test_auto_is_what_the_scaling_laws_found_and_rises_with_islands():
  auto = outer(learning_rate="auto")
  tuned = {1: 0.4, 2: 0.6, 3: 0.6, 4: 0.6, 8: 0.8}
  for islands, best in tuned.items():
    assert learning_rate(auto, islands) == pytest.approx(best)
  found = [learning_rate(auto, islands) for islands in range(1, 200)]
  assert found == sorted(found)
  assert found[-1] == 1.0  # none larger was tried
  assert 0.6 < learning_rate(auto, 6) < 0.8 < learning_rate(auto, 14) < 1


def test_auto_follows_who_is_in_and_decays_too():
  section = outer(learning_rate="auto", decay_tokens=100, decay_to=0.5)
  assert rates(section, 1, 0, TOTAL).learning_rate == np.float32(0.4)
  assert rates(section, 8, 0, TOTAL).learning_rate == np.float32(0.8)
  assert rates(section, 8, TOTAL, TOTAL).learning_rate == np.float32(0.4)


def test_auto_is_1_with_a_sparse_codec():
  sparse = outer(learning_rate="auto", momentum=0.0, codec="sparse2")
  for islands in (1, 2, 14):
    assert rates(sparse, islands, 0, TOTAL) == (1.0, 0.0)
