"""A lone island that trains on while its delta is exchanged."""

import contextlib
import pathlib

import jax
import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.mesh import ElasticDeviceMesh
from intellect_jax.elastic.service import CoordinatorService
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import sharding

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
  return config, GlobalIndex(run.data, tokenizer_of(run)), devices


@contextlib.contextmanager
def lone(parts, folder: pathlib.Path, **outer):
  """An island that is its own coordinator: (mesh, step, service)."""
  config, index, devices = parts
  run = config.run.copy_and_resolve_references()
  run.outer.update(outer)
  config_lib.validate_run(run)
  step = TrainStep(run, config.island, devices)
  with contextlib.ExitStack() as stack:
    service = CoordinatorService(run, folder / "coordinator")
    stack.callback(service.close)
    identity = Identity(folder / "island", "alone")
    stack.callback(identity.close)
    about = [service.address], service.description()
    mesh = stack.enter_context(
      ElasticDeviceMesh(
        run, config.island, identity, step, index, None, *about, alone=True
      )
    )
    yield mesh, step, service


def merges(mesh, step):
  """Trains to the end: (steps since the proposal, x before, x, theta) each."""
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
  outer = dict(overlap_steps=OVERLAP, merge_alpha=0.25)
  with lone(parts, tmp_path, **outer) as (mesh, step, service):
    found = merges(mesh, step)
    assert service.done.wait(60)
    status = service.status()
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
  summary = mesh.summary()
  assert status.final and status.total_tokens == summary["tokens_committed"]
  assert status.tokens_trained == summary["tokens_trained"]
  assert {loss.cause for loss in status.losses} <= {"the run is final"}


def test_without_alpha_the_overlap_is_thrown_away_with_a_word(parts, tmp_path):
  with lone(parts, tmp_path, overlap_steps=OVERLAP) as (mesh, step, service):
    assert "thrown away" in "".join(service.status().warnings)
    found = merges(mesh, step)
    assert service.done.wait(60)
    status = service.status()
  for *_, after, theta in found:
    jax.tree.map(np.testing.assert_array_equal, after, theta)
  tokens = OVERLAP * mesh._windows.tokens_a_step
  thrown = [loss.tokens for loss in status.losses if "thrown" in loss.cause]
  assert thrown[: ROUNDS - 1] == (ROUNDS - 1) * [tokens]
  assert status.tokens_trained == status.total_tokens + status.tokens_lost
  summary = mesh.summary()
  assert summary["tokens_lost"] >= sum(thrown)
  assert summary["tokens_committed"] == status.total_tokens
