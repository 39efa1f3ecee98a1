"""The inner step: one update of an island's model, and the evaluation."""

from collections.abc import Iterable
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

from intellect_jax import config as config_lib
from intellect_jax.inner.objective import Batch, Objective
from intellect_jax.inner.optimizer import (
  as_params,
  learning_rate,
  make_optimizer,
)
from intellect_jax.model import llama, lora, sharding
from intellect_jax.outer.schedule import Schedule


class TrainState(NamedTuple):
  params: llama.Params  # float32
  opt_state: Any  # of optax; moments, sharded as the parameters


class TrainStep:
  """One compiled optimizer step on one island's mesh.

  A batch holds int32 tokens, targets, segment_ids and positions and float32
  weights (0: not trained on), each batch_size x sequence_length.

  On an AbstractMesh it can only be traced.

  Attributes:
    mesh: the island's.
    frozen: parameters on the mesh that are needed and not trained: what
      adapters are beside, and what DPO compares with. `freeze` sets them.

  Raises:
    UserError: if batch, microbatch or model do not divide among the mesh.
  """

  def __init__(self, run: ConfigDict, island: ConfigDict, mesh: Mesh):
    inner = run.inner
    self._run = run
    self.mesh = mesh
    self.frozen: llama.Params | None = None
    self._microbatch = island.inner.microbatch or inner.batch_size
    self._pace_seconds = island.inner.paced_step_seconds
    self._objective = Objective(run, island)
    self._c = self._objective.c
    self._optimizer = make_optimizer(inner)
    if island.inner.microbatch:
      sharding.check_batch("island.inner.microbatch", self._microbatch, mesh)
    sharding.check_batch("run.inner.batch_size", inner.batch_size, mesh)

    shardings = sharding.param_shardings(self._c, mesh)
    param_shardings = llama.trained(self._c, shardings)
    params = llama.trained(self._c, llama.abstract_params(self._c))
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
    self.abstract_frozen, self._frozen_shardings = _frozen(
      self._objective, shardings
    )
    self._jitted = jax.jit(
      self._step,
      in_shardings=(
        self.state_shardings,
        self._frozen_shardings,
        self._batch_sharding,
        replicated,
      ),
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
      return self._jitted.trace(
        self.abstract_state, self.abstract_frozen, batch, schedule
      )

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
    """Random parameters and zero moments, on the mesh.

    Of adapters half are random and half zero: the model is what is frozen.
    """
    return self.from_params(llama.init_params(self._c, key, self.mesh))

  def from_params(self, params: llama.Params) -> TrainState:
    """These parameters, placed (see `place`), with zero moments."""
    zero_moments = jax.jit(
      self._optimizer.init, out_shardings=self.state_shardings.opt_state
    )
    params = self.place(params)
    return TrainState(params, zero_moments(params))

  def freeze(self, params: llama.Params) -> None:
    """Takes what stays as it is: host arrays of `abstract_frozen`, whole."""
    self.frozen = jax.block_until_ready(
      jax.tree.map(_placed, params, self._frozen_shardings)
    )

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
      grad_norm (before the clip), learning_rate, max_logit; of DPO loss is
      nats a pair, and there are preference_accuracy, margin, chosen_nll (nats
      a token) and pairs, their number.
    """
    start = time.monotonic()
    batch = self._feed(batch)
    if not isinstance(schedule, Schedule):
      schedule = Schedule(schedule, self._run.tokens)
    where = np.array(schedule, np.float32)
    result = self._compiled(state, self.frozen, batch, where)
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

  def _step(self, state, frozen, batch, schedule):
    inner, where = self._run.inner, Schedule(*schedule)
    grads, metrics = self._gradient(state.params, frozen, batch)
    if config_lib.loss_unit(self._run) == "pair":
      metrics |= dict(pairs=self._objective.count(batch))
    updates, opt_state = self._optimizer.update(
      grads, state.opt_state, state.params
    )
    rate = learning_rate(inner, where.total_tokens, where.position)
    rate *= where.scale
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    metrics |= dict(grad_norm=optax.tree.norm(grads), learning_rate=rate)
    return TrainState(params, opt_state), metrics

  def _gradient(self, params, frozen, batch):
    """Gradient of the mean over a batch, one microbatch at a time."""
    # The count of the whole batch comes first, so that microbatches with
    # different numbers of tokens simply add up.
    count = jnp.maximum(self._objective.count(batch), 1)

    def objective(params, batch):
      sums = self._objective.sums(params, frozen, batch)
      means = jax.tree.map(lambda x: x / count, sums.figures)
      return sums.total / count, (means, sums.max_logit)

    gradient = jax.grad(objective, has_aux=True)
    if self._microbatch == self._run.inner.batch_size:
      grads, (means, max_logit) = gradient(params, batch)
      return grads, dict(means, max_logit=max_logit)

    def accumulate(sums, microbatch):
      grads, (means, max_logit) = gradient(params, microbatch)
      return jax.tree.map(jnp.add, sums, (grads, means)), max_logit

    zeros = jax.lax.with_sharding_constraint(
      jax.tree.map(jnp.zeros_like, params), self.state_shardings.params
    )
    microbatches = jax.tree.map(self._split, batch)
    figures = jax.eval_shape(objective, params, _first(microbatches))[1][0]
    nothing = jax.tree.map(lambda _: jnp.float32(0), figures)
    (grads, means), max_logits = jax.lax.scan(
      accumulate, (zeros, nothing), microbatches
    )
    return grads, dict(means, max_logit=jnp.max(max_logits))

  def _split(self, x_BxL):
    """Microbatches, first axis; each takes an equal part of every device."""
    x_bxMxL = x_BxL.reshape(self._microbatch, -1, x_BxL.shape[-1])
    return jnp.moveaxis(x_bxMxL, 1, 0)


def _placed(x, sharding: NamedSharding) -> jax.Array:
  if isinstance(x, jax.Array):
    return jax.device_put(x, sharding)
  return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)


def _first(tree):
  return jax.tree.map(lambda x: x[0], tree)


def _frozen(objective: Objective, shardings):
  """Shapes and shardings of what is not trained; None and None if nothing."""
  if objective.frozen is None:
    return None, None
  shardings = lora.base(shardings)
  shapes = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    objective.frozen,
    shardings,
  )
  return shapes, shardings


class EvalStep:
  """Mean loss of held-out batches: the negative log-likelihood, or DPO's.

  May be called from any thread.
  """

  def __init__(
    self,
    run: ConfigDict,
    island: ConfigDict,
    mesh: Mesh,
    frozen: llama.Params | None = None,
  ):
    """`frozen`: parameters as a TrainStep's, on the host or on this mesh."""
    self._objective = Objective(run, island)
    self._mesh = mesh
    c = self._objective.c
    shardings = sharding.param_shardings(c, mesh)
    self._param_shardings = llama.trained(c, shardings)
    self._batch_sharding = sharding.batch_sharding(mesh)
    _, frozen_shardings = _frozen(self._objective, shardings)
    self._frozen = frozen and jax.device_put(frozen, frozen_shardings)
    self._jitted = jax.jit(
      self._sums,
      in_shardings=(
        self._param_shardings,
        frozen_shardings,
        self._batch_sharding,
      ),
      out_shardings=NamedSharding(mesh, P()),
    )

  def __call__(self, params: llama.Params, batches: Iterable[Batch]) -> float:
    """Nats a token, or a pair, over all batches; see `figures`."""
    return self.figures(params, batches)["loss"]

  def figures(
    self, params: llama.Params, batches: Iterable[Batch]
  ) -> dict[str, float]:
    """Means over all batches: "loss", and of DPO what a step tells besides.

    One batch at a time is on its way to the devices, so that the inner steps of
    another thread wait for one at most.

    Args:
      params: anywhere.
      batches: each divides among the mesh.

    Raises:
      UserError: if one does not.
    """
    params = jax.device_put(params, self._param_shardings)
    parts = []
    with jax.set_mesh(self._mesh):
      for batch in batches:
        sharding.check_batch(
          "A batch of evaluation", len(batch["tokens"]), self._mesh
        )
        batch = jax.device_put(dict(batch), self._batch_sharding)
        parts.append(jax.device_get(self._jitted(params, self._frozen, batch)))
    figures, counts = zip(*parts, strict=True)
    count = np.sum(counts, dtype=np.float64)
    return {
      name: float(np.sum([f[name] for f in figures], dtype=np.float64) / count)
      for name in figures[0]
    }

  def _sums(self, params, frozen, batch):
    sums = self._objective.sums(params, frozen, batch)
    return sums.figures, self._objective.count(batch)
