"""An operator has an island out, then loses the coordinator's disk."""

from processes import command, wait_until


def test_an_evicted_process_stays_out_and_a_lost_ledger_is_collected(world):
  run = (
    "tokens=100_000_000",
    "outer.inner_steps=2",
    "elastic.start_islands=2",
    "elastic.lease_seconds=4",
  )
  coordinator = world.coordinator(*run)
  ada, bo = (world.island(name, coordinator) for name in ("ada", "bo"))

  def control(*words: str) -> None:
    where = f"--coordinator={coordinator.address}"
    status, said = command("control", where, *words)
    assert status == 0, said

  def two_committed(after: int) -> bool:
    """Whether both made a record that is newer than `after`."""
    records = coordinator.records()[after + 1 :]
    return any(len(record.step.members) == 2 for record in records)

  wait_until(lambda: two_committed(0), coordinator, ada, bo)
  control("evict", "bo", "--reason=its clock is wrong")
  assert "An operator evicted" in bo.must_fail() or "evicted it" in bo.said()
  (evicted,) = [
    r.settings.evicted
    for r in coordinator.records()
    if r.settings.HasField("evicted")
  ]
  assert (evicted.island, evicted.incarnation) == ("bo", 1)
  bo = world.island("bo", coordinator)  # a newer process of it may come
  evicted_at = coordinator.swarm().record
  wait_until(lambda: two_committed(evicted_at), coordinator, ada, bo)

  before = coordinator.swarm()
  records = coordinator.records()
  coordinator.kill()
  for path in coordinator.workdir.glob("ledger.sqlite*"):
    path.unlink()
  address = coordinator.address
  coordinator = world.coordinator(*run, "--recover", address=address)
  head = len(records) - 1
  wait_until(lambda: coordinator.swarm().record > head, coordinator, ada, bo)
  wait_until(lambda: two_committed(head), coordinator, ada, bo)
  after = coordinator.swarm()
  assert (after.run_id, after.term > before.term) == (before.run_id, True)
  control("finish")
  for process in [ada, bo, coordinator]:
    process.must_end_well()

  assert coordinator.records()[: len(records)] == records  # none is lost
  assert [ada.incarnation(), bo.incarnation()] == [1, 2]
  assert ada.state_hash() == bo.state_hash()
  for island in (ada, bo):
    told = island.summary()
    kept = told["tokens_committed"] + told["tokens_lost"]
    assert kept == told["tokens_trained"]
