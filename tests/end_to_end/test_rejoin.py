"""Islands that come back, or come late, end on the same bits as all others."""

from processes import wait_until

from intellect_jax.audit import audit, read

WINDOW = 2048  # tokens


def test_back_with_a_workdir_and_new_without_one(world, tmp_path):
  coordinator = world.coordinator(
    "elastic.start_islands=3",
    "elastic.min_islands=2",
    "elastic.lease_seconds=4",
    "elastic.fetch_patience=2",
    f"tokens={80 * WINDOW}",
  )
  names = ("stays", "sleeps", "blinks")
  no_more = "--config.island.log_gb=0"  # than its own checkpoints need
  stays, sleeps, blinks = (
    world.island(name, coordinator, no_more) for name in names
  )

  def record():
    return coordinator.swarm().record

  def wait_for_record(number, *running):
    wait_until(lambda: record() >= number, coordinator, *running)

  wait_for_record(1, stays, sleeps, blinks)
  wait_until(sleeps.checkpoints, coordinator, stays, sleeps, blinks)
  sleeps.kill()
  wait_for_record(record() + 6, stays, blinks)
  blinks.kill()
  # One island alone commits nothing, so the run waits for these three.
  blinks = world.island("blinks", coordinator, no_more)
  sleeps = world.island("sleeps", coordinator)
  late = world.island("late", coordinator)
  islands = [stays, blinks, sleeps, late]
  for process in [*islands, coordinator]:
    process.must_end_well()

  records = coordinator.records()
  members = [{m.island for m in r.step.members} for r in records]
  assert {"stays", "blinks"} in members and records[-1].final
  assert members[-1] == {island.name for island in islands}
  assert [island.incarnation() for island in islands] == [1, 2, 2, 1]
  assert len({island.state_hash() for island in islands}) == 1

  def restored_from(island):
    return [event["source"] for event in island.metrics("restored")]

  assert restored_from(late) == ["other islands"]
  assert restored_from(blinks)[-1] == "checkpoint"
  # The others no longer have the means that it would have to replay.
  assert restored_from(sleeps)[-2:] == ["checkpoint", "other islands"]

  # Of all that was leased, every sample is committed once or came back.
  books, logs = read(tmp_path)
  assert {"stays", "sleeps", "blinks", "late"} == set(logs)
  report = audit(books, logs)
  assert not report.faults and report.tokens == records[-1].total_tokens
