"""Data leases: every index is leased to one holder, and none is forgotten."""

import random

from intellect_jax.elastic.samples import (
  Holder,
  SamplePool,
  merge,
  subtract,
  take,
)


def indices(intervals) -> set[int]:
  return {i for start, stop in intervals for i in range(start, stop)}


def test_interval_arithmetic_is_that_of_sets():
  rng = random.Random(0)

  def some():
    starts = [rng.randrange(40) for _ in range(rng.randrange(6))]
    return [(start, start + rng.randrange(6)) for start in starts]

  for _ in range(300):
    a, b = some(), some()
    assert indices(merge(a)) == indices(a)
    assert merge(merge(a)) == merge(a)
    assert indices(subtract(a, b)) == indices(a) - indices(b)
    count = rng.randrange(8)
    taken = take(merge(a), count)
    assert sorted(indices(taken)) == sorted(indices(a))[:count]
    assert all(start < stop for start, stop in taken)


def test_leases_are_disjoint_and_nothing_leaks():
  """Against a model: each index is free, leased once, or committed once."""
  for seed in range(30):
    rng = random.Random(seed)
    pool = SamplePool()
    leased: dict[Holder, set[int]] = {}
    committed: set[int] = set()
    for window in range(60):
      holder = Holder(rng.choice("abc"), 1, window)
      match rng.choice(("lease", "lease", "consume", "end", "annul")):
        case "lease":
          got = indices(pool.lease(holder, rng.randrange(1, 9)))
          assert not got & committed
          assert not any(got & other for other in leased.values())
          leased[holder] = got
        case "consume" if leased:
          holder = rng.choice(sorted(leased))
          used = take(pool.leased[holder], rng.randrange(9))
          assert pool.holds(holder, used)
          committed |= indices(used)
          pool.consume(holder, used)
          del leased[holder]
        case "end" if leased:
          holder = rng.choice(sorted(leased))
          pool.consume(holder, [])
          del leased[holder]
        case "annul" if committed:
          index = rng.choice(sorted(committed))
          committed.discard(index)
          pool.annul([(index, index + 1)])
    taken = set().union(committed, *leased.values())
    rest = indices(pool.lease(Holder("rest", 1, 0), 500))
    assert rest | taken == set(range(max(rest) + 1))
    assert not rest & taken


def test_asking_again_gives_the_same_samples():
  pool = SamplePool()
  holder = Holder("a", 1, 0)
  assert pool.lease(holder, 4) == pool.lease(holder, 4) == [(0, 4)]


def test_only_leased_samples_are_held():
  pool = SamplePool()
  holder = Holder("a", 1, 0)
  pool.lease(holder, 4)
  assert pool.holds(holder, [(1, 4)])
  assert not pool.holds(holder, [(1, 5)])
  assert not pool.holds(Holder("a", 2, 0), [(1, 4)])


def test_a_pool_goes_on_from_what_was_committed_and_leased():
  holder = Holder("a", 1, 3)
  pool = SamplePool([(0, 4), (10, 12)], {holder: [(4, 6)]})
  assert pool.lease(holder, 99) == [(4, 6)]
  assert pool.lease(Holder("b", 1, 0), 6) == [(6, 10), (12, 14)]
