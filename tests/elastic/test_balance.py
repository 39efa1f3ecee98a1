"""Shares by capacity: optimal in the model, and as fast on capped links."""

import itertools
import time

import numpy as np
import pytest

from intellect_jax.elastic.balance import (
  Balance,
  Link,
  completed,
  seconds,
  solve,
)

GAIN = 0.1
FREE = 1.0  # bound of a share
NEARLY = 1.0101  # x the least time, for shares that are more alike


def links(up, down=None, weight=8, **fields) -> dict[str, Link]:
  down = up if down is None else down
  return {
    name: Link(u, d, weight, **fields)
    for name, u, d in zip("abcdefghijklmnop", up, down, strict=False)
  }


def equal(n: int) -> np.ndarray:
  return np.full(n, 1 / n)


def best(up, down) -> np.ndarray:
  up, down = np.array(up, float), np.array(down, float)
  return solve(up, down, equal(len(up)), np.full(len(up), FREE))


def shares(weights: list[int]) -> np.ndarray:
  return np.array(weights) / sum(weights)


# ------------------------------------------------------------------- optimum


@pytest.mark.parametrize("seed", range(20))
def test_nothing_beats_the_optimum(seed):
  rng = np.random.default_rng(seed)
  n = int(rng.integers(2, 17))
  up, down = rng.lognormal(16, 1, n), rng.lognormal(17, 1, n)
  found = best(up, down)
  assert found.min() >= 0
  assert found.sum() == pytest.approx(1)
  least = seconds(found, up, down)
  assert least <= seconds(equal(n), up, down) * NEARLY
  for concentration in (0.3, 3.0, 30.0):
    for other in rng.dirichlet(np.full(n, concentration), 400):
      assert least <= seconds(other, up, down) * NEARLY
  for i, j in itertools.permutations(range(n), 2):  # nor a small change of it
    other = found.copy()
    other[i], other[j] = other[i] + 0.01, other[j] - 0.01
    assert other[j] < 0 or least <= seconds(other, up, down) * NEARLY


@pytest.mark.parametrize("n", [1, 2, 3, 16])
def test_equal_links_have_equal_shares(n):
  assert Balance().weights(links([1e6] * n), GAIN) == [8] * n
  if n > 1:
    np.testing.assert_allclose(best([1e6] * n, [5e6] * n), equal(n), atol=1e-6)


def test_nearly_equal_links_have_equal_shares():
  rng = np.random.default_rng(0)
  for n in (2, 4, 16):
    for _ in range(20):
      up, down = rng.uniform(1.0, 1.1, (2, n))
      assert Balance().weights(links(up, down), GAIN) == [8] * n


@pytest.mark.parametrize("n", [3, 4, 8, 16])
@pytest.mark.parametrize("slow_ways", ["up", "down", "both"])
def test_a_link_at_a_quarter_owns_nothing(n, slow_ways):
  """By hand: 2 (n - 1) / n times as fast, which is 1.5 for n = 4."""
  quarter, full = np.array([0.25, *[1.0] * (n - 1)]), np.ones(n)
  up = full if slow_ways == "down" else quarter
  down = full if slow_ways == "up" else quarter
  found = best(up, down)
  assert 0 <= found[0] < 0.0102 / (n - 2)
  np.testing.assert_allclose(found[1:], found[1])
  faster = seconds(equal(n), up, down) / seconds(found, up, down)
  assert faster == pytest.approx(2 * (n - 1) / n, rel=0.0101)
  assert shares(Balance().weights(links(up, down), GAIN)) == pytest.approx(
    found, abs=1e-5
  )


def test_alike_links_have_alike_shares_beside_one_that_is_slow():
  """Rates are never measured to the last digit."""
  rng = np.random.default_rng(0)
  for n in (4, 8, 16):
    up, down = rng.uniform(0.9, 1.1, (2, n))
    up[0] = 0.25
    found = best(up, down)
    assert found[1:].max() < 1.25 * found[1:].min()


def test_with_two_islands_shares_do_not_matter():
  for up, down in itertools.product([[1, 4], [4, 1], [4, 4]], repeat=2):
    assert Balance().weights(links(up, down), GAIN) == [8, 8]


def test_sixteen_links_are_solved_in_milliseconds():
  rng = np.random.default_rng(0)
  up, down = rng.lognormal(16, 1, (2, 16))
  best(up, down)  # imports scipy
  began = time.process_time()
  for _ in range(10):
    best(up, down)
  assert (time.process_time() - began) / 10 < 0.05  # 2 ms when it is quiet


# ------------------------------------------------------- what is not known


def test_what_is_not_known_is_like_the_median():
  known = links([1e6, 0, 3e6, 2e6], [0, 5e6, 0, 0])
  known["b"] = Link(0, 5e6, weight=16)  # of two hosts
  rates = completed(list(known.values()))
  assert rates is not None
  np.testing.assert_allclose(rates[0], [1e6, 4e6, 3e6, 2e6])
  np.testing.assert_allclose(rates[1], [2.5e6, 5e6, 2.5e6, 2.5e6])
  assert completed(list(links([0, 0]).values())) is None


def test_without_any_rate_hosts_and_relays_count():
  members = links([0, 0])
  members["c"] = Link(0, 0, weight=1, relayed=True)
  assert Balance().weights(members, GAIN) == [8, 8, 1]


def test_behind_a_relay_no_share_is_above_that_by_weight():
  members = links([1e6, 1e6, 1e6], [1e7, 1e7, 1e7])
  members["d"] = Link(1e9, 1e9, weight=1, relayed=True)
  found = shares(Balance().weights(members, gain=0.0))
  assert found[3] <= 1 / 25 + 1e-6


# --------------------------------------------------------------- hysteresis


def test_shares_stay_until_others_are_much_faster():
  balance, slow = Balance(), [0.25, 1, 1, 1]
  first = balance.weights(links(slow, [1] * 4), GAIN)
  assert first[0] < first[1] / 3
  for up in (0.23, 0.27, 0.3):  # it breathes
    assert balance.weights(links([up, 1, 1, 1], [1] * 4), GAIN) == first
  assert balance.weights(links([1] * 4), gain=0.12) == first  # as good
  assert balance.weights(links([1] * 4), gain=0.08) == [8] * 4
  assert balance.weights(links([1, 1, 1, 0.25], [1] * 4), GAIN) != first


def test_who_goes_behind_a_relay_loses_a_large_share_at_once():
  balance, up = Balance(), [4e6, 1e6, 1e6, 1e6]
  assert shares(balance.weights(links(up), GAIN))[0] > 1 / 2
  members = links(up)
  members["a"] = Link(4e6, 4e6, weight=1, relayed=True)
  assert shares(balance.weights(members, GAIN))[0] <= 1 / 25 + 1e-6


def test_survivors_have_shares_of_their_own():
  balance = Balance()
  balance.weights(links([0.25, 1, 1, 1], [1] * 4), GAIN)
  assert balance.weights(links([1, 1, 1]), GAIN) == [8] * 3
