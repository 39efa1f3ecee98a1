"""An island's own work: which windows it trained on, what became of them.

A window is open while it is trained on, then done, then proposed; a record
that includes it commits it, one that leaves it out carries it over, and what
is carried too often is lost. Each token ends in one of these. No I/O.
"""

import dataclasses

from intellect_jax.elastic import samples
from intellect_jax.elastic.protocol import elastic_pb2 as pb


@dataclasses.dataclass
class Window:
  """A stretch of inner steps on leased samples."""

  number: int  # counts up in one incarnation
  lease: list[samples.Interval]
  steps: int = 0
  carried: int = 0  # records that left it out


class Windows:
  """The windows of one incarnation.

  Attributes:
    open: the window in progress.
    next: number of the window after it.
    ahead: steps since the proposal.
    max_carry: records that may leave a window out before it is lost.
    tokens_trained, tokens_committed, tokens_lost: of this incarnation.
  """

  def __init__(self, batch_size: int, sequence_length: int, max_carry: int):
    self._batch_size = batch_size
    self.tokens_a_step = batch_size * sequence_length
    self.max_carry = max_carry
    self.open: Window | None = None
    self.next = 0
    self.ahead = 0
    self.steps = 0
    self.tokens_committed = 0
    self.tokens_lost = 0
    self._done: list[Window] = []  # not committed
    self._proposed: list[int] = []  # numbers

  @property
  def tokens_trained(self) -> int:
    return self.steps * self.tokens_a_step

  @property
  def tokens_uncommitted(self) -> int:
    return self.tokens_a_step * sum(w.steps for w in self._uncommitted())

  @property
  def length(self) -> int:
    """Steps that the open window's samples last for."""
    assert self.open is not None
    return sum(stop - start for start, stop in self.open.lease) // (
      self._batch_size
    )

  @property
  def proposed(self) -> bool:
    """Whether a proposal is undecided."""
    return bool(self._proposed)

  def start(self, lease: list[samples.Interval]) -> Window:
    """Opens the next window."""
    self.open = Window(self.next, lease)
    self.next += 1
    return self.open

  def step(self) -> int:
    """Counts an inner step of the open window; returns its steps."""
    assert self.open is not None
    self.open.steps += 1
    self.steps += 1
    self.ahead += 1
    return self.open.steps

  def propose(self) -> list[pb.Window]:
    """Ends the open window; all that is done is proposed together."""
    assert self.open is not None
    self._done.append(self.open)
    self.open = None
    self.ahead = 0
    self._proposed = [window.number for window in self._done]
    return self._messages(self._done)

  def included(self, members: list[pb.Member], island: str, own: int) -> bool:
    """Whether a record includes what incarnation `own` has proposed."""
    return self.proposed and any(
      (member.island, member.incarnation) == (island, own)
      and [window.number for window in member.windows] == self._proposed
      for member in members
    )

  def commit(self) -> None:
    """A record includes the proposal."""
    self.tokens_committed += self.tokens_a_step * sum(
      window.steps for window in self._done
    )
    self._done, self._proposed = [], []

  def annul(self, tokens: int) -> None:
    """What was committed is taken back: it is lost after all."""
    self.tokens_committed -= tokens
    self.tokens_lost += tokens

  def carry(self) -> bool:
    """A record leaves this island out. Returns whether that is too often."""
    self._proposed = []
    for window in self._done:
      window.carried += 1
    return any(window.carried > self.max_carry for window in self._done)

  def drop_open(self) -> list[pb.Window]:
    """The window in progress is lost, if it has a step."""
    window, self.open = self.open, None
    self.ahead = 0
    lost = self._messages([window]) if window is not None else []
    self.tokens_lost += sum(message.tokens for message in lost)
    return lost

  def drop(self) -> list[pb.Window]:
    """Everything that is not committed is lost."""
    lost = self._messages(self._uncommitted())
    self.tokens_lost += sum(window.tokens for window in lost)
    self._done, self._proposed, self.open = [], [], None
    return lost

  def _uncommitted(self) -> list[Window]:
    return self._done + ([self.open] if self.open is not None else [])

  def _messages(self, windows: list[Window]) -> list[pb.Window]:
    messages = []
    for window in windows:
      tokens = window.steps * self.tokens_a_step
      message = pb.Window(
        number=window.number, steps=window.steps, tokens=tokens
      )
      consumed = samples.take(window.lease, window.steps * self._batch_size)
      for start, stop in consumed:
        message.samples.add(start=start, stop=stop)
      messages.append(message)
    return messages
