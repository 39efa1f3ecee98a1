"""Deltas that stand out are scaled down before they are averaged."""

from collections.abc import Sequence
import statistics

import numpy as np


def clip_factors(
  norms: Sequence[float], steps: Sequence[int], ratio: float
) -> list[float]:
  """The factor for each delta of a round: min(1, ratio * median / own).

  What is compared is the norm per inner step, so that who trained longer is not
  clipped for that. With two deltas or fewer nothing can be told from the rest.

  Args:
    norms: L2, of the decoded deltas.
    steps: inner steps behind each of them.
    ratio: times the median that is left alone; 0: nothing is scaled.

  Returns:
    Factors above 0 and up to 1, rounded to float32 as they are applied.
  """
  if not ratio or len(norms) < 3:
    return [1.0] * len(norms)
  pace = [norm / max(1, n) for norm, n in zip(norms, steps, strict=True)]
  most = ratio * statistics.median(pace)
  return [float(np.float32(most / p)) if p > most > 0 else 1.0 for p in pace]
