"""The formulas against what INTELLECT-1 measured (arXiv 2412.01152, table 2)."""

import pytest

from intellect_jax.outer import codec, traffic

WINDOW = 38 * 60  # seconds of 100 inner steps
VALUES = 10_211_381_248
MEASURED = pytest.mark.parametrize(
  "round_seconds, utilization, mfu",
  [(103, 95.7, 41.4), (382, 85.6, 37.1), (469, 83.0, 36.0)],
)


@MEASURED
def test_the_table_of_intellect_1(round_seconds, utilization, mfu):
  formula = 100 * traffic.compute_utilization(WINDOW, round_seconds)
  assert formula == pytest.approx(utilization, abs=0.1)
  # Its MFU without rounds, 43.3 %, times the utilization is its MFU with them.
  assert 0.433 * formula == pytest.approx(mfu, abs=0.1)


@MEASURED
def test_overlap_hides_a_round_that_is_shorter_than_what_may_follow(
  round_seconds, utilization, mfu
):
  assert traffic.compute_utilization(WINDOW, round_seconds, WINDOW) == 1
  half = traffic.compute_utilization(WINDOW, round_seconds, round_seconds / 2)
  assert half == traffic.compute_utilization(WINDOW, round_seconds / 2)


def test_ten_billion_values_are_19_gigabytes_a_round():
  """Of one byte each, on 14 hosts, as PRIME's ring sends; scales add 1.6 %."""
  int8 = codec.make_codec("int8")
  coded = VALUES // int8.block * int8.block_bytes
  sent = traffic.coded_bytes_sent(14, coded)
  assert sent / 1e9 == pytest.approx(19.0 * 260 / 256, abs=0.05)
  # So INTELLECT-1's 469 s around the world were a third of a Gb/s.
  assert 8 * sent / 469 / 1e9 == pytest.approx(0.33, abs=0.01)


def test_a_wire_carries_a_few_percent_more_than_its_payload():
  assert 1.05 < traffic.wire_bytes(1.0) < 1.08


def test_time_is_bytes_over_bandwidth():
  assert traffic.transfer_seconds(125e6, 1e9) == 1
  assert traffic.coded_bytes_sent(1, 1e9) == 0


def test_more_threads_leave_the_outer_step():
  one, many = (traffic.host_seconds(VALUES, n) for n in (1, 1_000_000))
  assert many == pytest.approx(VALUES / traffic.NESTEROV_VALUES, rel=1e-3)
  assert one > 2 * many
