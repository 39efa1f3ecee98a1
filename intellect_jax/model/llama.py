"""The Llama (arXiv 2302.13971, 2407.21783): a decoder of RMSNorm, RoPE,
grouped-query attention and SwiGLU.

Dimensions: B batch, L length, D width, H heads, K kv_heads, C head_dim,
F ffn, V vocab_size, N layers, R lora_rank.

The module is flax nnx, but nnx stays in this file: everyone else sees `Params`,
a plain nested dict of float32 arrays. Blocks are stacked: each leaf under
"blocks" has a leading layers axis, however the layers are run. With lora_rank
the blocks' matrices have adapters beside them (lora.py).
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import chex
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from intellect_jax.model import lora
from intellect_jax.model.attention import (
  attend,
  document_mask,
  rotary_angles,
  rotate,
)
from intellect_jax.model.product import matmul_float32
from intellect_jax.model.sharding import constrain, param_shardings

Params = dict[str, Any]
# Queries BxLxHxC and the new keys and values BxLxKxC to BxLxHxC.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Fields as in configs/base.py: those of run.model, then island.model."""

  layers: int
  width: int
  heads: int
  kv_heads: int
  head_dim: int
  ffn: int
  vocab_size: int
  rope_theta: float
  norm_epsilon: float
  tied_embeddings: bool
  dtype: str
  scan_layers: bool
  remat: str
  attention: str
  lora_rank: int = 0
  lora_alpha: float = 16.0

  @classmethod
  def of(cls, run_model: ConfigDict, island_model: ConfigDict) -> LlamaConfig:
    return cls(**run_model.to_dict(), **island_model.to_dict())

  def parameter_axes(self) -> dict[str, Any]:
    """A tree like the parameters, of PartitionSpecs of logical axes."""
    return nnx.to_pure_dict(nnx.get_partition_spec(_abstract(self)[1]))


def _parameter(
  c: LlamaConfig, rngs: nnx.Rngs, axes: str, std: float | None
) -> nnx.Param:
  """One declaration: logical axes (fields of c) give shape and sharding.

  Normal with `std`, or ones where `std` is None.
  """
  names = tuple(axes.split())
  shape = tuple(getattr(c, name) for name in names)
  if std is None:
    value = jnp.ones(shape, jnp.float32)
  else:
    value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
  return nnx.Param(value, out_sharding=names, eager_sharding=False)


