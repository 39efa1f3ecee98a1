"""Overlap: an island trains on while its delta is exchanged.

The record moves theta; what becomes of the island's parameters x, which went on
in the meantime, is decided here. Streaming DiLoCo, arXiv 2501.18512, algorithm
2, has tau and alpha: `run.outer.overlap_steps` and `run.outer.merge_alpha`.
"""

from typing import Any

import jax
from ml_collections import ConfigDict

Params = Any  # a tree of arrays


def most_ahead(outer: ConfigDict) -> int:
  """Inner steps past a proposal after which the island waits for the record.

  `max_ahead_steps`, and no fewer than tau: the merge comes no sooner than tau
  steps after the proposal, and no later than this many.
  """
  return max(outer.overlap_steps, outer.max_ahead_steps)


def blends(outer: ConfigDict) -> bool:
  """Whether x is blended with theta; if not, theta takes its steps along."""
  return outer.overlap_steps > 0 or outer.merge_alpha > 0


def throws_away(outer: ConfigDict) -> str:
  """A warning that steps ahead are lost at each merge; empty: they are not."""
  if not outer.overlap_steps or outer.merge_alpha:
    return ""
  return (
    f"run.outer.overlap_steps is {outer.overlap_steps} and"
    " run.outer.merge_alpha is 0: the steps that an island goes ahead are thrown"
    " away at each merge. A merge_alpha of 0.5 keeps half of them"
  )


def blend(x: Params, theta: Params, alpha: float) -> Params:
  """alpha x + (1 - alpha) theta, after theta has moved."""
  return jax.tree.map(lambda x, t: alpha * x + (1 - alpha) * t, x, theta)


def rebase(x: Params, anchor: Params, theta: Params) -> Params:
  """theta + (x - anchor): what x has done since it was at `anchor` stays."""
  return jax.tree.map(lambda x, a, t: t + (x - a), x, anchor, theta)
