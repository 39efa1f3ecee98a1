"""The outer optimizer's rate and momentum at a record, over a run's tokens.

The coordinator asks when it makes a record, and writes the answer there as
float32: islands and replays read it and compute nothing.
"""

import math
from typing import NamedTuple

from ml_collections import ConfigDict
import numpy as np

from intellect_jax.outer.codec import make_codec

# The best of 0.2, 0.4 … 1.0 for 1, 2, 4 and 8 islands, the same for models of
# 90M to 2.4B parameters: DiLoCo scaling laws, arXiv 2503.09799, tuned at H = 30
# and mu = 0.9. More islands were not tried: from 8 on, the mean rise of 0.13 a
# doubling goes on up to 1.0, the largest rate that was.
_DOUBLINGS = (0.0, 1.0, 2.0, 3.0, 4.5)
_BEST = (0.4, 0.6, 0.6, 0.8, 1.0)


class Rates(NamedTuple):
  """What an outer step is taken with, rounded to float32."""

  learning_rate: float  # eta
  momentum: float  # mu


def rates(
  outer: ConfigDict, islands: int, committed_tokens: int, total_tokens: int
) -> Rates:
  """Eta and mu of the next record.

  Mu rises linearly from 0 over the first tokens of the run (Pier, arXiv
  2511.17849, warms up the outer momentum). Over the last tokens eta falls
  linearly to a part of what it was, as Covenant-72B (arXiv 2603.08163) lowered
  its own.

  Args:
    outer: the section run.outer, as it holds for that record.
    islands: members of that record.
    committed_tokens: of the run, before that record.
    total_tokens: after which the run is final.
  """
  eta, mu = learning_rate(outer, islands), outer.momentum
  if committed_tokens < outer.momentum_warmup_tokens:
    mu *= committed_tokens / outer.momentum_warmup_tokens
  left = max(0, total_tokens - committed_tokens)
  if left < outer.decay_tokens:
    eta *= outer.decay_to + (1 - outer.decay_to) * left / outer.decay_tokens
  return Rates(float(np.float32(eta)), float(np.float32(mu)))


def learning_rate(outer: ConfigDict, islands: int) -> float:
  """Eta before any decay: the setting, or the best known if it is "auto".

  With a sparse codec that is 1: SparseLoCo, arXiv 2508.15706.

  Between the numbers of islands that were tried it goes linearly in their
  logarithm. The best rate rises with H too, but the source has no figures for
  that, and neither has this.
  """
  if outer.learning_rate != "auto":
    return outer.learning_rate
  if make_codec(outer.codec).sparse:
    return 1.0
  return float(np.interp(math.log2(islands), _DOUBLINGS, _BEST))
