"""One AdamW step, on any mesh, in any number of microbatches."""

import time

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax import config
from intellect_jax.errors import UserError
from intellect_jax.inner.step import EvalStep, TrainStep
from intellect_jax.model import sharding
from intellect_jax.outer.schedule import Schedule

POSITION = 2048.0  # tokens; past the warm-up
COMPILED = "/jax/core/compile/backend_compile_duration"  # an event of JAX
MESHES = [(1, 1), (4, 1), (2, 2)]


def tiny(batch_size=8, **island_inner):
  tiny = config.load(config.base_path().parent / "tiny.py")
  tiny.run.inner.update(batch_size=batch_size, max_z_loss=1e-3)
  tiny.run.data.sequence_length = 32
  tiny.island.inner.update(island_inner)
  return tiny


def mesh_of(fsdp, tensor):
  return sharding.make_mesh(fsdp, tensor, jax.devices()[: fsdp * tensor])


def make_step(fsdp=1, tensor=1, **settings):
  c = tiny(**settings)
  return TrainStep(c.run, c.island, mesh_of(fsdp, tensor))


def some_batch():
  """Packed documents of several lengths; weights differ among sequences."""
  rng = np.random.default_rng(0)
  shape = (8, 32)
  start = rng.random(shape) < 0.1
  start[:, 0] = True
  index = np.broadcast_to(np.arange(32), shape)
  first = np.maximum.accumulate(np.where(start, index, 0), axis=1)
  weights = rng.random(shape) < np.linspace(0.1, 1, 8)[:, None]
  return dict(
    tokens=rng.integers(0, 512, shape, np.int32),
    targets=rng.integers(0, 512, shape, np.int32),
    segment_ids=np.cumsum(start, axis=1, dtype=np.int32),
    positions=(index - first).astype(np.int32),
    weights=weights.astype(np.float32),
  )


def train(step, steps):
  state = step.init(jax.random.key(0))
  losses = []
  for _ in range(steps):
    state, metrics = step(state, some_batch(), POSITION)
    losses.append(float(metrics["loss"]))
  return state, losses


@pytest.fixture(scope="module")
def whole():
  """The step that others are compared with: one device, one batch."""
  return make_step()


def test_a_joiner_takes_smaller_steps(whole):
  """Half the scale is half the way."""

  def way(schedule):
    before = whole.init(jax.random.key(0))
    first = jax.device_get(before.params)
    after, metrics = whole(before, some_batch(), schedule)
    moved = jax.tree.map(np.subtract, jax.device_get(after.params), first)
    return moved, float(metrics["learning_rate"])

  tokens = float(tiny().run.tokens)
  full, rate = way(Schedule(POSITION, tokens))
  half, half_rate = way(Schedule(POSITION, tokens, 0.5))
  assert half_rate == rate / 2
  chex.assert_trees_all_close(
    jax.tree.map(lambda x: 2 * x, half), full, atol=1e-6
  )
  assert way(POSITION)[1] == rate


@pytest.fixture(scope="module")
def reference(whole):
  return train(whole, steps=4)


@pytest.mark.parametrize("fsdp, tensor", MESHES[1:])
def test_every_mesh_trains_the_same(reference, fsdp, tensor):
  step = make_step(fsdp, tensor)
  state, losses = train(step, steps=4)
  np.testing.assert_allclose(losses, reference[1], rtol=1e-5)

  adam = state.opt_state[1]
  places = jax.tree.map(lambda a: a.sharding, state.params)
  for moment in (adam.mu, adam.nu):
    assert jax.tree.map(lambda a: a.sharding, moment) == places
  assert jax.tree.map(lambda a: a.sharding, state) == step.state_shardings
  assert not state.params["unembed"].sharding.is_fully_replicated


def test_the_loss_falls(reference):
  losses = reference[1]
  assert losses == sorted(losses, reverse=True)
  assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("fsdp, loss_chunk", [(1, 0), (4, 8)])
def test_microbatches_and_chunks_equal_the_whole(whole, fsdp, loss_chunk):
  """Though they differ in tokens, 10 % to 100 %, and with z-loss, once."""
  parts = make_step(fsdp, 1, microbatch=4, loss_chunk=loss_chunk)
  state, metrics = parts(parts.init(jax.random.key(0)), some_batch(), POSITION)
  expected, expected_metrics = whole(
    whole.init(jax.random.key(0)), some_batch(), POSITION
  )
  chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5)
  # The first moment is the gradient, scaled; Adam's update hides its size.
  moment, expected_moment = state.opt_state[1].mu, expected.opt_state[1].mu
  chex.assert_trees_all_close(moment, expected_moment, rtol=1e-3, atol=1e-7)


