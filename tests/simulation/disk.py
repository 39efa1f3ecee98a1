"""What an island of the simulation keeps, and what it comes back to."""

import dataclasses
import itertools

from intellect_jax.elastic import chain
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.feedback import ErrorFeedback
from simulation.symbols import NOTHING, Theta, next_theta

KEEP = 3  # checkpoints


@dataclasses.dataclass
class Disk:
  """What an island has after a crash, and after a power loss."""

  # Checkpoints by record: its hash, theta there, and error feedback with its
  # attempt.
  saved: dict[int, tuple[bytes, Theta, tuple[bytes, bytes]]] = (
    dataclasses.field(default_factory=dict)
  )
  log: dict[int, pb.SealedRecord] = dataclasses.field(default_factory=dict)
  means: set[bytes] = dataclasses.field(default_factory=set)
  synced: set[int] = dataclasses.field(default_factory=set)  # records
  term: int = 0

  def lose_power(self) -> None:
    """Records and means that were not synced are gone."""
    for number in set(self.log) - self.synced:
      step = pb.Record.FromString(self.log.pop(number).body).step
      self.means -= {share.mean.id for share in step.shares}

  def restore(self, to: int | None = None) -> tuple[int | None, Theta]:
    """The record it can stand at and theta there, as holdings.py does."""
    counting = {record.number for record in chain.effective(self.records())}
    for number in self.whole():
      if number in counting and (to is None or number <= to):
        return self.replay(number, to)
    return None, ()

  def records(self) -> list[pb.Record]:
    """The log, as far as it is one."""
    numbers = itertools.takewhile(self.log.__contains__, itertools.count())
    return [pb.Record.FromString(self.log[n].body) for n in numbers]

  def whole(self) -> list[int]:
    """Checkpoints whose record is here, the newest first."""
    return [
      number
      for number in sorted(self.saved, reverse=True)
      if number in self.log and self.log[number].hash == self.saved[number][0]
    ]

  def replay(self, number: int, to: int | None) -> tuple[int, Theta]:
    """From a checkpoint through the log, as far as the means are here."""
    theta = self.saved[number][1]
    for record in chain.effective(self.records()):
      if record.number <= number:
        continue
      have = {share.mean.id for share in record.step.shares} <= self.means
      if not have or (to is not None and record.number > to):
        break
      number, theta = record.number, next_theta(theta, record)
    return number, theta

  def feedback(self, island: str, to: int) -> tuple[bytes, bytes]:
    """What there is of it at a record from `restore`."""
    counting = chain.effective(self.records())
    numbers = {record.number for record in counting if record.number <= to}
    start = next(n for n in self.whole() if n in numbers)
    for record in counting:
      members = {member.island for member in record.step.members}
      if start < record.number <= to and island in members:
        return NOTHING, b""
    return self.saved[start][2]

  def save(self, record: int, theta: Theta, left: ErrorFeedback) -> None:
    """Writes a checkpoint, whole or not at all."""
    kept = left.values, left.attempt
    self.saved[record] = self.log[record].hash, theta, kept
    for old in sorted(self.saved)[:-KEEP]:
      del self.saved[old]
    self.synced.update(n for n in self.log if n <= record)
