"""kill -9 of islands in the middle of a round: the round goes on."""

from processes import wait_until
from stopping import stopped

WINDOW = 2048  # tokens


def test_the_others_commit_the_round(world):
  coordinator = world.coordinator(
    "outer.codec=float32",
    "elastic.start_islands=4",
    "elastic.lease_seconds=4",
    f"tokens={12 * WINDOW}",  # rounds of 4, 3, 3 and 2 islands
  )
  ada, bo = (world.island(name, coordinator) for name in ("ada", "bo"))
  early = world.island("early", coordinator, stops_in="reduce@2")
  late = world.island("late", coordinator, stops_in="gather@3")

  # Its share is missing: a new attempt divides by the others' tokens.
  wait_until(lambda: stopped("reduce@2") in early.said(), ada, bo, late, early)
  phase = "reducing, waiting for early"
  wait_until(lambda: coordinator.swarm().phase == phase, ada, bo, late, early)
  early.kill()
  # The mean is fixed and the others have it: its work counts.
  wait_until(lambda: stopped("gather@3") in late.said(), ada, bo, late)
  phase = "gathering, waiting for late"
  wait_until(lambda: coordinator.swarm().phase == phase, ada, bo, late)
  late.kill()
  for process in (ada, bo, coordinator):
    process.must_end_well()

  records = coordinator.records()[1:]
  members = [[m.island for m in record.step.members] for record in records]
  assert members == [
    ["ada", "bo", "early", "late"],
    ["ada", "bo", "late"],
    ["ada", "bo", "late"],
    ["ada", "bo"],
  ]
  weights = [[m.weight for m in record.step.members] for record in records]
  assert weights == [[WINDOW] * len(islands) for islands in members]
  assert [r.total_tokens // WINDOW for r in records] == [4, 7, 10, 12]

  # The means are those of the members named, bit for bit.
  *bases, final = world.simulate(coordinator)
  assert [record.step.base_state.hex() for record in records] == bases
  assert ada.state_hash() == bo.state_hash() == final
  assert ada.incarnation() == bo.incarnation() == 1


def test_a_record_outlives_that_all_are_killed_before_they_hear_of_it(world):
  """Nobody has its mean but who had gathered it, and has no record of it."""
  run = "tokens=100_000_000", "outer.inner_steps=2", "elastic.annul_patience=2"
  coordinator = world.coordinator(*run)
  ada = world.island("ada", coordinator, stops_in="adopt@3")
  wait_until(lambda: stopped("adopt@3") in ada.said(), ada, coordinator)
  committed = coordinator.records()
  assert not ada.has_record(len(committed) - 1)
  for process in (ada, coordinator):
    process.kill()
  coordinator = world.coordinator(*run)
  ada = world.island("ada", coordinator)
  goes_on = lambda: coordinator.swarm().record > len(committed)  # noqa: E731
  wait_until(goes_on, ada, coordinator)
  world.control(coordinator, "finish")
  for process in (ada, coordinator):
    process.must_end_well()
  records = coordinator.records()
  assert records[: len(committed)] == committed
  assert not any(record.HasField("annulment") for record in records)
