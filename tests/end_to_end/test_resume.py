"""Whatever is killed goes on where it was."""

from processes import ALONE, wait_until
from stopping import stopped

WINDOW = 2048  # tokens


def losses(island):
  """The loss of the step at each position; what was repeated stands last."""
  return {step["position"]: step["loss"] for step in island.metrics("step")}


def test_kill_9_in_a_save_changes_nothing(world, undisturbed):
  expected = losses(undisturbed)
  assert list(expected) == list(range(0, 6 * WINDOW, WINDOW // 4))

  # The first save of a process is of the record that it starts from. It dies
  # in that of record 0, then in that of record 4, each time a record later.
  killed = world.start("killed", *ALONE, stops_in="save@1")
  wait_until(lambda: killed.has_record(1), killed)
  killed.kill()
  assert stopped("save@1") in killed.said()
  assert not killed.checkpoints()
  killed = world.start("killed", *ALONE, stops_in="save@3")
  wait_until(lambda: killed.has_record(5), killed)
  killed.kill()
  assert stopped("save@3") in killed.said()
  assert killed.checkpoints()[-1] == 3

  resumed = world.start("killed", *ALONE)
  resumed.must_end_well()
  assert [e["round"] for e in resumed.metrics("restored")] == [3]
  assert losses(resumed) == expected
  assert resumed.state_hash() == undisturbed.state_hash()


def test_sigterm_hands_in_the_window(world):
  slow = "--config.island.inner.paced_step_seconds=0.3"
  asked = world.start("asked", *ALONE, slow)
  wait_until(lambda: len(asked.metrics("step")) == 5, asked)
  asked.ask_to_end()
  asked.must_end_well()
  handed_in = asked.summary()
  trained = handed_in["tokens_trained"]
  assert WINDOW < trained < 2 * WINDOW, "it ends in the second window"
  assert handed_in["tokens_committed"] == trained
  assert handed_in["tokens_lost"] == 0 and not handed_in["final"]

  resumed = world.start("asked", *ALONE)
  resumed.must_end_well()
  summary = resumed.summary()
  assert summary["final"]
  assert 6 * WINDOW <= trained + summary["tokens_committed"] < 7 * WINDOW
  # Every position once: no step was repeated or left out.
  steps = [step["position"] for step in resumed.metrics("step")]
  end = trained + summary["tokens_committed"]
  assert steps == list(range(0, end, WINDOW // 4))


def test_islands_outlive_their_coordinator(world):
  run = [
    "elastic.start_islands=2",
    "elastic.lease_seconds=60",
    f"tokens={12 * WINDOW}",
  ]
  coordinator = world.coordinator(*run)
  ada, bo = islands = [
    world.island(name, coordinator) for name in ("ada", "bo")
  ]
  wait_until(lambda: coordinator.swarm().record >= 2, *islands)
  before = coordinator.records()
  coordinator.kill()

  coordinator = world.coordinator(*run, address=coordinator.address)
  for process in [*islands, coordinator]:
    process.must_end_well()
  after = coordinator.records()
  assert after[: len(before)] == before
  assert [r.number for r in after] == list(range(7)) and after[-1].final
  assert after[-1].term == 2
  assert ada.state_hash() == bo.state_hash()
  for island in islands:
    assert island.incarnation() == 1
    assert island.summary()["tokens_committed"] == 6 * WINDOW
    assert island.summary()["tokens_lost"] == 0

  # Started once more, it waits for the last members; others come too late.
  coordinator = world.coordinator(*run)
  late = world.island("late", coordinator)
  late.must_end_well()
  assert "The run is over" in late.said()
  state_hash, steps = ada.state_hash(), ada.metrics("step")
  again = [world.island(name, coordinator) for name in ("ada", "bo")]
  for process in [*again, coordinator]:
    process.must_end_well()
  assert [island.state_hash() for island in again] == 2 * [state_hash]
  assert ada.metrics("step") == steps
