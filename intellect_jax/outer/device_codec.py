"""Encoding on an accelerator, so that only codes cross to the host.

The bytes have the formats of `codec`, whose numba kernels decode them. XLA
rounds where it likes and may take subnormal numbers for 0, so that codes can
differ from a host's where x lies between two; the bound of the error is the
same. That is allowed: what an island encoded is the wire value, and only what
is done with it must have the same bits everywhere.
"""

from collections.abc import Callable, Sequence
import math

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from intellect_jax.outer import kernels
from intellect_jax.outer.codec import Codec, NotFiniteError
from intellect_jax.outer.layout import Layout, Params, Tensor

# float32 [n * 256], all finite, to uint8 [n * block_bytes].
Encoder = Callable[[jax.Array], jax.Array]


def encode_int8(values: jax.Array) -> jax.Array:
  """As `codec.int8` does."""
  scale, r = _scaled(values, kernels.INT8_SHARE)
  return _blocks(scale, _round(r))


def encode_int4(values: jax.Array) -> jax.Array:
  """As `codec.int4` does."""
  scale, r = _scaled(values, kernels.INT4_SHARE)
  return _blocks(scale, _pairs(_round(r)))


def encode_e3m0(values: jax.Array) -> jax.Array:
  """As `codec.e3m0` does."""
  scale, r = _scaled(values, kernels.E3M0_SHARE)
  return _blocks(scale, _pairs(_exponent(r)))


def suspect(values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Index and value of the first NaN or infinity; of any value without one."""
  index = jnp.argmin(jnp.isfinite(values))
  return index, values[index]


def _scaled(values, share):
  """Scales [n, 1], and values / scale [n, 256]."""
  x = values.reshape(-1, kernels.BLOCK)
  absmax = jnp.max(jnp.abs(x), axis=1, keepdims=True)
  scale = share * jnp.minimum(absmax, kernels.LARGEST_ABSMAX)
  scale = jnp.maximum(scale, kernels.SMALLEST_SCALE)
  return jnp.where(absmax > 0, scale, 0), x * (1 / scale)


def _round(r):
  return jnp.rint(r).astype(jnp.int8)


def _exponent(r):
  """As `kernels._exponent`, which says why."""
  bits = lax.bitcast_convert_type(jnp.abs(r), jnp.int32)
  code = jnp.maximum(((bits + 0x00400000) >> 23) - 126, bits >= 0x3F000000)
  return jnp.where(r < 0, -code, code).astype(jnp.int8)


def _pairs(codes):
  low, high = jnp.split(codes, 2, axis=1)
  return (low & 15) | (high << 4)


def _blocks(scale, codes):
  scale = lax.bitcast_convert_type(scale, jnp.uint8)[:, 0]
  codes = lax.bitcast_convert_type(codes, jnp.uint8)
  return jnp.concatenate([scale, codes], axis=1).ravel()


ENCODERS: dict[str, Encoder] = {
  "int8": encode_int8,
  "int4": encode_int4,
  "e3m0": encode_e3m0,
}


def delta_encoder(
  wanted: str, codec: Codec, layout: Layout, mesh: Mesh
) -> "DeltaEncoder | None":
  """One for island.encode_on_device, or None: the host encodes."""
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  if wanted == "no" or (wanted == "auto" and on_cpu):
    return None
  return DeltaEncoder(codec, layout, mesh) if codec.name in ENCODERS else None


class DeltaEncoder:
  """Encodes theta - x on the devices of a mesh that hold both."""

  def __init__(self, codec: Codec, layout: Layout, mesh: Mesh):
    """`codec`: one of ENCODERS."""
    encode = ENCODERS[codec.name]

    def of_tensor(theta, x, layer, padding):
      delta = theta - x if layer is None else theta[layer] - x[layer]
      values = jnp.pad(delta.ravel(), (0, padding))
      return encode(values), *suspect(values)

    self._codec, self._layout = codec, layout
    self._of_tensor = jax.jit(
      of_tensor,
      static_argnames="padding",
      out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

  def encode(
    self,
    theta: Params,
    params: Params,
    out: np.ndarray,
    at: int,
    tensors: Sequence[Tensor] | None = None,
  ) -> None:
    """Writes to `out` what the encoded delta has from byte `at` on.

    It is what `delta.delta` yields, encoded. Of an island that spans processes, all call
    this together, each for its own bytes.

    Args:
      theta: outer parameters at the window's base, on the mesh.
      params: x, the island's parameters, on the mesh.
      out: uint8, whole blocks.
      at: where a block begins.
      tensors: whose delta it is, one after the other; None: all.

    Raises:
      NotFiniteError: naming the index in the vector.
    """
    codec, refused, place = self._codec, None, 0
    for tensor in self._layout.tensors if tensors is None else tensors:
      codes, index, value = self._of_tensor(
        tensor.leaf(theta),
        tensor.leaf(params),
        tensor.layer,
        padding=tensor.stop - tensor.start - tensor.size,
      )
      origin, place = place, place + tensor.stop - tensor.start
      start, stop = (
        floats // codec.block * codec.block_bytes - at
        for floats in (origin, place)
      )
      first, last = max(start, 0), min(stop, len(out))
      if first >= last:
        continue
      out[first:last] = np.asarray(codes.addressable_data(0))[
        first - start : last - start
      ]
      value = float(value.addressable_data(0))
      if refused is None and not math.isfinite(value):
        index = origin + int(index.addressable_data(0))
        refused = NotFiniteError(index, value)
    if refused is not None:  # not before: the others need this process to here
      raise refused
