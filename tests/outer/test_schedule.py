import pytest

from intellect_jax.outer import codec, schedule


def test_position_grows_by_the_tokens_of_all_members():
  assert schedule.position(1000, 0, 3) == 1000
  assert schedule.position(1000, 50, 3) == 1150


def test_a_joiner_ramps_up_and_stays():
  scales = [schedule.warm_up(steps, 4) for steps in range(6)]
  assert scales == [0.25, 0.5, 0.75, 1, 1, 1]
  assert schedule.warm_up(0, 0) == 1


@pytest.mark.parametrize("islands", [2, 3, 14])
def test_int8_sends_393_times_less_than_data_parallel(islands):
  """INTELLECT-1 counts 400: it leaves out the scales."""
  int8, values = codec.make_codec("int8"), 256_000
  coded = values // int8.block * int8.block_bytes
  sent = 2 * (islands - 1) * coded / islands
  reduction = schedule.payload_reduction(islands, values, 100, sent)
  assert reduction == pytest.approx(393.8, abs=0.05)


def test_a_lone_island_reduces_nothing():
  assert schedule.payload_reduction(1, 256, 100, 0) == 1