def equations(jaxpr):
  """All equations of a program and of the programs inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def test_products_are_bfloat16_and_everything_else_that_counts_float32():
  c = tiny(microbatch=4, loss_chunk=8)
  c.run.model.dtype = "bfloat16"
  step = TrainStep(c.run, c.island, mesh_of(1, 1))
  traced = step.trace()
  state, metrics = traced.out_info
  for leaf in jax.tree.leaves((state, metrics)):
    assert leaf.dtype in (jnp.float32, jnp.int32)

  kinds = {"dot_general": set(), "exp": set(), "rsqrt": set(), "sqrt": set()}
  for equation in equations(traced.jaxpr.jaxpr):
    seen = kinds.get(equation.primitive.name)
    if seen is not None:
      seen.update(str(x.aval.dtype) for x in equation.invars)
  assert kinds == {
    "dot_general": {"bfloat16"},  # forward and backward
    "exp": {"float32"},  # both softmaxes
    "rsqrt": {"float32"},  # norms
    "sqrt": {"float32"},  # Adam, gradient norm
  }
  sums = [e for e in equations(traced.jaxpr.jaxpr) if accumulates(e, state)]
  assert len(sums) == 1  # one loop carries gradients, in float32


def accumulates(equation, state):
  """True for a loop that carries a whole gradient in float32."""
  if equation.primitive.name != "scan":
    return False
  first = equation.params["num_consts"]
  carries = equation.invars[first : first + equation.params["num_carry"]]
  shapes = [a.shape for a in jax.tree.leaves(state.params)]
  floats = [x.aval.shape for x in carries if x.aval.dtype == jnp.float32]
  return all(shape in floats for shape in shapes)


def test_the_step_is_lowered_for_gpus():
  """The 10B's, sharded, on shapes alone; cuDNN would need its library."""
  c = config.load(config.base_path().parent / "intellect_1_10b.py")
  c.island.model.attention = "xla"
  step = TrainStep(c.run, c.island, mesh_of(4, 1))
  text = step.trace().lower(lowering_platforms=("cuda",)).as_text()
  assert "42x4096x14336xf32" in text  # all layers' matrices, in one loop
  assert "dot_general" in text and "bf16" in text


def test_the_step_compiles_once(whole):
  compiled = []
  listen = lambda event, *_, **__: compiled.append(event)  # noqa: E731
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    state, _ = train(whole, steps=1)
    jax.jit(lambda x: x + 1)(1)
    assert COMPILED in compiled  # so the listener hears what it should
    compiled.clear()
    for position in (0, 1.5, np.float64(1e12)):
      state, _ = whole(state, some_batch(), position)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert COMPILED not in compiled


def test_the_state_is_donated(whole):
  before = whole.init(jax.random.key(0))
  after, _ = whole(before, some_batch(), POSITION)
  assert all(a.is_deleted() for a in jax.tree.leaves(before))
  size = sum(a.nbytes for a in jax.tree.leaves(after))
  assert whole.compile()["aliased"] >= size


def test_the_state_shares_no_memory_with_its_origin(whole):
  """Neither donation nor the caller's next write may reach the other."""
  host = jax.tree.map(np.array, whole.init(jax.random.key(0)).params)
  device = jax.device_put(host)
  state = whole.from_params(host)
  jax.tree.map(lambda a: a.fill(np.nan), host)
  chex.assert_tree_all_finite(state)
  whole(whole.from_params(device), some_batch(), POSITION)
  assert not any(a.is_deleted() for a in jax.tree.leaves(device))


def test_golden_metrics_of_one_step(whole):
  _, metrics = whole(whole.init(jax.random.key(0)), some_batch(), POSITION)
  golden = dict(
    loss=6.611950,
    grad_norm=0.928300,
    learning_rate=0.01,
    max_logit=4.427391,
  )
  seen = {name: float(value) for name, value in metrics.items()}
  assert seen == pytest.approx(golden, rel=1e-4), (
    "The first step changed. If it should have (initial values, loss,"
    f" optimizer), say why in the commit and write here: {seen}"
  )


@pytest.mark.parametrize(
  "settings, name",
  [
    (dict(batch_size=6), "run.inner.batch_size is 6"),
    (dict(microbatch=2), "island.inner.microbatch is 2"),
  ],
)
def test_a_batch_that_does_not_divide_is_refused(settings, name):
  with pytest.raises(UserError, match=name):
    make_step(4, 1, **settings)


def test_a_paced_step_takes_its_time():
  step = make_step(paced_step_seconds=0.2)
  step.compile()
  state = step.init(jax.random.key(0))
  start = time.monotonic()
  step(state, some_batch(), POSITION)
  assert time.monotonic() - start >= 0.2


@pytest.mark.parametrize("fsdp, tensor", MESHES)
def test_evaluation_is_the_mean_over_tokens(whole, fsdp, tensor):
  """Of all tokens: not the mean of the means of batches."""
  batch = some_batch()
  c = tiny()
  state = whole.init(jax.random.key(0))
  params = jax.tree.map(np.array, state.params)
  _, metrics = whole(state, batch, POSITION)

  evaluate = EvalStep(c.run, c.island, mesh_of(fsdp, tensor))
  halves = [{k: v[part] for k, v in batch.items()} for part in np.s_[:4, 4:]]
  for batches in ([batch], halves):
    nll = evaluate(params, batches)
    assert nll == pytest.approx(float(metrics["loss"]), rel=1e-5)


def test_evaluation_names_a_batch_that_does_not_divide():
  c = tiny()
  evaluate = EvalStep(c.run, c.island, mesh_of(4, 1))
  batch = {name: x[:3] for name, x in some_batch().items()}
  params = make_step().init(jax.random.key(0)).params
  with pytest.raises(UserError, match="evaluation is 3 sequences"):
    evaluate(params, [batch])
