"""Keys and values of tokens already read, so that each is computed once.

Dimensions as in llama.py; S slots, each a text of its own, M tokens of room in
a slot, R rows of a call.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from intellect_jax.model import llama, sharding
from intellect_jax.model.attention import attend_heads, rotary_angles

_AXES = (None, "batch", "kv_heads", None, None)


class Cache(NamedTuple):
  """Of all layers; token m of a text is at place m of its slot."""

  keys_NxSxKxMxC: jax.Array  # rotated, in the compute dtype
  values_NxSxKxMxC: jax.Array

  @property
  def room(self) -> int:
    return self.keys_NxSxKxMxC.shape[3]


def empty(c: llama.LlamaConfig, slots: int, room: int, mesh: Mesh) -> Cache:
  """A cache of zeros; slots over fsdp, heads over tensor."""
  shape = (c.layers, slots, c.kv_heads, room, c.head_dim)
  where = NamedSharding(mesh, sharding.spec(*_AXES))
  return Cache(*(jnp.zeros(shape, c.dtype, device=where) for _ in range(2)))


def grown(cache: Cache, room: int) -> Cache:
  """The same with more room."""
  more = [(0, 0)] * 3 + [(0, room - cache.room), (0, 0)]
  return Cache(*(jnp.pad(x, more) for x in cache))


def copied(cache: Cache, source: jax.Array, slot: jax.Array) -> Cache:
  """The same with one slot's content in another, too."""
  return Cache(*(x.at[:, slot].set(x[:, source]) for x in cache))


def extend(
  c: llama.LlamaConfig,
  params: llama.Params,
  cache: Cache,
  slots_R: jax.Array | None,
  tokens_RxL: jax.Array,
  starts_R: jax.Array,
  lengths_R: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Reads tokens after those that the slots hold.

  What lies beyond a row's length is not read, and what a slot holds beyond its
  new end means nothing.

  Args:
    slots_R: int32, each at most once; S for a row that is of no slot. None: R
      is S, and each row is of its slot.
    tokens_RxL: int32.
    starts_R: tokens that each slot holds already, int32.
    lengths_R: of the L tokens, how many are the row's; int32, at least 1.

  Returns:
    Logits, RxV float32, of the token after the last of each row, and the cache.
  """
  L = tokens_RxL.shape[1]
  places_RxL = starts_R[:, None] + jnp.arange(L)
  mask_RxLxM = jnp.arange(cache.room) <= places_RxL[:, :, None]
  angles = rotary_angles(places_RxL, c.head_dim, c.rope_theta)
  rows_R = jnp.arange(len(starts_R)) if slots_R is None else slots_R
  model = llama.bind(c, params)
  x_RxLxD = params["embed"][tokens_RxL].astype(c.dtype)

  def run(carry, layer_and_block):
    (x_RxLxD, cache), (layer, block) = carry, layer_and_block

    def attend_to_slots(q_RxLxHxC, k_RxLxKxC, v_RxLxKxC):
      nonlocal cache
      at = layer, rows_R[:, None], slice(None), places_RxL
      cache = Cache(
        cache.keys_NxSxKxMxC.at[at].set(k_RxLxKxC, mode="drop"),
        cache.values_NxSxKxMxC.at[at].set(v_RxLxKxC, mode="drop"),
      )
      k_RxKxMxC, v_RxKxMxC = (x[layer] for x in cache)
      if slots_R is not None:
        k_RxKxMxC, v_RxKxMxC = k_RxKxMxC[slots_R], v_RxKxMxC[slots_R]
      return attend_heads(q_RxLxHxC, k_RxKxMxC.mT, v_RxKxMxC, mask_RxLxM)

    x_RxLxD = sharding.constrain(x_RxLxD, "batch", None, None)
    x_RxLxD = block(x_RxLxD, angles, attend_to_slots)
    return (x_RxLxD, cache), None

  (x_RxLxD, cache), _ = jax.lax.scan(
    run,
    (x_RxLxD, cache),
    (jnp.arange(c.layers), model.blocks),
    unroll=1 if c.scan_layers else c.layers,
  )
  last_Rx1x1 = (lengths_R - 1)[:, None, None]
  x_Rx1xD = jnp.take_along_axis(x_RxLxD, last_Rx1x1, axis=1)
  x_Rx1xD = llama.rms_norm(x_Rx1xD, model.final_norm, c.norm_epsilon)
  return model.logits(x_Rx1xD)[:, 0], cache
