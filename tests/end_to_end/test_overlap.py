"""Islands that train on while fragments of their deltas are exchanged."""

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
from intellect_jax.elastic.state import OuterState
from intellect_jax.inner.step import TrainState, TrainStep
from intellect_jax.model import sharding
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer.codec import make_codec
from intellect_jax.outer.fragments import partition
from intellect_jax.outer.layout import Layout
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


def test_fragments_in_turn_are_streaming_diloco(parts, tmp_path):
  """Bit for bit, by the algorithm as it is written down, without overlap."""
  with Run(parts, tmp_path, fragments=2, codec="int8") as run:
    _, summary = run.train("ada")
    run.end()
  _, *records = run.records()
  assert [r.step.fragment for r in records] == ROUNDS * [1, 0]
  assert [bool(r.step.members[0].windows) for r in records] == (
    ROUNDS * [False, True]
  )
  hashes, whole = streaming(run, records)
  assert [record.step.base_state for record in records] == hashes
  assert summary["theta_hash"] == {"ada": whole.hex()}


def streaming(run: Run, records: list[pb.Record]) -> tuple[list[bytes], bytes]:
  """A fragment's hash before each record, and the hash of all at the end."""
  inner, tokens, total = run.run.inner, 0, 0
  codec = make_codec("int8")
  state = run.step.init(jax.random.key(run.run.seed))
  layout = Layout.of(state.params, tensor_names(state.params))
  fragments = partition(layout, 2)
  outer, x = OuterState(layout.size), layout.flatten(state.params)
  outer.replace(np.concatenate([x, np.zeros_like(x)]), 0)
  hashes, due = [], iter(records)
  samples = [(0, ROUNDS * STEPS * inner.batch_size)]
  batches = run.index.batches(samples, inner.batch_size)
  for number, batch in enumerate(batches, start=1):
    state, _ = run.step(state, batch, total + tokens)
    tokens += batch["tokens"].size
    if number % (STEPS // 2):
      continue
    record, x = next(due), layout.flatten(state.params)
    fragment = fragments[record.step.fragment]
    places = [(a * 256, b * 256) for a, b in fragment.runs]
    hashes.append(outer.fragment_hash(places))
    index = np.concatenate([np.arange(a, b) for a, b in places])
    codes = np.empty(fragment.blocks * codec.block_bytes, np.uint8)
    weight, mean = (
      record.step.members[0].weight,
      np.zeros(len(index), np.float32),
    )
    codec.encode(outer.theta[index] - x[index], codes)
    codec.accumulate(mean, codes, weight)
    codec.encode(mean / np.float32(weight), codes)
    outer.apply(record, codes, codec)
    x[index] = outer.theta[index]
    state = TrainState(layout.unflatten(x), state.opt_state)
    state = state._replace(params=run.step.place(state.params))
    if record.step.fragment == 0:
      total, tokens = record.total_tokens, 0
  return hashes, outer.manifest()[1].id


def test_eager_steps_are_the_loop_that_is_written_down(parts, tmp_path):
  """Bit for bit: with halves alone, no product is rounded."""
  halves = dict(learning_rate=0.5, momentum=0.5)
  ways = dict(overlap_steps=OVERLAP, eager=True)
  with Run(parts, tmp_path, codec="float32", **halves, **ways) as run:
    _, summary = run.train("ada")
    status = run.end()
  _, *records = run.records()
  hashes, whole = eagerly(run, records)
  assert len(hashes) == ROUNDS
  assert [record.step.base_state for record in records] == hashes
  assert summary["theta_hash"] == {"ada": whole.hex()}
  assert status.total_tokens == summary["tokens_committed"]
  # As far as it went ahead after the last proposal, and no more.
  assert summary["tokens_lost"] <= OVERLAP * tokens_a_step(run)


def tokens_a_step(run: Run) -> int:
  return run.run.inner.batch_size * run.run.data.sequence_length


def eagerly(run: Run, records: list[pb.Record]) -> tuple[list[bytes], bytes]:
  """The hash of theta and b before each record, and at the end."""
  inner, half = run.run.inner, np.float32(0.5)
  state = run.step.init(jax.random.key(run.run.seed))
  layout = Layout.of(state.params, tensor_names(state.params))
  theta = layout.flatten(state.params)
  b = np.zeros_like(theta)

  def digest() -> bytes:
    outer = OuterState(layout.size)
    outer.replace(np.concatenate([theta, b]), 0)
    return outer.manifest()[1].id

  samples, tokens = [(0, ROUNDS * STEPS * inner.batch_size)], tokens_a_step(run)
  batches = run.index.batches(samples, inner.batch_size)
  hashes, total, own, mean, anchor = [], 0, 0, np.zeros_like(theta), theta
  for number, batch in enumerate(batches, start=1):
    state, _ = run.step(state, batch, total + own)
    own += tokens
    x = layout.flatten(state.params)
    if hashes and number % STEPS == OVERLAP:  # its record is here
      b = half * b + mean
      theta = theta - half * (mean + half * b)
      x = theta + (x - anchor)
      total, own = total + STEPS * tokens, OVERLAP * tokens
    if number % STEPS == 0:
      mean = theta - x
      if hashes:  # not yet in the first round; its part of the mean is all
        x = theta - half * (mean + half * (half * b + mean))
      anchor = x
      hashes.append(digest())
    params = run.step.place(layout.unflatten(x))
    state = TrainState(params, state.opt_state)
  b = half * b + mean
  theta = theta - half * (mean + half * b)
  return hashes, digest()


@pytest.mark.parametrize("rule", [dict(merge_alpha=0.5), dict(eager=True)])
def test_islands_agree_with_two_fragments_in_flight(parts, tmp_path, rule):
  outer = dict(fragments=2, overlap_steps=3, codec="int8") | rule
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
  assert {step.fragment for step in steps} == {0, 1}
  assert any(len(step.members) == 2 for step in steps if step.fragment)
  tokens = sum(w.tokens for s in steps for m in s.members for w in m.windows)
  assert records[-1].final and records[-1].total_tokens == tokens
  assert status.tokens_trained == sum(s["tokens_trained"] for s in summaries)
