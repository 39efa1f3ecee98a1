"""Islands of other meshes, and with other windows, are in one run."""

from processes import wait_until


def test_a_mesh_of_four_devices_joins_an_island_of_one(world):
  """It gets theta and b, which are the same bits on any mesh."""
  coordinator = world.coordinator("tokens=100_000_000", "outer.inner_steps=2")
  one = world.island("one", coordinator)
  wait_until(lambda: coordinator.swarm().record >= 1, one, coordinator)
  four = world.island(
    "four",
    coordinator,
    "--config.island.cpu_devices=4",
    "--config.island.mesh.fsdp=2",
    "--config.island.mesh.tensor=2",
    "--config.island.inner.window_steps=3",
  )

  def together() -> bool:
    members = [r.step.members for r in coordinator.records()]
    return sum(len(m) == 2 for m in members) >= 3

  wait_until(together, one, four, coordinator)
  world.control(coordinator, "finish")
  for process in (one, four, coordinator):
    process.must_end_well()
  assert one.state_hash() == four.state_hash()
  for record in coordinator.records():
    for member in record.step.members:
      steps = sum(window.steps for window in member.windows)
      tokens = sum(window.tokens for window in member.windows)
      assert steps == {"one": 2, "four": 3}[member.island] * len(member.windows)
      assert member.weight == tokens
