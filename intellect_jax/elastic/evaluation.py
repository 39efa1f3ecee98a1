"""Theta on held-out text, off the training thread, by one island a record."""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
from typing import Any

from intellect_jax.elastic.diary import Diary
from intellect_jax.elastic.holdings import Holdings


class Evaluation:
  """Evaluates theta in the background when it is this island's turn."""

  def __init__(
    self,
    evaluate: Callable[[Any], Mapping[str, float]] | None,
    every: int,
    island: str,
    held: Holdings,
    diary: Diary,
  ):
    """Nothing is evaluated yet.

    Args:
      evaluate: maps host parameters to figures, "loss" among them; None:
        never.
      every: run.evaluation.every.
      island: who this is.
      held: has theta.
      diary: is told what comes out.
    """
    self._evaluate = evaluate
    self._every = every
    self._island = island
    self._held = held
    self._diary = diary
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "evaluate")
    self._running: concurrent.futures.Future | None = None

  def take_turn(self, members: Sequence[str]) -> None:
    """Starts to evaluate theta, if among `members` it is this island's turn.

    A turn that comes while the one before is under way is left out, except
    that of the final record.
    """
    evaluate, record = self._evaluate, self._held.record
    turns = record.number // len(self._held.fragments)
    turn = whose_turn(turns, record.final, self._every, members)
    busy = self._running is not None and not self._running.done()
    if evaluate is None or turn != self._island or (busy and not record.final):
      return
    theta = self._held.host_theta()
    self._running = self._thread.submit(
      lambda: self._diary.evaluated(record.number, evaluate(theta))
    )

  def wait(self) -> None:
    """Waits for what is under way; raises what it raised."""
    if self._running is not None:
      self._running.result()

  def close(self) -> None:
    self._thread.shutdown(wait=False, cancel_futures=True)


def whose_turn(
  record: int, final: bool, every: int, members: Sequence[str]
) -> str | None:
  """Who of its members evaluates theta at a record; None: nobody.

  Every `every` records and at the final one, by turns.
  """
  if record % every and not final:
    return None
  return members[record // every % len(members)]
