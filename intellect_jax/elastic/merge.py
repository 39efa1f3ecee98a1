"""What becomes of an island's parameters x when a record moves theta.

    x <- theta_new + (x - anchor)

where the anchor is x at the proposal if the record includes it, so that steps
taken since go on from the new theta; and the old theta if it was left out, so
that its whole displacement stays for the next proposal (docs/protocol.md, 3).
"""

from typing import Any

import jax

from intellect_jax.elastic.holdings import Holdings
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.windows import Windows
from intellect_jax.inner.step import TrainStep

Params = Any  # a tree of arrays on the island's devices


class Merger:
  """Applies records to theta and b, and what follows from them to x."""

  def __init__(self, held: Holdings, windows: Windows, train_step: TrainStep):
    self._held = held
    self._windows = windows
    self._train_step = train_step
    self._x_proposed: Params | None = None  # if steps go on after a proposal
    self._rebase = jax.jit(
      lambda x, anchor, theta: jax.tree.map(
        lambda x, a, t: t + (x - a), x, anchor, theta
      ),
      donate_argnums=0,
    )

  def proposed(self, params: Params) -> None:
    """Steps go on from these parameters, of which a delta was proposed."""
    self._x_proposed = self._train_step.place(params)

  def merge(
    self, params: Params, record: pb.Record, included: bool
  ) -> tuple[Params, bool]:
    """Applies an outer step, whose mean the log has.

    Args:
      params: x, which is given up.
      record: the next one.
      included: whether it has what this island proposed.

    Returns:
      x after it, and whether what was carried has been left out too often: then
      x is theta, and the windows are to be dropped.
    """
    held, windows, lost = self._held, self._windows, False
    if included:
      windows.commit()
      anchor = self._x_proposed if windows.ahead else None
    else:
      lost = windows.carry()
      anchor = held.place_theta() if windows.tokens_uncommitted else None
    self._x_proposed = None
    held.apply(record)
    theta = held.place_theta()
    if lost or anchor is None:
      return theta, lost
    return self._rebase(params, anchor, theta), lost
