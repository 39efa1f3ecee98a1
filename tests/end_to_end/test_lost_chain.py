"""Two coordinators, one after the other, and an island of the chain that lost."""

from processes import wait_until


def test_an_island_of_a_lost_chain_starts_with_nobody_there_to_serve_it(world):
  run = (
    "tokens=100_000_000",
    "outer.inner_steps=2",
    "elastic.start_islands=2",
    "elastic.lease_seconds=2",
    "elastic.annul_patience=2",
    "elastic.minority_patience=0",
  )
  keep = "--config.island.checkpoint.keep=100"
  coordinator = world.coordinator(*run)

  def start(name: str):
    return world.island(name, coordinator, keep)

  def wait_for_record(number: int, *islands) -> None:
    reached = lambda: coordinator.swarm().record >= number  # noqa: E731
    wait_until(reached, coordinator, *islands)

  ada, bo = start("ada"), start("bo")
  wait_for_record(2, ada, bo)
  bo.kill()
  common = coordinator.swarm().record
  wait_for_record(common + 4, ada)
  for process in (ada, coordinator):
    process.kill()
  lost = coordinator.records()
  for path in coordinator.workdir.glob("ledger.sqlite*"):
    path.unlink()

  coordinator = world.coordinator(*run, "--recover", "--force")
  bo = start("bo")
  wait_for_record(common + 2, bo)
  bo.kill()
  ada = start("ada")  # with records that nobody else has, and that do not count
  wait_until(
    lambda: any(r.HasField("annulment") for r in coordinator.records())
  )
  newest = coordinator.swarm().record
  wait_for_record(newest + 2, ada)
  bo = start("bo")
  both = lambda: len(coordinator.records()[-1].step.members) == 2  # noqa: E731
  wait_until(both, coordinator, ada, bo)
  world.control(coordinator, "finish")
  for process in [ada, bo, coordinator]:
    process.must_end_well()

  won = coordinator.records()
  assert len(won) > len(lost) > common
  assert won[:2] == lost[:2] and won[common + 1] != lost[common + 1]
  assert ada.metrics("restored")[-1]["source"] == "checkpoint"
  assert ada.state_hash() == bo.state_hash()
  told = ada.summary()
  kept = told["tokens_committed"] + told["tokens_lost"]
  assert kept == told["tokens_trained"]
