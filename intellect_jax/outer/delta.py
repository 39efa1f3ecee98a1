"""The pseudo-gradient of DiLoCo."""

from collections.abc import Sequence

import chex
import numpy as np

from intellect_jax.outer.layout import Layout, Params, Tensor


def delta(
  theta: np.ndarray,
  params: Params,
  layout: Layout,
  out: np.ndarray,
  tensors: Sequence[Tensor] | None = None,
  together: Sequence[Tensor] | None = None,
) -> None:
  """Writes theta - x to `out`: how far the inner steps moved, sign reversed.

  DiLoCo, arXiv 2311.08105, equation 1. One tensor at a time, so that the
  parameters x are never on the host as a whole. Of an island that spans
  processes, all call this together, each for its own tensors.

  Args:
    theta: outer parameters at the window's base, float32 [layout.size].
    params: x, the island's parameters, tree of jax or numpy arrays.
    layout: of `params`.
    out: float32, as long as `tensors`; overwritten, zero in the padding.
    tensors: some of the layout, which stand in `out` one after the other;
      None: all.
    together: what all processes want between them; None: all of the layout.
  """
  tensors = layout.tensors if tensors is None else tensors
  origins, size = {}, 0  # of `out`, in the layout's floats
  for tensor in tensors:
    origins[tensor.name] = tensor.start - size
    size += tensor.stop - tensor.start
  chex.assert_shape(theta, (layout.size,))
  chex.assert_shape(out, (size,))
  chex.assert_type([theta, out], np.float32)
  for tensor, index, values in layout.pieces(params, tensors, together):
    before, after = tensor.of(theta), tensor.of(out, origins[tensor.name])
    np.subtract(before[index], values, out=after[index])
  for tensor in tensors:
    origin = origins[tensor.name]
    out[tensor.start + tensor.size - origin : tensor.stop - origin] = 0