class Block(nnx.Module):
  """All N blocks when built; one of them when called (see `Llama.hidden`)."""

  def __init__(self, c: LlamaConfig, rngs: nnx.Rngs):
    # Standard deviations are fan_in^-1/2, and (2N)^-1/2 less for what adds to
    # the residual stream (GPT-2).
    self.c = c
    param = functools.partial(_parameter, c, rngs)
    into = c.width**-0.5
    back = (2 * c.layers) ** -0.5
    self.attention_norm = param("layers width", None)
    self.query = param("layers width heads head_dim", into)
    self.key = param("layers width kv_heads head_dim", into)
    self.value = param("layers width kv_heads head_dim", into)
    self.output = param(
      "layers heads head_dim width", back * (c.heads * c.head_dim) ** -0.5
    )
    self.mlp_norm = param("layers width", None)
    self.gate = param("layers width ffn", into)
    self.up = param("layers width ffn", into)
    self.down = param("layers ffn width", back * c.ffn**-0.5)
    if c.lora_rank:
      self._add_adapters(param)

  def _add_adapters(self, param):
    """A random and B zero: at first they add nothing."""
    matrices = {
      "query": ("width", "heads head_dim"),
      "key": ("width", "kv_heads head_dim"),
      "value": ("width", "kv_heads head_dim"),
      "output": ("heads head_dim", "width"),
      "gate": ("width", "ffn"),
      "up": ("width", "ffn"),
      "down": ("ffn", "width"),
    }
    for name, (inner, outer) in matrices.items():
      size = math.prod(getattr(self.c, axis) for axis in inner.split())
      a = param(f"layers {inner} lora_rank", size**-0.5)
      setattr(self, name + lora.A, a)
      setattr(self, name + lora.B, param(f"layers lora_rank {outer}", 0.0))

  def __call__(self, x_BxLxD, angles, attend: Attend):
    x_BxLxD += self.attention(
      rms_norm(x_BxLxD, self.attention_norm, self.c.norm_epsilon),
      angles,
      attend,
    )
    x_BxLxD += self.mlp(rms_norm(x_BxLxD, self.mlp_norm, self.c.norm_epsilon))
    return x_BxLxD

  def attention(self, x_BxLxD, angles, attend: Attend):
    q_BxLxHxC = rotate(self.project(x_BxLxD, "query"), angles)
    k_BxLxKxC = rotate(self.project(x_BxLxD, "key"), angles)
    v_BxLxKxC = self.project(x_BxLxD, "value")
    out_BxLxHxC = attend(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC)
    return self.project(out_BxLxHxC, "output")

  def mlp(self, x_BxLxD):
    """SwiGLU (arXiv 2002.05202)."""
    gate_BxLxF = jax.nn.silu(self.project(x_BxLxD, "gate"))
    up_BxLxF = self.project(x_BxLxD, "up")
    return self.project(gate_BxLxF * up_BxLxF, "down")

  def project(self, x_BxLxI, name: str) -> jax.Array:
    """x times the matrix of that name, and what its adapter adds."""
    out_BxLxO = _product(x_BxLxI, getattr(self, name))
    if self.c.lora_rank:
      low_BxLxR = _product(x_BxLxI, getattr(self, name + lora.A))
      added_BxLxO = _product(low_BxLxR, getattr(self, name + lora.B))
      out_BxLxO += self.c.lora_alpha / self.c.lora_rank * added_BxLxO
    return out_BxLxO


class Llama(nnx.Module):
  """Tokens in, logits out; `hidden` and `unembed` are its two halves."""

  def __init__(self, c: LlamaConfig, rngs: nnx.Rngs):
    self.c = c
    param = functools.partial(_parameter, c, rngs)
    self.embed = param(
      "vocab_size width", c.width**-0.5 if c.tied_embeddings else 1.0
    )
    self.blocks = Block(c, rngs)
    self.final_norm = param("width", None)
    if not c.tied_embeddings:
      self.unembed = param("width vocab_size", c.width**-0.5)

  def __call__(self, tokens_BxL, positions_BxL, segment_ids_BxL) -> jax.Array:
    """Logits, BxLxV float32, of the token after each."""
    return self.logits(self.hidden(tokens_BxL, positions_BxL, segment_ids_BxL))

  def hidden(self, tokens_BxL, positions_BxL, segment_ids_BxL) -> jax.Array:
    """The normed last residual stream, BxLxD in the compute dtype.

    Args (all int32): tokens; positions within the document, for RoPE; segment
      ids, equal within a document, 0 for padding.
    """
    chex.assert_equal_shape([tokens_BxL, segment_ids_BxL])
    mask_BxLxL = document_mask(segment_ids_BxL)
    return self.hidden_under(mask_BxLxL, tokens_BxL, positions_BxL)

  def hidden_under(self, mask_BxLxL, tokens_BxL, positions_BxL) -> jax.Array:
    """`hidden` under any mask: true where query l may look at key m."""
    chex.assert_equal_shape([tokens_BxL, positions_BxL])
    c = self.c
    angles = rotary_angles(positions_BxL, c.head_dim, c.rope_theta)
    x_BxLxD = self.embed[...][tokens_BxL].astype(c.dtype)

    def attend_here(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC):
      return attend(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, mask_BxLxL, c.attention)

    def run(x_BxLxD, block: Block):
      # Sequences stay split over fsdp and weights are gathered; left alone,
      # the partitioner may follow the weights and split the width instead.
      x_BxLxD = constrain(x_BxLxD, "batch", None, None)
      return block(x_BxLxD, angles, attend_here), None

    x_BxLxD, _ = jax.lax.scan(
      _remat(run, c),
      x_BxLxD,
      self.blocks,
      unroll=1 if c.scan_layers else c.layers,
    )
    return rms_norm(x_BxLxD, self.final_norm, c.norm_epsilon)

  def logits(self, x_BxLxD) -> jax.Array:
    tied = self.c.tied_embeddings
    weight_DxV = self.embed[...].T if tied else self.unembed[...]
    return _product(x_BxLxD, weight_DxV, matmul_float32)


