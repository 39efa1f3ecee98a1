"""An operator steers a run: what was changed is in its records, and replays."""

import numpy as np
from processes import command, wait_until


def test_what_an_operator_changes_is_in_the_records(world):
  coordinator = world.coordinator("tokens=100_000_000")
  ada = world.island("ada", coordinator)

  def control(*words: str) -> str:
    return world.control(coordinator, *words)

  wait_until(lambda: coordinator.swarm().record >= 1, ada, coordinator)
  control("pause", "--reason=to look at the data")
  paused_at = coordinator.swarm().record
  said = control("status")
  assert "ada" in said and "paused: to look at the data" in said
  changed_from = paused_at + 4  # after this change and the resumption
  control(
    "set",
    "run.outer.learning_rate=0.5",
    "run.outer.inner_steps=3",
    f"--at-record={changed_from}",
  )
  status, said = command(
    "control",
    f"--coordinator={coordinator.address}",
    *("set", "run.model.width=7"),
  )
  assert status == 2 and "run.model.width cannot be changed" in said
  control("resume")
  wait_until(lambda: coordinator.swarm().record >= changed_from + 3, ada)
  assert "changed: run.outer.learning_rate=0.5" in control("status")
  control("finish")
  ada.must_end_well()
  coordinator.must_end_well()

  records = coordinator.records()
  settings = [r.number for r in records if r.HasField("settings")]
  # Paused: no step lies between this change and the resumption.
  assert settings[:3] == [paused_at, paused_at + 1, paused_at + 2]
  for record in (r for r in records if r.HasField("step")):
    eta = 0.5 if record.number >= changed_from else 0.7
    assert np.float32(record.step.learning_rate) == np.float32(eta)
  steps = [w.steps for m in records[-1].step.members for w in m.windows]
  assert steps == [3]

  status, said = command("replay", f"--workdir={ada.workdir}")
  assert status == 0, said
  assert ada.state_hash()[:16] in said
