"""What a run exports, the next one starts from: the very bits."""

import subprocess
import sys

from processes import ALONE, BOUND, ENVIRONMENT, wait_until
import pytest

from intellect_jax.checkpoint import durable, pretrained


@pytest.fixture
def llama(undisturbed, tmp_path):
  """Theta of an island that has trained, as a Hugging Face folder."""
  folder = tmp_path / "llama"
  command = [sys.executable, "-m", "intellect_jax.export"]
  flags = [f"--workdir={undisturbed.workdir}", f"--output={folder}"]
  done = subprocess.run([*command, *flags], env=ENVIRONMENT, timeout=BOUND)
  assert done.returncode == 0
  return folder


def test_a_swarm_starts_from_what_a_run_has_exported(world, undisturbed, llama):
  coordinator = world.coordinator(
    f"init_from={pretrained.Weights(llama).digest}",
    "elastic.start_islands=2",
    "tokens=4096",
  )
  empty = world.island("empty", coordinator)
  assert "this island is its first" in empty.must_fail()
  keep = "--config.island.checkpoint.keep=9"
  has = world.island("has", coordinator, f"--init-from={llama}", keep)
  wait_until(lambda: has.has_record(0), coordinator, has)
  fetches = world.island("fetches", coordinator, keep)
  for process in (has, fetches, coordinator):
    process.must_end_well()

  exported = durable.read_outer(undisturbed.workdir / "checkpoints").theta
  for island in (has, fetches):
    folder = island.workdir / "checkpoints"
    start = durable.read_outer(folder, durable.records(folder)[0])
    assert start.record == 0 and not start.momentum.any()
    assert (start.theta == exported).all()
  assert has.state_hash() == fetches.state_hash()


@pytest.mark.parametrize(
  "module", ["intellect_jax.train", "intellect_jax.coordinator"]
)
def test_weights_of_another_shape(world, llama, module):
  flags = [*ALONE, "--config.run.model.layers=3", f"--init-from={llama}"]
  said = world.start("wrong", *flags, module=module).must_fail()
  assert "Traceback" not in said
  assert "num_hidden_layers 2, but run.model.layers is 3" in said
