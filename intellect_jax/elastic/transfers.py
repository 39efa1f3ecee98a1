"""Who waits for theta and b, and who is asked to serve them. No I/O.

The first island makes record 0's state; every other one is given a state that
an island holds, as a blob (docs/protocol.md, 5 and 6). The island fetches it
on its own and replays the log from there: nobody else waits meanwhile.
"""

from collections.abc import Callable

from intellect_jax.elastic.books import Books
from intellect_jax.elastic.membership import Member, Membership, State
from intellect_jax.elastic.outbox import Outbox
from intellect_jax.elastic.protocol import elastic_pb2 as pb


class Transfers:
  """The islands without a state, and the donor that is asked for its own."""

  def __init__(
    self,
    books: Books,
    members: Membership,
    outbox: Outbox,
    repair: Callable[[Member], None],
    now: float,
  ):
    """Nobody waits yet.

    Args:
      repair: called with a donor whose state is not the run's.
    """
    self._repair = repair
    self._books = books
    self._members = members
    self._outbox = outbox
    self._donor = ""  # asked for its state
    self._donor_asked_at = now
    self._donors_asked = 0
    self._stateless: set[str] = set()  # islands that wait for a state
    self._told_to_wait: set[str] = set()  # of those: their own is of no use
    self._agreed = (-1, b"")  # record, and the hash of most members' state

  # ------------------------------------------------------ who needs a state

  def waits(self, island: str) -> bool:
    """Whether it was told to wait; what it says of its own state is old."""
    return island in self._told_to_wait

  def lacks(self, island: str) -> bool:
    """Whether it has no state of the run, as far as anybody knows."""
    return island in self._stateless | self._told_to_wait

  def want(self, island: str) -> None:
    """It asks for a state; one that is offered already may do."""
    self._stateless.add(island)

  def tell_to_wait(self, island: str) -> None:
    self._stateless.add(island)
    self._told_to_wait.add(island)

  def has_one(self, island: str) -> None:
    """It stands at a state of the run, or makes the first one."""
    self._stateless.discard(island)
    self._told_to_wait.discard(island)

  def came(self, member: Member) -> None:
    """A new stream: the island may not have heard that it was asked."""
    if self._donor == member.island:
      self._donor = ""

  def gone(self, member: Member) -> None:
    """A member cannot be heard."""
    if self._donor == member.island:
      self._donor = ""
    if member.session is None:
      self.has_one(member.island)  # if not, it says so again

  def agreed(self, record: int, state: bytes) -> None:
    """Most members have this state at `record`: others have diverged."""
    self._agreed = record, state

  # ---------------------------------------------------------- who has a state

  def initialiser(self) -> Member | None:
    """Who has the initial state or was told to make it; None: nobody."""
    for member in self._members.members.values():
      told = member.session is not None and member.island not in self._stateless
      if told or member.state is State.IN or self._books.head.number > 0:
        return member
    return None

  def on_state_ready(
    self, member: Member, ready: pb.StateReady, now: float
  ) -> None:
    """A member serves its state, or tells its hash."""
    chain = self._books.chain
    if not chain.records:
      genesis = pb.Genesis(state=ready.state.id)
      self._books.append(pb.Record(genesis=genesis), now)
    elif ready.record == 0 and ready.state.id != chain.records[0].genesis.state:
      reason = "its initial state differs from the run's"
      self._outbox.refuse(member, reason)
      return
    member.state_record, member.state_hash = ready.record, ready.state.id
    if ready.record == self._agreed[0] and ready.state.id != self._agreed[1]:
      self._donor = ""
      self._repair(member)
    elif ready.state.parts:
      self._donor = ""
      restore = pb.Restore(record=ready.record, state=ready.state)
      for island in sorted(self._stateless):
        self._outbox.tell(island, pb.ToIsland(restore=restore))
      self._told_to_wait -= self._stateless
      self._stateless.clear()  # who cannot fetch it says so

  # -------------------------------------------------------- who is asked

  def advance(self, now: float) -> None:
    """Finds somebody for those who wait."""
    self._find_initialiser()
    patience = self._books.elastic.offer_patience
    if now - self._donor_asked_at > patience:
      self._donor = ""  # it takes too long, and is a donor no more
    if self._stateless and not self._donor:
      self._ask_a_donor(now)

  def _find_initialiser(self) -> None:
    """Who was to make record 0 is gone: the next one in line makes it."""
    if self.initialiser() is None:
      self.initialise_again()

  def initialise_again(self) -> None:
    """One of those who wait makes record 0's state, the same bits once more."""
    if self._stateless:
      island = min(self._stateless)
      self.has_one(island)
      start = pb.Welcome.START_INITIALISE
      welcome = pb.Welcome(run_id=self._books.run_id, start=start)
      self._outbox.tell(island, pb.ToIsland(welcome=welcome))

  def _ask_a_donor(self, now: float) -> None:
    donors = sorted(self._members.reachable() - self._stateless)
    if donors:
      self._donor_asked_at = now
      self._donor = donors[self._donors_asked % len(donors)]
      self._donors_asked += 1
      self._outbox.tell(self._donor, pb.ToIsland(offer_state=pb.OfferState()))
