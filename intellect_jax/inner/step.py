"""The inner step: one update of an island's model, and the evaluation."""

from collections.abc import Iterable, Mapping
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np
import optax

from intellect_jax.inner.loss import LossSums, chunked_loss_sums
from intellect_jax.inner.optimizer import (
  as_params,
  learning_rate,
  make_optimizer,
)
from intellect_jax.model import llama, sharding
from intellect_jax.outer.schedule import Schedule

Batch = Mapping[str, Any]  # of BxL arrays, see TrainStep


class TrainState(NamedTuple):
  params: llama.Params  # float32
  opt_state: Any  # of optax; moments, sharded as the parameters


class TrainStep:
  """One compiled optimizer step on one island's mesh.

  A batch holds int32 tokens, targets, segment_ids and positions and float32
  weights (0: not trained on), each batch_size x sequence_length.

  On an AbstractMesh it can only be traced.

  Raises:
    UserError: if batch, microbatch or model do not divide among the mesh.
  """

  def __init__(self, run: ConfigDict, island: ConfigDict, mesh: Mesh):
    inner = run.inner
    self._run = run
    self.mesh = mesh
    self._microbatch = island.inner.microbatch or inner.batch_size
    self._loss_chunk = island.inner.loss_chunk
    self._pace_seconds = island.inner.paced_step_seconds
    self._c = llama.LlamaConfig.of(run.model, island.model)
    self._optimizer = make_optimizer(inner)
    if island.inner.microbatch:
      sharding.check_batch("island.inner.microbatch", self._microbatch, mesh)
    sharding.check_batch("run.inner.batch_size", inner.batch_size, mesh)

    param_shardings = sharding.param_shardings(self._c, mesh)
    params = llama.abstract_params(self._c)
    opt_state = jax.eval_shape(self._optimizer.init, params)
    replicated = NamedSharding(mesh, P())
    self.state_shardings = TrainState(
      param_shardings,
      # Without this, moments made under jit would be whole on each device.
      as_params(opt_state, param_shardings, otherwise=replicated),
    )
    self.abstract_state = jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      TrainState(params, opt_state),
      self.state_shardings,
    )
    self._batch_sharding = sharding.batch_sharding(mesh)
    self._jitted = jax.jit(
      self._step,
      in_shardings=(self.state_shardings, self._batch_sharding, replicated),
      out_shardings=(self.state_shardings, replicated),
      donate_argnums=0,
    )
    self._copy = jax.jit(
      lambda params: jax.tree.map(jnp.copy, params),
      out_shardings=param_shardings,
    )

  def trace(self) -> jax.stages.Traced:
    """The step on shapes alone, to be lowered for any platform."""
    shape = (self._run.inner.batch_size, self._run.data.sequence_length)
    batch = {
      name: jax.ShapeDtypeStruct(shape, jnp.int32)
      for name in ("tokens", "targets", "segment_ids", "positions")
    }
    batch["weights"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    schedule = jax.ShapeDtypeStruct((len(Schedule._fields),), jnp.float32)
    with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
      return self._jitted.trace(self.abstract_state, batch, schedule)

  @functools.cached_property
  def _compiled(self) -> jax.stages.Compiled:
    with jax.set_mesh(self.mesh):
      return self.trace().lower().compile()

  def compile(self) -> dict[str, int]:
    """Compiles ahead of the loop; returns the memory plan of a device.

    Bytes of "arguments", "outputs", "aliased" (outputs in the place of donated
    arguments) and "temporaries"; nothing where the backend does not say.
    """
    memory = self._compiled.memory_analysis()
    if memory is None:
      return {}
    return dict(
      arguments=memory.argument_size_in_bytes,
      outputs=memory.output_size_in_bytes,
      aliased=memory.alias_size_in_bytes,
      temporaries=memory.temp_size_in_bytes,
    )

  def init(self, key: jax.Array) -> TrainState:
    """Random parameters and zero moments, on the mesh."""
    return self.from_params(llama.init_params(self._c, key, self.mesh))

  def from_params(self, params: llama.Params) -> TrainState:
    """These parameters, placed (see `place`), with zero moments."""
    zero_moments = jax.jit(
      self._optimizer.init, out_shardings=self.state_shardings.opt_state
    )
    params = self.place(params)
    return TrainState(params, zero_moments(params))

  @functools.cached_property
  def rows(self) -> tuple[int, int]:
    """[first, last) of a batch: what this process feeds to its devices."""
    return sharding.local_rows(self.mesh, self._run.inner.batch_size)

  def place(self, params: llama.Params) -> llama.Params:
    """A copy of `params` (numpy or jax) on the mesh, complete on return.

    Each process of an island passes the same, whole. On CPUs JAX shares the
    memory of numpy arrays, whatever `may_alias` says; who then changes them in
    place would change the model too.
    """
    params = jax.tree.map(_placed, params, self.state_shardings.params)
    return jax.block_until_ready(self._copy(params))

  def __call__(
    self, state: TrainState, batch: Batch, schedule: Schedule | float
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update. `state` is donated: its arrays are gone afterwards.

    Args:
      state: from `init`, `from_params` or the last call.
      batch: arrays of the host; of an island of several processes, `rows`.
      schedule: where the run stands; or its position alone, in tokens of the
        swarm, in a run that ends at run.tokens.

    Returns:
      The next state, and scalars on the device: loss (mean nats a token),
      grad_norm (before the clip), learning_rate, max_logit.
    """
    start = time.monotonic()
    batch = self._feed(batch)
    if not isinstance(schedule, Schedule):
      schedule = Schedule(schedule, self._run.tokens)
    result = self._compiled(state, batch, np.array(schedule, np.float32))
    if self._pace_seconds:
      jax.block_until_ready(result)
      time.sleep(max(0.0, start + self._pace_seconds - time.monotonic()))
    return result

  def _feed(self, batch: Batch) -> Batch:
    """A batch on the mesh, of which each process has its rows."""
    if self._batch_sharding.is_fully_addressable:  # in half of the time
      return jax.device_put(dict(batch), self._batch_sharding)
    size = self._run.inner.batch_size
    return {
      name: jax.make_array_from_process_local_data(
        self._batch_sharding, x_BxL, (size, *x_BxL.shape[1:])
      )
      for name, x_BxL in batch.items()
    }

  def _step(self, state, batch, schedule):
    inner, where = self._run.inner, Schedule(*schedule)
    grads, metrics = self._gradient(state.params, batch)
    updates, opt_state = self._optimizer.update(
      grads, state.opt_state, state.params
    )
    rate = learning_rate(inner, where.total_tokens, where.position)
    rate *= where.scale
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    metrics |= dict(grad_norm=optax.tree.norm(grads), learning_rate=rate)
    return TrainState(params, opt_state), metrics

  def _gradient(self, params, batch):
    """Gradient of the mean over all tokens, one microbatch at a time."""
    # The count of the whole batch comes first, so that microbatches with
    # different numbers of tokens simply add up.
    count = jnp.maximum(jnp.sum(batch["weights"]), 1)
    max_z_loss = self._run.inner.max_z_loss

    def objective(params, batch):
      sums = _loss_sums(self._c, params, batch, self._loss_chunk)
      total = sums.nll
      if max_z_loss:  # XLA would not leave out the gradient of 0 * max
        total += max_z_loss * sums.z
      return total / count, (sums.nll / count, sums.max_logit)

    gradient = jax.grad(objective, has_aux=True)
    if self._microbatch == self._run.inner.batch_size:
      grads, (loss, max_logit) = gradient(params, batch)
      return grads, dict(loss=loss, max_logit=max_logit)

    def accumulate(sums, microbatch):
      grads, (loss, max_logit) = gradient(params, microbatch)
      return jax.tree.map(jnp.add, sums, (grads, loss)), max_logit

    zeros = jax.lax.with_sharding_constraint(
      jax.tree.map(jnp.zeros_like, params), self.state_shardings.params
    )
    (grads, loss), max_logits = jax.lax.scan(
      accumulate, (zeros, jnp.float32(0)), jax.tree.map(self._split, batch)
    )
    return grads, dict(loss=loss, max_logit=jnp.max(max_logits))

  def _split(self, x_BxL):
    """Microbatches, first axis; each takes an equal part of every device."""
    x_bxMxL = x_BxL.reshape(self._microbatch, -1, x_BxL.shape[-1])
    return jnp.moveaxis(x_bxMxL, 1, 0)


def _placed(x, sharding: NamedSharding) -> jax.Array:
  if isinstance(x, jax.Array):
    return jax.device_put(x, sharding)
  return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)


class EvalStep:
  """Mean negative log-likelihood of held-out batches."""

  def __init__(self, run: ConfigDict, island: ConfigDict, mesh: Mesh):
    self._c = llama.LlamaConfig.of(run.model, island.model)
    self._loss_chunk = island.inner.loss_chunk
    self._mesh = mesh
    self._param_shardings = sharding.param_shardings(self._c, mesh)
    self._batch_sharding = sharding.batch_sharding(mesh)
    self._jitted = jax.jit(
      self._sums,
      in_shardings=(self._param_shardings, self._batch_sharding),
      out_shardings=NamedSharding(mesh, P()),
    )

  def __call__(self, params: llama.Params, batches: Iterable[Batch]) -> float:
    """Nats a token over all batches; `params` on the host or the mesh.

    Raises:
      UserError: if a batch does not divide among the mesh.
    """
    params = jax.device_put(params, self._param_shardings)
    sums = []
    with jax.set_mesh(self._mesh):
      for batch in batches:
        sharding.check_batch(
          "A batch of evaluation", len(batch["tokens"]), self._mesh
        )
        batch = jax.device_put(dict(batch), self._batch_sharding)
        sums.append(self._jitted(params, batch))
    nll, count = np.array(jax.device_get(sums), np.float64).sum(axis=0)
    return float(nll / count)

  def _sums(self, params, batch):
    sums = _loss_sums(self._c, params, batch, self._loss_chunk)
    return sums.nll, jnp.sum(batch["weights"])


def _loss_sums(
  c: llama.LlamaConfig, params: llama.Params, batch: Batch, chunk: int
) -> LossSums:
  model = llama.bind(c, params)
  x_BxLxD = model.hidden(
    batch["tokens"], batch["positions"], batch["segment_ids"]
  )
  return chunked_loss_sums(
    model.logits, x_BxLxD, batch["targets"], batch["weights"], chunk
  )
