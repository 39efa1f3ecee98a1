"""Islands in processes, bit for bit what one process computes in turn."""

import numpy as np
from processes import read_ledger
import pytest

from intellect_jax import config as config_lib
from intellect_jax.checkpoint import durable
from intellect_jax.data import sources
from intellect_jax.data.preparation import Preparation, Settings
from intellect_jax.elastic import history
from intellect_jax.elastic.ledger import FILE
from intellect_jax.observe.provenance import gather
from intellect_jax.outer.average import mean
from intellect_jax.replay import replay

ROUND = 3 * 2048  # tokens of three islands


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder with one more source, "best"."""
  folder = tmp_path_factory.mktemp("prepared")
  texts = folder / "texts"
  texts.mkdir()
  for i, document in enumerate(sources.documents()[:20]):
    (texts / f"{i}.txt").write_text(document)
  settings = Settings("byte", held_out=0.1)
  preparation = Preparation([str(texts)], settings, folder / "best")
  preparation.run(0, lambda read: None)
  preparation.finish()
  return folder


@pytest.mark.parametrize(
  ("codec", "merge", "rate", "mu"),
  [("int8", "rda", 0.6, 0.9), ("sparse2", "mean", 1, 0)],
)
def test_a_swarm_equals_its_simulation(world, prepared, codec, merge, rate, mu):
  """Through a run that anneals: in its last two rounds the learning rate falls,
  and half of the text is from the best source. test_kill_island.py has float32."""
  coordinator = world.coordinator(
    f"outer.codec={codec}",
    f"outer.merge={merge}",
    "outer.learning_rate=auto",
    f"outer.momentum={mu}",
    f"outer.momentum_warmup_tokens={ROUND}",
    f"inner.decay_tokens={2 * ROUND}",
    "data.sources=('python_docs', 'best')",
    f"data.stages=((0, (1.0, 0.0)), ({ROUND}, (0.5, 0.5)))",
    "elastic.start_islands=3",
    f"tokens={3 * ROUND}",
    f"--config.island.data.folder={prepared}",
  )
  folder = f"--config.island.data.folder={prepared}"
  # On CPUs XLA's codes are those of the host, but for subnormal numbers.
  encoding = "--config.island.encode_on_device=yes"
  islands = [
    world.island("ada", coordinator, folder),
    world.island("bo", coordinator, folder),
    world.island("cy", coordinator, folder, encoding),
  ]
  for process in [*islands, coordinator]:
    process.must_end_well()

  records = coordinator.records()
  assert [r.number for r in records] == [0, 1, 2, 3] and records[-1].final
  for record in records[1:]:
    assert [m.island for m in record.step.members] == ["ada", "bo", "cy"]
  simulated = world.simulate(coordinator, prepared)
  # Each record names the state that its members stood at before.
  assert [r.step.base_state.hex() for r in records[1:]] == simulated[:-1]
  assert [island.state_hash() for island in islands] == 3 * [simulated[-1]]
  assert len(set(simulated)) == len(records)
  for island in islands:
    replayed = replay(island.workdir, to=None)  # from a checkpoint, by the log
    assert replayed.manifest()[1].id.hex() == simulated[-1]
    assert durable.records(island.workdir / "checkpoints")[0] < 3

  averages = [history.average(i.workdir, 3, mean, newest=2) for i in islands]
  assert [over for _, over in averages] == 3 * [[2, 3]]
  assert len({average.tobytes() for average, _ in averages}) == 1

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
  run = config_lib.from_json(read_ledger(coordinator.workdir / FILE)[0])
  check_provenance(islands[0], run, coordinator)


def check_provenance(island, run, coordinator):
  """What its model card would say: who trained, and that hours are known."""
  run_id = coordinator.summary()["run_id"]
  told = gather(island.workdir, run, run_id, record=3)
  assert told.tokens == 3 * ROUND and told.lost == 0
  assert told.sources == dict(python_docs=2 * ROUND, best=ROUND)
  for name in ("ada", "bo", "cy"):
    assert told.islands[name].tokens == ROUND
    assert told.islands[name].hours is not None


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
