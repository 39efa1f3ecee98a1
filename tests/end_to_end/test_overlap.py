"""Islands that train on while their deltas are exchanged."""

import concurrent.futures
import contextlib
import pathlib

import jax
import numpy as np
from processes import read_ledger
import pytest

from intellect_jax import config as config_lib
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.mesh import ElasticDeviceMesh
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.service import CoordinatorService
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import sharding
from intellect_jax.replay import replay

STEPS = 4  # a window
ROUNDS = 4
OVERLAP = 2


@pytest.fixture(scope="module")
def parts():
  """A config, its index and its compiled step; none depends on `run.outer`."""
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  run = config.run
  run.tokens = ROUNDS * STEPS * run.inner.batch_size * run.data.sequence_length
  run.outer.inner_steps = STEPS
  devices = sharding.make_mesh(devices=jax.devices()[:1])
  step = TrainStep(run, config.island, devices)
  return config, GlobalIndex(run.data, tokenizer_of(run)), step


class Run:
  """A coordinator and islands of one process, and how they are set."""

  def __init__(self, parts, folder: pathlib.Path, islands: int = 1, **outer):
    self.config, self.index, self.step = parts
    self.run = self.config.run.copy_and_resolve_references()
    self.run.outer.update(outer)
    self.run.elastic.start_islands = islands
    config_lib.validate_run(self.run)
    self.folder = folder
    self.service = CoordinatorService(self.run, folder / "coordinator")

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.service.close()

  @contextlib.contextmanager
  def island(self, name: str, alone: bool = True):
    identity = Identity(self.folder / name, name)
    about = [self.service.address], self.service.description()
    settings = self.run, self.config.island
    try:
      with ElasticDeviceMesh(
        *settings, identity, self.step, self.index, None, *about, alone=alone
      ) as mesh:
        yield mesh
    finally:
      identity.close()

  def train(self, name: str, alone: bool = True):
    """Trains an island to the end; returns its merges and its summary.

    Of each merge: steps since the one before, x before and after, and theta.
    """
    with self.island(name, alone) as mesh:
      found = merges(mesh, self.step)
      return found, mesh.summary()

  def end(self):
    """The status of a run that is over."""
    assert self.service.done.wait(60)
    return self.service.status()

  def records(self) -> list[pb.Record]:
    return read_ledger(self.folder / "coordinator" / "ledger.sqlite")[1]


def merges(mesh, step):
  state, found, steps = mesh.state, [], 0
  for batch in mesh.batches():
    state, metrics = step(state, batch, mesh.schedule())
    steps += 1
    before, record = jax.device_get(state.params), mesh.record
    state = mesh.after_step(state, metrics)
    if mesh.record > record:
      theta = mesh._held.host_theta()
      found.append((steps, before, jax.device_get(state.params), theta))
      steps = 0
  return found


def test_x_is_blended_with_theta_after_the_overlap(parts, tmp_path):
  with Run(parts, tmp_path, overlap_steps=OVERLAP, merge_alpha=0.25) as run:
    found, summary = run.train("ada")
    status = run.end()
  first, *later, last = [steps for steps, *_ in found]
  assert first == STEPS + OVERLAP and set(later) == {STEPS}
  assert last <= STEPS  # nothing comes after the final record
  for _, before, after, theta in found[:-1]:
    expected = jax.tree.map(lambda x, t: 0.25 * x + 0.75 * t, before, theta)
    jax.tree.map(
      lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-8),
      after,
      expected,
    )
  # What was trained ahead is in x, and so in the window after.
  assert status.final and status.total_tokens == summary["tokens_committed"]
  assert status.tokens_trained == summary["tokens_trained"]
  assert {loss.cause for loss in status.losses} <= {"the run is final"}


def test_without_alpha_the_overlap_is_thrown_away_with_a_word(parts, tmp_path):
  with Run(parts, tmp_path, overlap_steps=OVERLAP) as run:
    assert "thrown away" in "".join(run.service.status().warnings)
    found, summary = run.train("ada")
    status = run.end()
  for *_, after, theta in found:
    jax.tree.map(np.testing.assert_array_equal, after, theta)
  tokens = OVERLAP * run.run.inner.batch_size * run.run.data.sequence_length
  thrown = [loss.tokens for loss in status.losses if "thrown" in loss.cause]
  assert thrown[: ROUNDS - 1] == (ROUNDS - 1) * [tokens]
  assert status.tokens_trained == status.total_tokens + status.tokens_lost
  assert summary["tokens_lost"] >= sum(thrown)
  assert summary["tokens_committed"] == status.total_tokens


def test_islands_agree_though_they_train_on(parts, tmp_path):
  outer = dict(overlap_steps=3, merge_alpha=0.5, codec="int8")
  with (
    Run(parts, tmp_path, islands=2, **outer) as run,
    concurrent.futures.ThreadPoolExecutor(2) as pool,
  ):
    trained = [pool.submit(run.train, name, False) for name in ("ada", "bo")]
    summaries = [future.result()[1] for future in trained]
    status = run.end()
  assert {summary["record"] for summary in summaries} == {status.record}
  hashes = {h for s in summaries for h in s["theta_hash"].values()}
  assert len(hashes) == 1
  for name in ("ada", "bo"):  # from a checkpoint, by the log
    replayed = replay(tmp_path / name, to=None)
    assert {replayed.manifest()[1].id.hex()} == hashes
  records = run.records()
  steps = [record.step for record in records if record.HasField("step")]
  assert any(len(step.members) == 2 for step in steps)
  tokens = sum(w.tokens for s in steps for m in s.members for w in m.windows)
  assert records[-1].final and records[-1].total_tokens == tokens
  assert status.tokens_trained == sum(s["tokens_trained"] for s in summaries)
