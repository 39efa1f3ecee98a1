"""What a link carries, learned from the transfers that there are anyhow."""

import collections
import threading

_WINDOW_SECONDS = 0.2  # as long as the round trip to a far peer
_WINDOW_FRAMES = 8  # fewer tell of latency
_SUSTAINED = 3  # windows in a row: a burst shorter than one touches two
_ROUNDS = 4  # whose best counts; that a link got slower is known after them


class Rate:
  """The highest rate that one direction of a link has sustained lately.

  It is measured while any transfer is under way. A mean would not do: an uplink
  waits while its readers wait for somebody else, and then looks slow without
  being it. What was carried is a lower bound on what can be, so the best
  counts, but not a burst that only fills buffers. Transfers that are too short
  for that say nothing.

  Safe to use from any thread: the transfers of all peers add up.
  """

  def __init__(
    self, cap_mbit: float = 0.0, window_seconds: float = _WINDOW_SECONDS
  ):
    """Prepares.

    Args:
      cap_mbit: what the operator allows, 10^6 bits/s; 0 is no cap.
      window_seconds: of measuring, at least.
    """
    self._cap = cap_mbit * 1e6 / 8
    self._window_seconds = window_seconds
    self._rounds: collections.deque[float] = collections.deque(maxlen=_ROUNDS)
    self._best = 0.0  # of this round
    self._windows: collections.deque[float] = collections.deque(
      maxlen=_SUSTAINED
    )  # the newest ones since a transfer began
    self._transfers = 0  # under way
    self._began = 0.0  # the window that is open
    self._frames = self._bytes = 0  # in it
    self._lock = threading.Lock()

  def begin(self, now: float) -> None:
    """A transfer begins, at `now` in seconds; `end` must follow."""
    with self._lock:
      self._transfers += 1
      if self._transfers == 1:
        self._windows.clear()
        self._began, self._frames, self._bytes = now, 0, 0

  def end(self) -> None:
    with self._lock:
      self._transfers -= 1

  def count(self, size: int, now: float) -> None:
    """A frame of `size` bytes has gone, or come."""
    with self._lock:
      self._frames += 1
      self._bytes += size
      seconds = now - self._began
      if seconds >= self._window_seconds and self._frames >= _WINDOW_FRAMES:
        self._windows.append(self._bytes / seconds)
        if len(self._windows) == _SUSTAINED:
          self._best = max(self._best, min(self._windows))
        self._began, self._frames, self._bytes = now, 0, 0

  def round_over(self) -> None:
    """What was measured so long ago that the link may have changed goes."""
    with self._lock:
      if self._best:
        self._rounds.append(self._best)
      self._best = 0.0

  @property
  def bytes_a_second(self) -> float:
    """The rate; 0 if nothing is known. Before the first transfer, the cap."""
    with self._lock:
      best = max(self._best, *self._rounds, 0.0)
    return min(best, self._cap) if best and self._cap else best or self._cap
