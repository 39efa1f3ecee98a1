"""Islands in processes, bit for bit what one process computes in turn."""

import numpy as np
import pytest

from intellect_jax.checkpoint.durable import read_outer
from intellect_jax.replay import replay


@pytest.mark.parametrize(
  ("codec", "merge", "rate", "mu"),
  [
    ("float32", "mean", 0.6, 0.9),
    ("int8", "rda", 0.6, 0.9),
    ("sparse2", "mean", 1, 0),
  ],
)
def test_a_swarm_equals_its_simulation(world, codec, merge, rate, mu):
  coordinator = world.coordinator(
    f"outer.codec={codec}",
    f"outer.merge={merge}",
    "outer.learning_rate=auto",
    f"outer.momentum={mu}",
    f"outer.momentum_warmup_tokens={3 * 2048}",
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
  for island in islands:
    replayed = replay(island.workdir, to=None)  # from a checkpoint, by the log
    assert replayed.manifest()[1].id.hex() == simulated[-1]
    assert read_outer(island.workdir / "checkpoints", oldest=True).record < 3

  steps = [record.step for record in records[1:]]
  assert [step.learning_rate for step in steps] == 3 * [np.float32(rate)]
  assert [step.momentum for step in steps] == [0, *2 * [np.float32(mu)]]
  for step in steps:
    norm = np.mean([member.norm for member in step.members])
    assert norm > step.mean_norm > 0, "the islands went the same way"
    scale = norm / step.mean_norm if merge == "rda" else 1
    assert step.scale == pytest.approx(scale, rel=1e-6)
  for island in islands:
    check_figures(island, steps, mu)


def check_figures(island, steps, mu):
  """What an island tells of outer steps is what the records make of them."""
  told = island.metrics("record")
  for event, step in zip(told, steps, strict=True):
    applied = step.scale * step.mean_norm
    assert event["delta_norm"] == pytest.approx(applied, rel=1e-6)
    assert -0.5 < event["island_cosine"] < 1
  first, second, third = island.metrics("direction")
  assert (first["gain"], first["delta_cosine"]) == (1, None)
  # The first step had no momentum: b before the second is the first delta.
  ratio = told[0]["delta_norm"] / told[1]["delta_norm"]
  gain = 1 + mu + mu**2 * ratio * second["delta_cosine"]
  assert second["gain"] == pytest.approx(gain, rel=1e-4)
  assert -1 < third["delta_cosine"] < 1
