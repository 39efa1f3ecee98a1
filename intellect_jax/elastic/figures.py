"""What outer steps are like: figures for logs and for the operator's screen.

Some stand in the record, or follow from what does. The others need a look at
every value: a thread takes it beside training, and gives up when theta moves on.
"""

import math
from typing import NamedTuple

import numpy as np

from intellect_jax.elastic.means import Mean
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.state import PIECE, OuterState, pieces, runs_of
from intellect_jax.outer import kernels, merge, nesterov
from intellect_jax.outer.codec import Codec


def of_step(step: pb.OuterStep) -> dict[str, float]:
  """Figures of a record: what it was applied with, and what was merged.

  outer_learning_rate and outer_momentum; delta_norm, of the mean as applied;
  island_cosine, the mean one between the members' deltas. Those that there is
  nothing to tell by are left out.
  """
  figures = dict(
    outer_learning_rate=step.learning_rate, outer_momentum=step.momentum
  )
  if step.mean_norm:
    figures["delta_norm"] = (step.scale or 1.0) * step.mean_norm
    weights = [member.weight for member in step.members]
    norms = [member.clip * member.norm for member in step.members]
    cosine = merge.mean_cosine(weights, norms, step.mean_norm)
    if cosine is not None:
      figures["island_cosine"] = cosine
  return figures


class Direction(NamedTuple):
  """Where an outer step went, beside those before it."""

  gain: float  # see `nesterov.gain`
  delta_cosine: (
    float | None
  )  # between its mean delta and that of the step before


def direction(
  state: OuterState,
  record: pb.Record,
  mean: Mean,
  before: Mean | None,
  codec: Codec,
) -> Direction | None:
  """Looks at every value of the newest step, a piece at a time.

  Args:
    state: stands at `record`.
    record: the step.
    mean: its mean.
    before: that of the fragment's step before; None: it is not here any more.
    codec: of both.

  Returns:
    None if theta has moved on meanwhile, or did not move at all.
  """
  along = square = across = square_before = 0.0
  buffers = np.empty((3, PIECE), np.float32)
  runs = runs_of(record.step, len(state.momentum), codec)
  for place, codes in pieces(runs, codec):
    momentum, now, then = buffers[:, : place.stop - place.start]
    if not state.read_momentum(record.number, place, momentum):
      return None
    mean.decode(codes, now)
    along += kernels.dot(momentum, now)
    square += kernels.dot(now, now)
    if before is not None:
      before.decode(codes, then)
      across += kernels.dot(then, now)
      square_before += kernels.dot(then, then)
  if not square:
    return None
  scale = record.step.scale or 1.0  # <b, s m> / |s m|^2 = <b, m> / s |m|^2
  gain = nesterov.gain(record.step.momentum, along / scale, square)
  if not square_before:
    return Direction(gain, None)
  return Direction(gain, across / math.sqrt(square * square_before))
