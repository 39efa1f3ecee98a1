"""A cap on bytes a second, shared by all threads that move them."""

import threading
import time

_BURST = 0.05  # seconds of the rate that may go at once after a rest


class Pace:
  """Makes who moves bytes wait, so that together they keep to a rate."""

  def __init__(self, mbit: float = 0.0):
    """`mbit`: 10^6 bits/s; 0 is no cap."""
    self._seconds_a_byte = 8e-6 / mbit if mbit else 0.0
    self._free = 0.0  # when all that was asked for so far has gone
    self._lock = threading.Lock()

  def take(self, count: int) -> None:
    """Waits until `count` more bytes may go; in the order of the callers."""
    if not self._seconds_a_byte:
      return
    with self._lock:
      now = time.monotonic()
      start = max(self._free, now - _BURST)
      self._free = start + count * self._seconds_a_byte
      wait = self._free - now
    if wait > 0:
      time.sleep(wait)
