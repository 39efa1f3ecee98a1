"""Whether an island that reads the log gains on those that write it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Pursuit:
  """Where it began to look."""

  stood: int  # the newest record that is here
  head: int  # the newest that there was
  since: float  # seconds

  def warning(self, stands: int, head: int, now: float, mean_bytes: int) -> str:
    """What to say if it does not gain; empty if it does.

    Args:
      stands: the newest record that is here now.
      head: the newest that there is now.
      now: seconds, of the same clock.
      mean_bytes: to fetch, a record.
    """
    if head - stands < self.head - self.stood:
      return ""
    seconds = max(now - self.since, 1e-9)
    mbit = 8e-6 * mean_bytes / seconds
    return (
      f"This island does not gain on the run: it is {head - stands} records"
      f" behind, and fetched {(stands - self.stood) * mbit:.3g} Mbit/s. It needs"
      f" more than {(head - self.head) * mbit:.3g} Mbit/s, the rate at which"
      " records are made."
    )
