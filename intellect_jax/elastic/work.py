"""What a round asks of an island's hands: reduce a share, gather the mean.

It happens in threads of its own; what came of it is told to the round.
"""

from collections.abc import Callable
import concurrent.futures
import threading

from absl import logging

from intellect_jax.elastic import fetching, reduce
from intellect_jax.elastic import round as round_lib
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.protocol import elastic_pb2 as pb

_LATE_RETRY = 1.0  # seconds before a committed mean is asked for again

# What the round is to hear, in the thread that owns it.
Tell = Callable[
  [Callable[[round_lib.IslandRound], list[round_lib.Action]]], None
]


class ExchangeWork:
  """Reduces and gathers for the round that `tell` reaches."""

  def __init__(
    self,
    island: str,
    crew: Crew,
    threads: int,
    tell: Tell,
    fail: Callable[[Exception], None],
  ):
    """Prepares.

    Args:
      island: this one.
      crew: the island's processes, which do the work.
      threads: of work.
      tell: what the round is to hear.
      fail: told of what only a programmer can mend.
    """
    self._island = island
    self._crew = crew
    self._tell = tell
    self._fail = fail
    self._closing = threading.Event()
    # By fragment: of the open attempt; ids of the delta that is served, and of
    # the share that was reduced last.
    self._cancelled: dict[int, threading.Event] = {}
    self._deltas: dict[int, bytes] = {}
    self._shares: dict[int, bytes] = {}
    self._workers = concurrent.futures.ThreadPoolExecutor(
      threads, thread_name_prefix="exchange"
    )

  def submit(self, work: Callable, *arguments) -> None:
    """Any other work, in one of these threads."""

    def do() -> None:
      try:
        work(*arguments)
      except Exception as error:  # else nobody would hear of it
        if not self._closing.is_set():
          logging.exception("Work failed.", exc_info=error)

    self._workers.submit(do)

  def cancel(self, fragment: int) -> None:
    """Ends what is under way for an attempt; late means go on."""
    self._end_of(fragment).set()
    del self._cancelled[fragment]

  def _end_of(self, fragment: int) -> threading.Event:
    """Set when the open attempt is over."""
    return self._cancelled.setdefault(fragment, threading.Event())

  def close(self) -> None:
    self._closing.set()
    for cancelled in list(self._cancelled.values()):
      cancelled.set()
    self._workers.shutdown(wait=False, cancel_futures=True)

  # ---------------------------------------------- in the agent's thread

  def reduce(self, plan: pb.Plan, index: int) -> None:
    """Starts to reduce the plan's share `index`."""
    if share := self._shares.pop(plan.fragment, b""):
      self._crew.withdraw(share)  # who needs it has the whole mean
    cancelled = self._end_of(plan.fragment)
    self._workers.submit(self._reduce, plan, index, cancelled)

  def gather(self, action: round_lib.Gather) -> None:
    """Starts to bring a whole mean here."""
    end = self._closing if action.late else self._end_of(action.fragment)
    self._workers.submit(self._gather, action, end)

  def serves_delta(self, fragment: int, blob_id: bytes) -> None:
    """This delta is served from now on, and the one before no longer."""
    self.withdraw_delta(fragment)
    self._deltas[fragment] = blob_id

  def withdraw_delta(self, fragment: int) -> None:
    if blob_id := self._deltas.pop(fragment, b""):
      self._crew.withdraw(blob_id)

  def withdraw_deltas(self) -> None:
    for fragment in list(self._deltas):
      self.withdraw_delta(fragment)

  # ------------------------------------------------- in threads of its own

  def _reduce(
    self, plan: pb.Plan, index: int, cancelled: threading.Event
  ) -> None:
    try:
      report = self._crew.reduce(plan, index, cancelled)
      if cancelled.is_set():  # a later share may be here already
        self._crew.withdraw(report.mean.id)
        return
      self._shares[plan.fragment] = report.mean.id
      self._tell(lambda round: round.reduced(report))
    except Exception as error:
      self._not_done(error, plan.attempt)

  def _gather(
    self, action: round_lib.Gather, cancelled: threading.Event
  ) -> None:
    try:
      self._crew.gather(action, cancelled)
      self._tell(lambda round: round.gathered(action.attempt, action.fragment))
    except Exception as error:
      if action.late and not isinstance(error, fetching.Cancelled):
        logging.info("Record %d has no mean yet: %s", action.late, error)
        self._closing.wait(_LATE_RETRY)
        self._tell(lambda round: round.late_fetch_failed(action.attempt))
      else:
        self._not_done(error, action.attempt)

  def _not_done(self, error: Exception, attempt: bytes) -> None:
    """Tells the coordinator who did not deliver, unless nobody asks now."""
    if isinstance(error, fetching.Cancelled) or self._closing.is_set():
      return
    if isinstance(error, OSError):  # such as a full disk: others go on
      error = reduce.MemberError(self._island, str(error))
    if not isinstance(error, reduce.MemberError):
      logging.exception("Exchange work failed.", exc_info=error)
      self._fail(error)
      return
    logging.warning("An attempt failed: %s", error)
    peer, reason = error.island, error.reason
    self._tell(lambda round: round.failed(attempt, peer, reason))
