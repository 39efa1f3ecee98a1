"""What the agent's thread has heard and the training thread is to know."""

import collections
from collections.abc import Callable, Iterator
import contextlib
import threading
import time

from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Interval


class News:
  """Written by the agent, read and awaited by the training thread.

  Attributes:
    changed: the condition that guards all the others.
    welcome: the newest one.
    head: number of the newest record heard of.
    evicted: since the training thread last looked.
    hand_in: by fragment, the record that what is trained had better be
      proposed for.
    restores: states that others offer.
    initialise: it is to make the initial state.
    rechecks: it is to replay its log, and to compare fragments.
    leases: samples by window.
    adopted: records to apply, in order.
    annulled: the record that it stood at, which no longer counts, and the
      newest of its own that does; -1: not known. -1 twice: nothing that it had
      is the run's, but for what its own disk and the run's log have in common.
    finished: the coordinator said that the run is over.
    failure: why the island must end.
    heartbeat: what the training thread last said of itself.
    waiting_for: shown instead of the heartbeat's activity.
    trouble: what keeps the agent from its work, shown before all else.
    silent_since: when the coordinator was last heard, if it is not there.
  """

  def __init__(self):
    self.changed = threading.Condition()
    self.welcome: pb.Welcome | None = None
    self.head = 0
    self.evicted = False
    self.hand_in: dict[int, int] = {}
    self.restores: collections.deque[pb.Restore] = collections.deque()
    self.initialise = False
    self.rechecks: collections.deque[pb.Recheck] = collections.deque()
    self.leases: dict[int, list[Interval]] = {}
    self.adopted: collections.deque[pb.Record] = collections.deque()
    self.annulled: tuple[int, int] | None = None
    self.finished = False
    self.failure: Exception | None = None
    self.heartbeat = pb.Heartbeat()
    self.waiting_for = ""
    self.trouble = ""
    self.silent_since: float | None = None

  @property
  def any(self) -> bool:
    """Whether there is something that changes this island's state."""
    return bool(self.adopted) or self.diverted

  @property
  def diverted(self) -> bool:
    """Whether it has to go on from another state than it thought, or may."""
    came = bool(self.restores) or self.initialise or self.evicted
    return came or bool(self.rechecks) or self.annulled is not None

  def wait(
    self, ready: Callable[[], bool], reason: str, timeout: float | None = None
  ) -> bool:
    """Waits until `ready()`; what for is shown to the operator meanwhile.

    Returns:
      Whether it is ready; False after `timeout` seconds, and when the run is
      over.

    Raises:
      UserError: if the coordinator refuses this island.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
      with self.changed:
        while not ready():
          if self.failure is not None:
            raise self.failure
          if self.finished:
            return False
          if deadline is not None and time.monotonic() > deadline:
            return False
          self.waiting_for = f"waiting for {reason}{self._silence()}"
          self.changed.wait(0.5)
        return True
    finally:
      self.waiting_for = ""

  def _silence(self) -> str:
    since = self.silent_since
    if since is None:
      return ""
    return f" (coordinator unreachable for {time.monotonic() - since:.0f} s)"

  @contextlib.contextmanager
  def busy(self, activity: str, seconds: float) -> Iterator[None]:
    """The training thread does something that may take so long at most."""
    with self.changed:
      self.heartbeat.activity, before = activity, self.heartbeat.activity
      self.heartbeat.busy_seconds = seconds
    try:
      yield
    finally:
      with self.changed:
        self.heartbeat.activity = before
        self.heartbeat.busy_seconds = 0

  def fail(self, error: Exception) -> None:
    """The island must end; whoever waits hears of it."""
    with self.changed:
      self.failure = error
      self.changed.notify_all()
