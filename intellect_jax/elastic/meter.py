"""Where an island's time and bytes go."""

import time
from typing import Any

from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.codec import make_codec


class Meter:
  """Books time as training or as blocked, and counts what an exchange sends.

  compute_utilization = training / (training + blocked), compilation excluded.
  """

  def __init__(self, crew: Crew):
    self._crew = crew
    self.train_seconds = 0.0
    self.blocked_seconds = 0.0
    self.rounds = 0  # that this island was part of
    self.most_members = 1
    self.codec_bytes = 0  # coded bytes that this island sent for the exchange
    self._mark = time.monotonic()

  def start(self) -> None:
    """Time is booked from now on."""
    self._mark = time.monotonic()

  def trained(self) -> None:
    """The time since the last call was training."""
    self.train_seconds += self._lap()

  def blocked(self) -> None:
    """The time since the last call went by without training."""
    self.blocked_seconds += self._lap()

  def _lap(self) -> float:
    now = time.monotonic()
    seconds, self._mark = now - self._mark, now
    return seconds

  def exchanged(self, step: pb.OuterStep, island: str) -> None:
    """Counts a record that includes this island.

    Its delta went to the owners of the other shares, and the share that it
    owns to all others. With a sparse codec the share is the delta.
    """
    lengths = {share.owner: share.mean.length for share in step.shares}
    own = lengths.get(island, 0)
    self.rounds += not step.fragment  # the others are parts of it
    self.most_members = max(self.most_members, len(step.members))
    if not make_codec(step.codec).sparse:
      self.codec_bytes += sum(lengths.values()) - own
    self.codec_bytes += own * (len(step.members) - 1)

  def figures(self) -> dict[str, Any]:
    """Figures that go into every event."""
    sent, _, received = self._crew.traffic()
    return dict(
      train_seconds=self.train_seconds,
      blocked_seconds=self.blocked_seconds,
      bytes_sent=sent,
      bytes_received=received,
    )

  @property
  def compute_utilization(self) -> float:
    seconds = self.train_seconds + self.blocked_seconds
    return self.train_seconds / seconds if seconds else 0.0
