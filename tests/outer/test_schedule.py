import pytest

from intellect_jax.outer import codec, schedule, traffic


def test_position_grows_by_the_tokens_of_all_members():
  assert schedule.position(1000, 0, 3) == 1000
  assert schedule.position(1000, 50, 3) == 1150


def test_a_joiner_ramps_up_and_stays():
  scales = [schedule.warm_up(steps, 4) for steps in range(6)]
  assert scales == [0.25, 0.5, 0.75, 1, 1, 1]
  assert schedule.warm_up(0, 0) == 1


@pytest.mark.parametrize("islands", [2, 3, 14])
@pytest.mark.parametrize(
  ("name", "expected"), [("int8", 393.8), ("int4", 775.8), ("e3m0", 775.8)]
)
def test_how_much_less_a_codec_sends_than_data_parallel(
  islands, name, expected
):
  """INTELLECT-1 counts 400 for int8: it leaves out the scales."""
  made, values = codec.make_codec(name), 256_000
  coded = values // made.block * made.block_bytes
  sent = traffic.coded_bytes_sent(islands, coded)
  reduction = schedule.payload_reduction(islands, values, 100, sent)
  assert reduction == pytest.approx(expected, abs=0.05)


def test_a_lone_island_reduces_nothing():
  assert schedule.payload_reduction(1, 256, 100, 0) == 1
