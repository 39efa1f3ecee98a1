"""The pseudo-gradient of DiLoCo."""

import chex
import numpy as np

from intellect_jax.outer.layout import Layout, Params


def delta(
  theta: np.ndarray, params: Params, layout: Layout, out: np.ndarray
) -> None:
  """Writes theta - x to `out`: how far the inner steps moved, sign reversed.

  DiLoCo, arXiv 2311.08105, equation 1. One tensor at a time, so that the
  parameters x are never on the host as a whole.

  Args:
    theta: outer parameters at the window's base, float32 [layout.size].
    params: x, the island's parameters, tree of jax or numpy arrays.
    layout: of `params`.
    out: float32 [layout.size], overwritten; zero in the padding.
  """
  chex.assert_shape([theta, out], (layout.size,))
  chex.assert_type([theta, out], np.float32)
  for tensor, index, values in layout.pieces(params):
    np.subtract(tensor.of(theta)[index], values, out=tensor.of(out)[index])
  for tensor in layout.tensors:
    out[tensor.start + tensor.size : tensor.stop] = 0
