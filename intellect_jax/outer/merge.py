"""What the norms of deltas and of their mean tell, and a rule to merge by it.

Who reduces a share decodes every delta, and encodes their mean: the norms come
from there, and need no byte of a delta to travel again.
"""

from collections.abc import Sequence
import math

import numpy as np

# Below this part of the members' norm a mean is what rounding left of deltas
# that cancel: int8 alone makes 0.007 of it.
_LEAST_PART = 0.01


def rda_scale(
  weights: Sequence[float], norms: Sequence[float], mean_norm: float
) -> float:
  """The factor on a mean that gives it the norm which its members have.

    r = (sum(w |d|) / sum(w)) / |sum(w d) / sum(w)|

  Deltas of different islands are nearly orthogonal, so the norm of their plain
  mean falls as 1 / sqrt(islands), and with it the outer step; with this factor
  it does not depend on their number. It is at least 1, up to rounding, and 1
  if all deltas are alike.

  RDA, radial-directional averaging, of Decoupled DiLoCo, arXiv 2604.21428. That
  is done a tensor at a time, here on the whole delta; and the direction there
  is that of the mean of d / |d|, here that of the mean of d.

  Args:
    weights: w of each member.
    norms: L2, of each member's delta as it entered the mean.
    mean_norm: L2, of the mean.

  Returns:
    r, rounded to float32 as it is applied; 1 if the mean has no direction.
  """
  norm = math.fsum(w * n for w, n in zip(weights, norms, strict=True))
  norm /= math.fsum(weights)
  if not mean_norm > _LEAST_PART * norm:
    return 1.0
  return float(np.float32(norm / mean_norm))


def mean_cosine(
  weights: Sequence[float], norms: Sequence[float], mean_norm: float
) -> float | None:
  """The mean cosine between the deltas of two members of a round.

  Each pair counts with the product of its w |d|, since

    |sum(w d)|^2 = sum(w^2 |d|^2) + sum over pairs(w_i w_j <d_i, d_j>)

  The mean's own encoding adds its squared error to the left side: with int8
  5e-5 of it.

  Args: as for `rda_scale`.

  Returns:
    None if there are no two deltas to compare.
  """
  lengths = [w * n for w, n in zip(weights, norms, strict=True)]
  squares = math.fsum(length**2 for length in lengths)
  pairs = math.fsum(lengths) ** 2 - squares
  if sum(length > 0 for length in lengths) < 2:
    return None
  return ((math.fsum(weights) * mean_norm) ** 2 - squares) / pairs
