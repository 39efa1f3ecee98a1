"""Bytes that a step takes on each device, without a device.

Parameters and moments follow from shapes and shardings. What the forward pass
keeps for the backward pass is traced: the residuals of jax.vjp under the remat
policy. The rest is a formula; the compiler decides what else lives at the peak.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from intellect_jax.inner.loss import chunked_token_losses
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import llama


class DeviceMemory(NamedTuple):
  """Bytes of one device at the peak of a step."""

  parameters: int  # float32, sharded
  moments: int  # of the optimizer, sharded
  gradients: int  # float32, sharded; twice when microbatches are summed
  activations: int  # kept from the forward to the backward pass
  layer: int  # of the one layer that the backward pass computes again
  logits: int  # that exist at once, and their gradient
  gathered: int  # the largest weight that is whole on each device for its use

  @property
  def total(self) -> int:
    return sum(self)


def device_memory(
  run: ConfigDict,
  island: ConfigDict,
  step: TrainStep,
  mesh: Mesh,
) -> DeviceMemory:
  """What `step` takes of one device of `mesh`, on which it was made.

  Activations are not divided among the tensor axis, though part of them will
  be: for tensor > 1 this is an upper bound.
  """
  c = llama.LlamaConfig.of(run.model, island.model)
  length, chunk = run.data.sequence_length, island.inner.loss_chunk
  batch = island.inner.microbatch or run.inner.batch_size
  fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
  sequences = batch // fsdp
  parameters = _on_one_device(step.abstract_state.params)
  layer = 0
  if c.remat != "none":
    one, two = (
      activation_bytes(
        dataclasses.replace(c, remat="none", layers=layers), length, length
      )
      for layers in (1, 2)
    )
    layer = two - one
  logits = 4 * (chunk or length) * c.vocab_size // tensor
  # With a chunk, its logits are computed again; without, they are kept.
  logits_at_once = 2 * logits if chunk else logits
  block = sum(
    math.prod(leaf.shape[1:])
    for leaf in step.abstract_state.params["blocks"].values()
  )
  gathered = 4 * max(block, c.width * c.vocab_size) // tensor
  return DeviceMemory(
    parameters=parameters,
    moments=_on_one_device(step.abstract_state.opt_state),
    gradients=parameters * (2 if island.inner.microbatch else 1),
    activations=sequences * activation_bytes(c, length, chunk),
    layer=sequences * layer,
    logits=sequences * logits_at_once,
    gathered=gathered if fsdp > 1 else 0,
  )


def activation_bytes(c: llama.LlamaConfig, length: int, chunk: int) -> int:
  """Bytes that one sequence's forward pass keeps for the backward pass.

  Traced as jax.vjp keeps them, before the compiler, which rather merges than
  adds. cuDNN's attention cannot be traced without cuDNN: of the plain one,
  whatever grows with the square of the length is replaced by the bias that the
  document mask becomes.
  """
  if c.attention != "cudnn":
    return _residuals(c, 2, length, chunk) - _residuals(c, 1, length, chunk)
  plain = dataclasses.replace(c, attention="xla")
  once = activation_bytes(plain, length, chunk)
  twice = activation_bytes(plain, 2 * length, 2 * chunk)
  square = (twice - 2 * once) // 2
  return once - square + length**2 * jnp.dtype(c.dtype).itemsize


def _residuals(
  c: llama.LlamaConfig, sequences: int, length: int, chunk: int
) -> int:
  """Bytes that a forward pass keeps, parameters among them."""
  ints = jax.ShapeDtypeStruct((sequences, length), jnp.int32)
  floats = jax.ShapeDtypeStruct((sequences, length), jnp.float32)

  def keep(params, tokens, weights):
    def loss(params):
      model = llama.bind(c, params)
      x_BxLxD = model.hidden(tokens, tokens, tokens)
      losses = chunked_token_losses(model.logits, x_BxLxD, tokens, chunk)
      return jnp.sum(losses.nll * weights)

    return jax.vjp(loss, params)[1]

  kept = jax.eval_shape(keep, llama.abstract_params(c), ints, floats)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def _on_one_device(tree: Any) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
