"""A joiner that does not gain on the run says which rate it would need."""

from intellect_jax.elastic.pursuit import Pursuit

MEAN = 1_000_000  # bytes


def test_who_gains_is_left_alone():
  began = Pursuit(stood=10, head=30, since=100.0)
  assert began.warning(15, 34, 160.0, MEAN) == ""


def test_who_falls_behind_hears_the_rate_of_the_run():
  began = Pursuit(stood=10, head=30, since=100.0)
  said = began.warning(12, 36, 104.0, MEAN)
  assert "24 records behind, and fetched 4 Mbit/s" in said
  assert "more than 12 Mbit/s" in said


def test_who_stands_still_is_told_also_when_the_run_does():
  """Nobody serves what it needs."""
  said = Pursuit(10, 30, 100.0).warning(10, 30, 160.0, MEAN)
  assert "20 records behind, and fetched 0 Mbit/s" in said
