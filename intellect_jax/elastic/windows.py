"""An island's own work: which windows it trained on, what became of them.

A window is open while it is trained on, then done, then proposed; a record
that includes it commits it, one that leaves it out carries it over, and what
is carried too often is lost. Each token ends in one of these. Windows go with
fragment 0; of each fragment it is known how far x has gone from theta, what of
that is proposed, and what comes next. No I/O.
"""

from collections.abc import Callable, Sequence
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


@dataclasses.dataclass
class Displacement:
  """How far a fragment of x has gone from theta, in inner steps."""

  moved: int = -1  # newest record in the fragment's theta
  steps: int = 0  # that no record has committed
  proposed: int = 0  # of those, in the undecided proposal; 0: there is none
  serial: int = 0  # of that proposal
  ahead: int = 0  # since the newest proposal
  carried: int = 0  # records that left out what was proposed

  def drop(self) -> None:
    """Nothing of it is left: x is theta."""
    self.steps = self.proposed = self.carried = 0


class Windows:
  """The windows of one incarnation, and the displacement of each fragment.

  Attributes:
    open: the window in progress.
    next: number of the window after it.
    parts: displacements by fragment.
    max_carry: records that may leave work out before it is lost.
    tokens_trained, tokens_committed, tokens_lost: of this incarnation.
  """

  def __init__(
    self,
    batch_size: int,
    sequence_length: int,
    max_carry: int,
    fragments: int = 1,
  ):
    self._batch_size = batch_size
    self.tokens_a_step = batch_size * sequence_length
    self.max_carry = max_carry
    self.open: Window | None = None
    self.next = 0
    self.parts = [Displacement() for _ in range(fragments)]
    self.steps = 0
    self.tokens_committed = 0
    self.tokens_lost = 0
    self._serial = 0  # of the newest proposal
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
  def used_up(self) -> bool:
    """Whether the next step needs another window's samples."""
    return self.open is None or self.open.steps >= self.length

  # --------------------------------------------------------- inner steps

  def start(self, lease: list[samples.Interval]) -> Window:
    """Opens the next window."""
    self.end()
    self.open = Window(self.next, lease)
    self.next += 1
    return self.open

  def end(self) -> None:
    """The open window is done, as far as it has come."""
    if self.open is not None:
      self._done.append(self.open)
    self.open = None

  def step(self) -> int:
    """Counts an inner step of the open window; returns its steps."""
    assert self.open is not None
    self.open.steps += 1
    self.steps += 1
    for part in self.parts:
      part.steps += 1
      part.ahead += 1
    return self.open.steps

  @property
  def at_turn(self) -> bool:
    """Whether the newest step ends one of the window's stretches.

    There are as many as fragments, so that each has one proposal a window.
    """
    assert self.open is not None
    count, length, steps = len(self.parts), self.length, self.open.steps
    return steps * count // length > (steps - 1) * count // length

  # ----------------------------------------------------------- proposals

  @property
  def proposed(self) -> list[int]:
    """Fragments of which a proposal is undecided."""
    return [f for f, part in enumerate(self.parts) if part.proposed]

  @property
  def turns(self) -> list[int]:
    """The fragments that are not proposed, in the order in which they are to be.

    First comes the one that a record moved longest ago: islands that stand at
    one record agree on that, also those that have just come, and so no two can
    wait for each other. Of a new run fragment 0 is last, so that it has whole
    windows.
    """
    free = [f for f, part in enumerate(self.parts) if not part.proposed]
    return sorted(free, key=lambda f: (self.parts[f].moved, f == 0))

  def before(self, asked: Callable[[int], bool]) -> list[int]:
    """The fragments that are asked for, and those whose turn is before theirs.

    In order; of those alone in which x has gone from theta.
    """
    turns = self.turns
    last = max((n for n, f in enumerate(turns, 1) if asked(f)), default=0)
    return [f for f in turns[:last] if self.parts[f].steps]

  def propose(self, fragment: int) -> pb.Proposal:
    """All that was done in a fragment since theta: windows are of fragment 0."""
    part = self.parts[fragment]
    self._serial += 1
    part.proposed, part.serial, part.ahead = part.steps, self._serial, 0
    proposal = pb.Proposal(
      fragment=fragment,
      serial=self._serial,
      steps=part.steps,
      tokens=part.steps * self.tokens_a_step,
    )
    if fragment == 0:
      self.end()
      self._proposed = [window.number for window in self._done]
      proposal.windows.extend(self._messages(self._done))
    return proposal

  def includes(self, step: pb.OuterStep, island: str, own: int) -> bool:
    """Whether a record includes what incarnation `own` has proposed."""
    part = self.parts[step.fragment]
    return part.proposed > 0 and any(
      (m.island, m.incarnation, m.serial) == (island, own, part.serial)
      for m in step.members
    )

  # ------------------------------------------------------------- records

  def commit(self, fragment: int) -> None:
    """A record includes the proposal of a fragment."""
    part = self.parts[fragment]
    part.steps -= part.proposed
    part.proposed = part.carried = 0
    if fragment == 0:
      committed = [w for w in self._done if w.number in self._proposed]
      self._done = [w for w in self._done if w not in committed]
      self.tokens_committed += self.tokens_a_step * sum(
        window.steps for window in committed
      )
      self._proposed = []

  def annul(self, tokens: int) -> None:
    """What was committed is taken back: it is lost after all."""
    self.tokens_committed -= tokens
    self.tokens_lost += tokens

  def carry(self, fragment: int) -> bool:
    """A record leaves this island out. Returns whether that is too often."""
    part = self.parts[fragment]
    part.carried += part.proposed > 0
    part.proposed = 0
    if fragment:
      return part.carried > self.max_carry
    self._proposed = []
    for window in self._done:
      window.carried += 1
    return any(window.carried > self.max_carry for window in self._done)

  def throw_away(self, fragment: int) -> list[pb.Window]:
    """A fragment's x is theta, and what it did since its proposal is gone.

    If it is the only one, so is the window in progress, which is returned; else
    its steps have moved the others, and its tokens count.
    """
    self.parts[fragment].drop()
    if len(self.parts) > 1:
      return []
    window, self.open = self.open, None
    return self._lose([window] if window is not None else [])

  def drop(self) -> list[pb.Window]:
    """Everything that is not committed is lost."""
    lost = self._lose(self._uncommitted())
    self._done, self._proposed, self.open = [], [], None
    for part in self.parts:
      part.drop()
    return lost

  def _lose(self, windows: Sequence[Window]) -> list[pb.Window]:
    lost = self._messages(windows)
    self.tokens_lost += sum(window.tokens for window in lost)
    return lost

  def _uncommitted(self) -> list[Window]:
    return self._done + ([self.open] if self.open is not None else [])

  def _messages(self, windows: Sequence[Window]) -> list[pb.Window]:
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
