"""What a link carries: the best that it has sustained, whoever held it up."""

import pytest

from intellect_jax.elastic.rates import Rate

FRAME = 1000  # bytes


def carry(rate: Rate, start: float, *stretches: tuple[float, float]) -> float:
  """A transfer: so many seconds, with a frame every so many, one after another.

  Returns when it ended.
  """
  rate.begin(start)
  for seconds, each in stretches:
    for index in range(1, round(seconds / each) + 1):
      rate.count(FRAME, start + index * each)
    start += seconds
  rate.end()
  return start


def test_a_steady_stream_is_its_rate():
  rate = Rate()
  carry(rate, 0, (3, 0.01))
  assert rate.bytes_a_second == pytest.approx(FRAME / 0.01)


def test_streams_to_several_peers_add_up():
  rate = Rate()
  for _ in range(3):
    rate.begin(0)
  for index in range(1, 300):
    for _ in range(3):
      rate.count(FRAME, index * 0.01)
  rate.end()
  assert rate.bytes_a_second == pytest.approx(3 * FRAME / 0.01, rel=0.1)


def test_a_link_that_waits_for_its_readers_is_not_slow():
  rate = Rate()
  now = carry(rate, 0, (1, 0.01))
  now = carry(rate, now + 1000, (60, 0.1), (1, 0.01), (10, 2.0))
  assert rate.bytes_a_second == pytest.approx(FRAME / 0.01)


@pytest.mark.parametrize("start", [0.001, 2, 2.05, 2.1, 2.15, 2.2])
def test_what_only_fills_buffers_is_no_rate(start):
  rate = Rate()
  carry(rate, 0, (start, 0.01), (0.15, 1e-5), (2, 0.01))
  assert rate.bytes_a_second == pytest.approx(FRAME / 0.01, rel=0.1)


def test_short_transfers_tell_of_latency_and_say_nothing():
  rate = Rate()
  for start in range(100):
    carry(rate, 100.0 * start, (0.3, 1e-3))
    carry(rate, 100.0 * start + 50, (3.0, 0.5))
  assert rate.bytes_a_second == 0


def test_a_cap_is_known_at_once_and_bounds_what_is_measured():
  rate = Rate(cap_mbit=0.4)  # 50 kB/s
  assert rate.bytes_a_second == pytest.approx(50e3)
  carry(rate, 0, (2, 0.01))
  assert rate.bytes_a_second == pytest.approx(50e3)
  slower = Rate(cap_mbit=4)
  carry(slower, 0, (2, 0.01))
  assert slower.bytes_a_second == pytest.approx(FRAME / 0.01)


def test_a_link_that_got_slower_is_known_after_some_rounds():
  rate, rounds = Rate(), 0
  now = carry(rate, 0.0, (2, 0.01))
  while rate.bytes_a_second > FRAME / 0.03:
    for _ in range(10):
      rate.round_over()  # rounds without a transfer say nothing
    assert rate.bytes_a_second > 0
    now = carry(rate, now + 10, (4, 0.04))
    rounds += 1
  assert 2 <= rounds <= 10
  assert rate.bytes_a_second == pytest.approx(FRAME / 0.04)
