"""Rotary positions, document masks and causal attention.

Dimensions: B batch, L length, M keys, H query heads, K key/value heads,
G = H / K query heads a key/value head, C head_dim.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from intellect_jax.model.product import matmul_float32

MASKED = -1e30  # a logit that is exactly 0 after the softmax in float32


def rotary_angles(positions_BxL: jax.Array, head_dim: int, theta: float):
  """Cosines and sines of RoPE (arXiv 2104.09864), float32, each BxLx1xC/2."""
  frequency = theta ** (-jnp.arange(0, head_dim, 2) / head_dim)
  angle_BxLx1xC = positions_BxL[:, :, None, None] * frequency
  return jnp.cos(angle_BxLx1xC), jnp.sin(angle_BxLx1xC)


def rotate(x_BxLxHxC: jax.Array, angles: tuple[jax.Array, jax.Array]):
  """Rotates pairs (i, i + C/2), the order of Hugging Face checkpoints."""
  cos, sin = (angle.astype(x_BxLxHxC.dtype) for angle in angles)
  a, b = jnp.split(x_BxLxHxC, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def document_mask(segment_ids_BxL: jax.Array) -> jax.Array:
  """True where query l may look at key m: not later, and the same document."""
  length = segment_ids_BxL.shape[1]
  causal_LxL = jnp.tril(jnp.ones((length, length), bool))
  return causal_LxL & (
    segment_ids_BxL[:, :, None] == segment_ids_BxL[:, None, :]
  )


def attend(
  q_BxLxHxC: jax.Array,
  k_BxLxKxC: jax.Array,
  v_BxLxKxC: jax.Array,
  mask_BxLxL: jax.Array,
  implementation: str,
) -> jax.Array:
  """Grouped-query attention (arXiv 2305.13245) under a boolean mask.

  `implementation` is "xla" (runs anywhere) or "cudnn" (flash attention on
  NVIDIA GPUs; its mask becomes a bias of B x L x L). The softmax is float32.
  Returns BxLxHxC in the dtype of the inputs.
  """
  B, L, _, C = q_BxLxHxC.shape
  K = k_BxLxKxC.shape[2]
  chex.assert_shape([k_BxLxKxC, v_BxLxKxC], (B, L, K, C))
  chex.assert_shape(mask_BxLxL, (B, L, L))
  attend_by = {"xla": _attend_xla, "cudnn": attend_fused}[implementation]
  return attend_by(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, mask_BxLxL)


def attend_fused(
  q_BxLxHxC,
  k_BxLxKxC,
  v_BxLxKxC,
  mask_BxLxL,
  implementation: Literal["xla", "cudnn"] = "cudnn",
):
  """JAX's own attention; "xla" instead of "cudnn" tests its arguments."""
  return jax.nn.dot_product_attention(
    q_BxLxHxC,
    k_BxLxKxC,
    v_BxLxKxC,
    mask=mask_BxLxL[:, None],  # the same for all heads
    implementation=implementation,
  )


def _attend_xla(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, mask_BxLxL):
  k_BxKxCxL = jnp.moveaxis(k_BxLxKxC, 1, 3)
  v_BxKxLxC = jnp.moveaxis(v_BxLxKxC, 1, 2)
  return attend_heads(q_BxLxHxC, k_BxKxCxL, v_BxKxLxC, mask_BxLxL)


def attend_heads(
  q_BxLxHxC: jax.Array,
  k_BxKxCxM: jax.Array,
  v_BxKxMxC: jax.Array,
  mask_BxLxM: jax.Array,
) -> jax.Array:
  """`attend` over M keys and values whose heads come first, by plain XLA."""
  # Plain batched products, with the heads moved forward on q, k and v: an
  # einsum leaves XLA to transpose the scores instead, which are L / C times
  # larger (twice as slow on CPUs).
  B, L, H, C = q_BxLxHxC.shape
  _, K, M, _ = v_BxKxMxC.shape
  q_BxKxGxLxC = jnp.moveaxis(
    (q_BxLxHxC * C**-0.5).reshape(B, L, K, -1, C), 1, 3
  )
  scores_BxKxGLxM = matmul_float32(q_BxKxGxLxC.reshape(B, K, -1, C), k_BxKxCxM)
  scores_BxKxGxLxM = jnp.where(
    mask_BxLxM[:, None, None], scores_BxKxGLxM.reshape(B, K, -1, L, M), MASKED
  )
  weights_BxKxGxLxM = jax.nn.softmax(scores_BxKxGxLxM).astype(v_BxKxMxC.dtype)
  out_BxKxGLxC = weights_BxKxGxLxM.reshape(B, K, -1, M) @ v_BxKxMxC
  out_BxLxKxGxC = jnp.moveaxis(out_BxKxGLxC.reshape(B, K, -1, L, C), 3, 1)
  return out_BxLxKxGxC.reshape(B, L, H, C)
