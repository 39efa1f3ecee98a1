"""Islands in processes, bit for bit what one process computes in turn."""

import pytest


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_swarm_equals_its_simulation(world, codec):
  coordinator = world.coordinator(
    f"outer.codec={codec}",
    "elastic.start_islands=3",
    f"tokens={3 * 3 * 2048}",
  )
  islands = [world.island(name, coordinator) for name in ("ada", "bo")]
  # On CPUs XLA's codes are those of the host, but for subnormal numbers.
  encoding = "--config.island.encode_on_device=yes"
  islands.append(world.island("cy", coordinator, encoding))
  for process in [*islands, coordinator]:
    process.must_end_well()

  records = coordinator.records()
  assert [r.number for r in records] == [0, 1, 2, 3] and records[-1].final
  for record in records[1:]:
    assert [m.island for m in record.step.members] == ["ada", "bo", "cy"]
  simulated = world.simulate(coordinator)
  # Each record names the state that its members stood at before.
  assert [r.step.base_state.hex() for r in records[1:]] == simulated[:-1]
  assert [island.state_hash() for island in islands] == 3 * [simulated[-1]]
  assert len(set(simulated)) == len(records)
