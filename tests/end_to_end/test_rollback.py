"""An operator rolls a run back while all islands stand past that record."""

from processes import command, wait_until


def test_all_islands_go_back_to_their_own_checkpoints(world):
  coordinator = world.coordinator(
    "tokens=100_000_000", "elastic.start_islands=2", "outer.inner_steps=2"
  )
  keep = "--config.island.checkpoint.keep=100"
  islands = [world.island(name, coordinator, keep) for name in ("ada", "bo")]

  def wait_for_record(number: int) -> None:
    reached = lambda: coordinator.swarm().record >= number  # noqa: E731
    wait_until(reached, coordinator, *islands)

  wait_for_record(4)
  world.control(coordinator, "rollback", "--to=2", "--reason=the loss went up")
  annulments = [r for r in coordinator.records() if r.HasField("annulment")]
  (annulment,) = annulments
  wait_for_record(annulment.number + 2)
  world.control(coordinator, "finish")
  for process in [*islands, coordinator]:
    process.must_end_well()

  assert [island.incarnation() for island in islands] == [1, 1]
  assert len({island.state_hash() for island in islands}) == 1
  records = coordinator.records()
  again = records[annulment.number + 1]
  assert again.step.base == annulment.number
  # They stood at the very state that record 3 had been made from.
  assert again.step.base_state == records[3].step.base_state
  for island in islands:
    sources = [event["source"] for event in island.metrics("restored")]
    assert sources[-1] == "checkpoint"  # before that, one joined the other
    # Each token is in a record that counts, or lost with its cause.
    told = island.summary()
    kept = told["tokens_committed"] + told["tokens_lost"]
    assert kept == told["tokens_trained"] > told["tokens_committed"]
    status, said = command("replay", f"--workdir={island.workdir}")
    assert status == 0 and island.state_hash()[:16] in said, said
