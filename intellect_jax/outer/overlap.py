"""Overlap: an island trains on while its delta is exchanged.

The record moves theta; what becomes of the island's parameters x, which went on
in the meantime, is decided here. Streaming DiLoCo, arXiv 2501.18512, algorithm
2, has tau and alpha: `run.outer.overlap_steps` and `run.outer.merge_alpha`.
Eager updates, arXiv 2502.12996, are `run.outer.eager`.
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
  overlaps = outer.overlap_steps > 0 or outer.merge_alpha > 0
  return overlaps and not outer.eager


def throws_away(outer: ConfigDict) -> str:
  """A warning that steps ahead are lost at each merge; empty: they are not."""
  if not blends(outer) or outer.merge_alpha:
    return ""
  return (
    f"run.outer.overlap_steps is {outer.overlap_steps} and"
    " run.outer.merge_alpha is 0: the steps that an island goes ahead are thrown"
    " away at each merge. A merge_alpha of 0.5 keeps half of them"
  )


def blend(x: Params, theta: Params, alpha: float) -> Params:
  """alpha x + (1 - alpha) theta, after theta has moved."""
  return jax.tree.map(lambda x, t: alpha * x + (1 - alpha) * t, x, theta)


def displacement(x: Params, anchor: Params) -> Params:
  """x - anchor: what x has done since it was there."""
  return jax.tree.map(lambda x, a: x - a, x, anchor)


def rebase(done: Params, theta: Params) -> Params:
  """theta + a displacement, after theta has moved."""
  return jax.tree.map(lambda d, t: t + d, done, theta)


def eager(
  x: Params,
  theta: Params,
  momentum: Params,
  part: float,
  learning_rate: float,
  mu: float,
) -> Params:
  """The outer step as it would be if no other island had done anything.

    d  =  part (theta - x)        result  =  theta - eta (d + mu (mu b + d))

  From here an island goes on while its delta is exchanged, so that its own work
  is in x at once and that of the others one round late: arXiv 2502.12996, but
  from the theta and b that all islands hold, where each has its own there. The
  same without momentum; with it, what is known of the step to come is in x too.
  A lone island has all of the step.

  Args:
    x: where the proposal was made, arrays of float32.
    theta: that the proposal started from.
    momentum: b, there.
    part: of the mean that this island's delta makes.
    learning_rate: eta, expected.
    mu: expected.
  """

  def step(x, theta, b):
    d = part * (theta - x)
    return theta - learning_rate * (d + mu * (mu * b + d))

  return jax.tree.map(step, x, theta, momentum)
