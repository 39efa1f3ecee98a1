"""What a coordinator wants done and said, collected in order. No I/O."""

from collections.abc import Iterable

from intellect_jax.elastic.actions import Close, CoordinatorAction, Tell, Warn
from intellect_jax.elastic.membership import Member, Membership
from intellect_jax.elastic.protocol import elastic_pb2 as pb


class Outbox:
  """Filled while an event is handled, and taken when it has been."""

  def __init__(self, term: int, members: Membership):
    self._term = term
    self._members = members
    self._actions: list[CoordinatorAction] = []

  def take(self) -> list[CoordinatorAction]:
    actions, self._actions = self._actions, []
    return actions

  def add(self, action: CoordinatorAction) -> None:
    self._actions.append(action)

  def warn(self, text: str) -> None:
    self.add(Warn(text))

  def tell(self, island: str, message: pb.ToIsland) -> None:
    """Says something to an island, if it can be heard just now."""
    member = self._members.members.get(island)
    if member is not None and member.session is not None:
      self.answer(member.session, message)

  def tell_each(self, messages: Iterable[tuple[str, pb.ToIsland]]) -> None:
    for island, message in messages:
      self.tell(island, message)

  def tell_all(self, message: pb.ToIsland) -> None:
    for island in self._members.members:
      self.tell(island, message)

  def answer(self, session: int, message: pb.ToIsland) -> None:
    """Says something on a stream, whoever is at its other end."""
    addressed = pb.ToIsland(term=self._term)
    addressed.MergeFrom(message)
    self.add(Tell(session, addressed))

  def refuse(self, member: Member, reason: str) -> None:
    """The island may not take part, and its process ends."""
    if member.session is not None:
      self.dismiss(member.session, reason)

  def dismiss(self, session: int, reason: str) -> None:
    self.answer(session, pb.ToIsland(refusal=pb.Refusal(reason=reason)))
    self.add(Close(session))
