"""Everything an island had is gone but its copies far away: the run goes on."""

from processes import wait_until


def test_a_new_island_goes_on_from_the_copy_of_a_lost_one(world, tmp_path):
  coordinator = world.coordinator(
    "elastic.lease_seconds=2", "elastic.annul_patience=1", "tokens=100_000_000"
  )
  remote = f"--config.island.checkpoint.remote=file://{tmp_path}/far"
  ada = world.island("ada", coordinator, remote)
  copied = lambda: list(tmp_path.glob("far/*/ada/*/copied.json"))  # noqa: E731
  wait_until(copied, ada, coordinator)
  ada.kill()
  lost = coordinator.swarm().record
  bo = world.island("bo", coordinator, remote, "--config.island.log_gb=0.001")
  wait_until(lambda: coordinator.swarm().record > lost + 2, bo, coordinator)
  world.control(coordinator, "finish")
  for process in (bo, coordinator):
    process.must_end_well()
  assert {event["source"] for event in bo.metrics("restored")} == {"checkpoint"}
  assert coordinator.records()[-1].final
  assert bo.summary()["tokens_committed"] > 0
