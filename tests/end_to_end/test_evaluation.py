"""Theta is evaluated beside training, which waits for nothing of it."""

import contextlib
import threading

import jax
import pytest

from intellect_jax import config as config_lib
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.mesh import ElasticDeviceMesh
from intellect_jax.elastic.service import CoordinatorService
from intellect_jax.inner.step import EvalStep, TrainStep
from intellect_jax.model import sharding

ROUNDS, STEPS = 4, 4
BOUND = 120  # seconds, on a machine that is busy with other work


def test_rounds_go_on_while_theta_is_evaluated(tmp_path):
  """An evaluation that ends only when rounds later something is committed."""
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  run = config.run
  run.tokens = ROUNDS * STEPS * run.inner.batch_size * run.data.sequence_length
  run.outer.inner_steps = STEPS
  run.elastic.start_islands = 1
  devices = sharding.make_mesh(devices=jax.devices()[:1])
  step = TrainStep(run, config.island, devices)
  index = GlobalIndex(run.data, tokenizer_of(run))
  held_out = index.held_out(16, run.inner.batch_size)
  evaluation = EvalStep(run, config.island, devices)
  gone_on = threading.Event()

  def evaluate(params):
    assert gone_on.wait(BOUND), "training waits for the evaluation"
    return evaluation.figures(params, held_out)

  told = []
  with contextlib.ExitStack() as stack:
    service = CoordinatorService(run, tmp_path / "coordinator")
    stack.callback(service.close)
    identity = Identity(tmp_path / "ada", "ada")
    stack.callback(identity.close)
    about = evaluate, [service.address], service.description()
    mesh = stack.enter_context(
      ElasticDeviceMesh(
        run, config.island, identity, step, index, *about, alone=True
      )
    )
    state = mesh.state
    first = evaluation(mesh._held.host_theta(), held_out)
    for batch in mesh.batches():
      state, metrics = step(state, batch, mesh.schedule())
      state = mesh.after_step(state, metrics)
      if mesh.record == ROUNDS - 1:
        gone_on.set()
    told += [event for event in mesh.events if event["kind"] == "evaluation"]
    last = evaluation(mesh._held.host_theta(), held_out)
  # Turns in between are left out; the final theta is evaluated for sure.
  assert [event["round"] for event in told] == [0, ROUNDS]
  # It was theta as it stood when the turn came, whatever moved meanwhile.
  losses = [event["eval_loss"] for event in told]
  assert losses == [pytest.approx(first), pytest.approx(last)]
  assert losses[1] < losses[0]
