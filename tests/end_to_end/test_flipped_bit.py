"""A bit flips in the theta of one of two islands: neither has most votes."""

from processes import command
import pytest

WINDOW = 2048  # tokens


@pytest.mark.parametrize("fragments", [1, 2])
def test_a_tie_is_settled_by_replay_and_the_end_is_one_state(world, fragments):
  coordinator = world.coordinator(
    f"tokens={10 * WINDOW}",
    "elastic.start_islands=2",
    f"outer.fragments={fragments}",
  )
  ada = world.island("ada", coordinator)
  bo = world.island("bo", coordinator, flips=True)
  for process in (ada, bo, coordinator):
    process.must_end_well()

  steps = [r for r in coordinator.records() if r.HasField("step")]
  assert f"flipped a bit at record {steps[-1].number}" in bo.said()
  assert ada.state_hash() == bo.state_hash()
  # Nobody has trained from the wrong theta, nor commits what was.
  for island in (ada, bo):
    status, said = command("replay", f"--workdir={island.workdir}")
    assert status == 0 and island.state_hash()[:16] in said, said
  causes = [event["cause"] for event in bo.metrics("lost")]
  assert causes == ["its state was not what its log comes to"]
  told = bo.summary()
  lost = WINDOW  # the window that was proposed from it
  assert told["tokens_committed"] + lost == told["tokens_trained"]
  assert not ada.metrics("lost")