def rms_norm(x_BxLxD: jax.Array, scale_D, epsilon: float) -> jax.Array:
  """RMSNorm (arXiv 1910.07467) in float32, returned in the dtype of x."""
  x = x_BxLxD.astype(jnp.float32)
  x *= jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
  return (x * scale_D[...]).astype(x_BxLxD.dtype)


def _product(x_BxLxI, weight_IxO, matmul=jnp.matmul) -> jax.Array:
  """Contracts all axes of x after B and L with the first axes of the weight.

  In x's dtype. As a product of two matrices: of an einsum over B and L, XLA's
  gradient for the weight is a transposed product, 2 to 4 times as slow on CPUs.
  """
  B, L, *inner = x_BxLxI.shape
  outer = weight_IxO.shape[len(inner) :]
  size = math.prod(inner)
  out_BLxO = matmul(
    x_BxLxI.reshape(B * L, size),
    weight_IxO[...].reshape(size, -1).astype(x_BxLxI.dtype),
  )
  return out_BLxO.reshape(B, L, *outer)


def _remat(body, c: LlamaConfig):
  """What the backward pass recomputes: nothing, all but products, or all."""
  if c.remat == "none":
    return body
  policies = jax.checkpoint_policies
  policy = {
    "dots": policies.dots_with_no_batch_dims_saveable,
    "full": policies.nothing_saveable,
  }[c.remat]
  # A loop already keeps XLA from merging the recomputation with the original.
  return jax.checkpoint(body, policy=policy, prevent_cse=not c.scan_layers)


@functools.cache
def _abstract(c: LlamaConfig):
  """Graph definition and state of shapes; no array is made."""
  model = nnx.eval_shape(lambda: Llama(c, nnx.Rngs(0)))
  return nnx.split(model, nnx.Param)


def abstract_params(c: LlamaConfig) -> Params:
  """The parameters as jax.ShapeDtypeStruct."""
  return nnx.to_pure_dict(_abstract(c)[1])


def trained(c: LlamaConfig, params: Params) -> Params:
  """Of a tree like the parameters: all of it, or the adapters if there are."""
  return lora.adapters(params) if c.lora_rank else params


def init_params(c: LlamaConfig, key: jax.Array, mesh: Mesh) -> Params:
  """Random parameters, sharded from birth: no device ever holds them all.

  Those that are trained; adapters have none of the others beside them.
  """

  def init(key):
    model = Llama(c, nnx.Rngs(key))
    return trained(c, nnx.to_pure_dict(nnx.state(model, nnx.Param)))

  # It runs once: compiling the random generator, once for each leaf, with all
  # optimizations takes three times as long and wins nothing.
  return jax.jit(
    init,
    out_shardings=trained(c, param_shardings(c, mesh)),
    compiler_options={"xla_backend_optimization_level": 1},
  )(key)


def apply(
  c: LlamaConfig,
  params: Params,
  tokens_BxL: jax.Array,
  positions_BxL: jax.Array,
  segment_ids_BxL: jax.Array,
) -> jax.Array:
  """Logits BxLxV; arguments as for `Llama.hidden`."""
  return bind(c, params)(tokens_BxL, positions_BxL, segment_ids_BxL)


def bind(c: LlamaConfig, params: Params) -> Llama:
  """The module with these parameters, for its two halves one by one."""
  return nnx.merge(_abstract(c)[0], nnx.State(params))


def parameter_count(c: LlamaConfig) -> int:
  return sum(math.prod(a.shape) for a in jax.tree.leaves(abstract_params(c)))
