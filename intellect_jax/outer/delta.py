"""The pseudo-gradient of DiLoCo."""

from collections.abc import Iterator, Sequence
import math

import chex
import numpy as np

from intellect_jax.outer.layout import Layout, Params, Tensor


def delta(
  theta: np.ndarray,
  params: Params,
  layout: Layout,
  size: int,
  tensors: Sequence[Tensor] | None = None,
  together: Sequence[Tensor] | None = None,
) -> Iterator[np.ndarray]:
  """Yields theta - x in pieces: how far the inner steps moved, sign reversed.

  DiLoCo, arXiv 2311.08105, equation 1. Neither the delta nor the parameters x
  are ever on the host as a whole. Of an island that spans processes, all go
  through this together and to the end, each for its own tensors.

  Args:
    theta: outer parameters at the window's base, float32 [layout.size].
    params: x, the island's parameters, tree of jax or numpy arrays.
    layout: of `params`.
    size: values of a piece, or so many as one row of a tensor has.
    tensors: some of the layout, one after the other; None: all.
    together: what all processes want between them; None: all of the layout.

  Yields:
    float32, whole codec blocks, zero in the padding. The next piece overwrites
    it.
  """
  chex.assert_shape(theta, (layout.size,))
  chex.assert_type(theta, np.float32)
  tensors = layout.tensors if tensors is None else tensors
  block, filled = layout.block, 0
  rows = (math.prod(tensor.shape[1:]) for tensor in tensors)
  # Beside that, what is left of a block, and padding.
  buffer = np.empty(max(size, *rows, 0) + 2 * block, np.float32)
  for tensor, rows, parts in layout.slabs(params, tensors, together, size):
    before = tensor.of(theta)[rows]
    ends = rows.stop == tensor.shape[0]
    padding = (tensor.stop - tensor.start - tensor.size) * ends
    if filled + before.size + padding > len(buffer):
      whole = filled // block * block
      yield buffer[:whole]
      buffer[: filled - whole] = buffer[whole:filled]
      filled -= whole
    out = buffer[filled:][: before.size].reshape(before.shape)
    for index, values in parts:
      np.subtract(before[index], values, out=out[index])
    filled += before.size
    buffer[filled : filled + padding] = 0
    filled += padding
  if filled:
    yield buffer[:filled]
