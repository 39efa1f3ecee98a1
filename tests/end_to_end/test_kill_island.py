"""kill -9 of an island in the middle of a round: the round goes on."""

from processes import wait_until
import pytest
from stopping import stopped

WINDOW = 2048  # tokens


@pytest.mark.parametrize(
  "where, members",
  [
    # Its share is missing: a new attempt divides by the survivors' tokens.
    ("reduce@2", ["ada", "bo"]),
    # The mean is fixed and with the others: its work counts.
    ("gather@2", ["ada", "bo", "victim"]),
  ],
)
def test_the_others_commit_the_round(world, where, members):
  coordinator = world.coordinator(
    "outer.codec=float32",
    "elastic.start_islands=3",
    "elastic.lease_seconds=4",
    f"tokens={7 * WINDOW}",  # one round of all, one or two of the survivors
  )
  survivors = [world.island(name, coordinator) for name in ("ada", "bo")]
  victim = world.island("victim", coordinator, stops_in=where)

  wait_until(lambda: stopped(where) in victim.said(), *survivors, victim)
  work = "reducing" if "reduce" in where else "gathering"
  phase = f"{work}, waiting for victim"
  wait_until(lambda: coordinator.swarm().phase == phase, *survivors, victim)
  victim.kill()

  for process in [*survivors, coordinator]:
    process.must_end_well()
  _, first, second, *rest = coordinator.records()
  assert [m.island for m in first.step.members] == ["ada", "bo", "victim"]
  assert [m.island for m in second.step.members] == members
  assert [m.weight for m in second.step.members] == [WINDOW] * len(members)
  assert second.total_tokens - first.total_tokens == WINDOW * len(members)
  for record in rest:
    assert [m.island for m in record.step.members] == ["ada", "bo"]

  # The means are those of the members named, bit for bit.
  *bases, final = world.simulate(coordinator)
  steps = [first, second, *rest]
  assert [r.step.base_state.hex() for r in steps] == bases
  assert [survivor.state_hash() for survivor in survivors] == 2 * [final]
  assert [survivor.incarnation() for survivor in survivors] == [1, 1]
