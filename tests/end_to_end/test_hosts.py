"""An island of two processes, as on two hosts, beside one of one process."""

from processes import Coordinator, Process, World, wait_until

from intellect_jax.elastic import rpc


def start(
  world: World, name: str, coordinator: Coordinator, encode_on_device: str
) -> list[Process]:
  """Starts an island of two processes, each with two devices."""
  return [
    world.island(
      name,
      coordinator,
      "--config.island.cpu_devices=2",
      "--process_count=2",
      f"--process_id={process}",
      f"--config.island.encode_on_device={encode_on_device}",
      f"--island_coordinator={address}",
    )
    for address in [rpc.unused_address()]
    for process in range(2)
  ]


def test_it_ends_on_the_same_bits_also_after_a_process_died(world):
  coordinator = world.coordinator(
    "elastic.start_islands=2",
    "elastic.lease_seconds=4",
    "tokens=100_000_000",
  )
  bo = world.island(
    "bo", coordinator, "--config.island.inner.paced_step_seconds=0.1"
  )
  ada = start(world, "ada", coordinator, "no")

  def members(start: int) -> list[set[str]]:
    """Of records from `start` on."""
    records = coordinator.records()[start:]
    return [{m.island for m in r.step.members} for r in records]

  def wait_for(islands: set[str], start: int, *running: Process) -> None:
    wait_until(lambda: islands in members(start), coordinator, bo, *running)

  wait_for({"ada", "bo"}, 1, *ada)
  ada[1].kill()
  assert "Process 1 of this island is gone" in ada[0].must_fail()
  died = coordinator.swarm().record
  wait_for({"bo"}, died + 1)

  ada = start(world, "ada", coordinator, "yes")
  wait_for({"ada", "bo"}, died + 2, *ada)
  world.control(coordinator, "finish")
  for process in [*ada, bo, coordinator]:
    process.must_end_well()
  assert ada[0].incarnation() == 2
  assert ada[0].state_hash() == bo.state_hash()
  assert ada[0].metrics("restored")[-1]["round"] <= died + 1
  sources = [event["source"] for event in ada[0].metrics("restored")]
  assert "checkpoint" in sources
