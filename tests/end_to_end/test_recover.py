"""A ledger that is lost, twice, an eviction, and a chain that loses by it."""

from processes import Process, command, wait_until


def test_the_chain_is_collected_from_islands_and_another_one_loses(world):
  run = (
    "tokens=100_000_000",
    "outer.inner_steps=2",
    "elastic.start_islands=2",
    "elastic.lease_seconds=4",
    "elastic.annul_patience=2",
    "elastic.minority_patience=0",
  )
  coordinator = world.coordinator(*run)

  def start(name: str) -> Process:
    keep = "--config.island.checkpoint.keep=100"
    return world.island(name, coordinator, keep)

  def wait_for_record(number: int, *islands: Process) -> None:
    reached = lambda: coordinator.swarm().record >= number  # noqa: E731
    wait_until(reached, coordinator, *islands)

  def lose_ledger() -> None:
    coordinator.kill()
    for path in coordinator.workdir.glob("ledger.sqlite*"):
      path.unlink()

  ada, bo = start("ada"), start("bo")
  wait_for_record(2, ada, bo)
  world.control(coordinator, "evict", "bo", "--reason=its clock is wrong")
  assert "An operator evicted" in bo.must_fail() or "evicted it" in bo.said()
  (evicted,) = [
    r for r in coordinator.records() if r.settings.HasField("evicted")
  ]
  who = evicted.settings.evicted
  assert (who.island, who.incarnation) == ("bo", 1)
  wait_for_record(evicted.number + 2, ada)

  # Of what ada has done alone bo knows nothing, and ada is not asked.
  lost = coordinator.records()
  common = max(r.number for r in lost if bo.has_record(r.number))
  assert evicted.number - 1 <= common <= evicted.number
  ada.kill()
  lose_ledger()
  coordinator = world.coordinator(*run, "--recover", "--force")
  bo = start("bo")  # a newer process of it may come, and into a recovery too
  wait_for_record(common + 2, bo)

  # Lost once more, under an island that trains on.
  before = coordinator.swarm()
  records = coordinator.records()
  address = coordinator.address
  lose_ledger()
  coordinator = world.coordinator(*run, "--recover", address=address)
  wait_for_record(before.record + 2, bo)
  after = coordinator.swarm()
  assert (after.run_id, after.term > before.term) == (before.run_id, True)
  assert coordinator.records()[: len(records)] == records  # none is lost

  # ada's newest records do not count, and nobody is there to serve others.
  bo.kill()
  newest = coordinator.swarm().record
  ada = start("ada")
  wait_for_record(newest + 3, ada)
  world.control(coordinator, "finish")
  for process in (ada, coordinator):
    process.must_end_well()

  won = coordinator.records()
  assert won[: common + 1] == lost[: common + 1]
  assert won[common + 1] != lost[common + 1]
  annulled = [r.annulment.to for r in won if r.HasField("annulment")]
  assert annulled and max(annulled) <= common
  assert [ada.incarnation(), bo.incarnation()] == [2, 2]
  assert ada.metrics("restored")[-1]["source"] == "checkpoint"
  told = ada.summary()
  kept = told["tokens_committed"] + told["tokens_lost"]
  assert kept == told["tokens_trained"] > 0
  status, said = command("replay", f"--workdir={ada.workdir}")
  assert status == 0 and ada.state_hash()[:16] in said, said
