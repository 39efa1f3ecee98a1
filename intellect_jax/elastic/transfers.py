"""Who waits for theta and b, and who is asked to serve them. No I/O.

The first island makes record 0's state. Every other one is given a state that
several islands hold, as a blob that it may read from all of them at once: what
stands at one record is the same bytes everywhere (docs/protocol.md, 5). It
fetches it on its own and replays the log from there; nobody waits meanwhile,
and when a donor dies it goes on from the others.
"""

from collections.abc import Callable, Sequence

from intellect_jax.elastic.books import Books
from intellect_jax.elastic.membership import Member, Membership, State
from intellect_jax.elastic.outbox import Outbox
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.tie import Ties

_DONORS = 3  # asked at once
_OFFER_SLACK = 0.5  # seconds that an offer waits for others, and half as long
# again as it took itself
_OFFER_AGE = 4  # records after which an offer is too old for a newcomer


class Transfers:
  """The islands without a state, and those that offer theirs."""

  def __init__(
    self,
    books: Books,
    members: Membership,
    outbox: Outbox,
    ties: Ties,
    repair: Callable[[Member, Sequence[int]], None],
    forgets: Callable[[str], None],
  ):
    """Nobody waits yet.

    Args:
      repair: called with a donor whose state is not the run's, and the
        fragments that are not.
      forgets: called with an island that is told to leave the state that it
        has, if any, and with that its rounds.
    """
    self._books = books
    self._members = members
    self._outbox = outbox
    self._ties = ties
    self._repair = repair
    self._forgets = forgets
    self._stateless: set[str] = set()  # islands that wait for a state
    self._told_to_wait: set[str] = set()  # of those: their own is of no use
    self._uninvited: set[str] = set()  # told so; what they offer is from before
    self._makers: set[str] = set()  # islands that are to make record 0
    self._asked: dict[str, float] = {}  # donors that have not answered; when
    self._donors_asked = 0
    self._offer_by = 0.0  # then those who wait hear of who has answered
    self._offers: dict[str, pb.StateReady] = {}  # by donor

  # ------------------------------------------------------ who needs a state

  def waits(self, island: str) -> bool:
    """Whether it was told to wait; what it says of its own state is old."""
    return island in self._told_to_wait

  def lacks(self, island: str) -> bool:
    """Whether it has no state of the run, as far as anybody knows."""
    return island in self._stateless | self._told_to_wait

  def could_not_fetch(self, island: str) -> None:
    """What it was offered is not to be had, or its own state is annulled."""
    self._stateless.add(island)
    self._offers.clear()

  def tell_to_wait(self, island: str) -> None:
    self._stateless.add(island)
    self._told_to_wait.add(island)
    self._uninvited.add(island)

  def has_one(self, island: str) -> None:
    """It stands at a state of the run, or makes the first one."""
    self._stateless.discard(island)
    self._told_to_wait.discard(island)
    self._uninvited.discard(island)

  def came(self, member: Member) -> None:
    """A new stream: the island may not have heard that it was asked."""
    self._asked.pop(member.island, None)
    self._offers.pop(member.island, None)
    self._ties.gone(member.island)

  def gone(self, member: Member) -> None:
    """A member cannot be heard."""
    self.came(member)
    if member.session is None:
      self.has_one(member.island)  # if not, it says so again

  # ------------------------------------------------------ the first state

  def initialiser(self) -> Member | None:
    """Who has the initial state or was told to make it; None: nobody."""
    for member in self._members.members.values():
      told = member.session is not None and member.island not in self._stateless
      if told or member.state is State.IN or self._books.head.number > 0:
        return member
    return None

  def makes(self, island: str) -> None:
    """It is told to make record 0's state."""
    self._makers.add(island)

  def go_back(self) -> None:
    """Those who wait look for a state of their own: nobody has one for them."""
    for island in sorted(self._stateless):
      self._told_to_wait.add(island)
      self._forgets(island)
      welcome = pb.Welcome(
        run_id=self._books.run_id,
        start=pb.Welcome.START_GO_BACK,
        head=self._books.head.number,
      )
      self._outbox.tell(island, pb.ToIsland(welcome=welcome))

  def initialise_again(self) -> None:
    """One of those who wait makes record 0's state, the same bits once more."""
    if self._stateless:
      island = min(self._stateless)
      self.has_one(island)
      self.makes(island)
      self._forgets(island)
      start = pb.Welcome.START_INITIALISE
      welcome = pb.Welcome(run_id=self._books.run_id, start=start)
      self._outbox.tell(island, pb.ToIsland(welcome=welcome))

  # ---------------------------------------------------------- the donors

  def on_state_ready(
    self, member: Member, ready: pb.StateReady, now: float
  ) -> None:
    """A member serves its state, or tells its hash."""
    chain, state = self._books.chain, ready.state
    if member.island in self._uninvited:
      return  # perhaps of another chain
    if not chain.records:
      genesis = pb.Genesis(state=state.id, fragments=ready.fragments)
      self._books.append(pb.Record(genesis=genesis), now)
    elif ready.record == 0 and self._made_another(member, state.id):
      if state.id == member.state_hash:
        return  # an offer from before it was told to
      reason = "its initial state differs from the run's"
      self._outbox.refuse(member, reason)
      return
    self._makers.discard(member.island)
    member.state_record, member.state_hash = ready.record, state.id
    asked_at = self._asked.pop(member.island, None)
    if asked_at is not None:
      patience = _OFFER_SLACK + (now - asked_at) / 2
      self._offer_by = min(self._offer_by, now + patience)
    self._ties.claim(member.island, ready)
    if wrong := self._ties.wrong(ready):
      self._offers.pop(member.island, None)
      self._repair(member, wrong)
    elif state.parts:
      self._offers[member.island] = ready

  def _made_another(self, member: Member, state: bytes) -> bool:
    """Whether it was to make the initial state, and made another."""
    genesis = self._books.chain.records[0].genesis
    return member.island in self._makers and state != genesis.state

  def advance(self, now: float) -> None:
    """Finds somebody for those who wait."""
    if not self._stateless:
      return
    if self.initialiser() is None:  # who was to make record 0 is gone
      self.initialise_again()
    self._forget_the_old(now)
    self._ask(now)
    if self._offers and (now > self._offer_by or not self._asked):
      self._offer()

  def _forget_the_old(self, now: float) -> None:
    """Offers of old or wrong states, and donors that take too long."""
    chain, patience = self._books.chain, self._books.elastic.offer_patience
    for donor, asked_at in list(self._asked.items()):
      if now - asked_at > patience:
        del self._asked[donor]
    for donor, ready in list(self._offers.items()):
      old = chain.head.number - ready.record > _OFFER_AGE
      if old or chain.counting(ready.record) < 0:
        del self._offers[donor]
      elif wrong := self._ties.wrong(ready):
        del self._offers[donor]
        self._repair(self._members.members[donor], wrong)

  def _ask(self, now: float) -> None:
    """Asks members for their states, by turns, until there are enough."""
    busy = self._asked.keys() | self._offers.keys()
    free = sorted(self._members.reachable() - self._stateless - busy)
    for _ in range(min(_DONORS - len(busy), len(free))):
      donor = free.pop(self._donors_asked % len(free))
      self._donors_asked += 1
      self._asked[donor] = now
      self._offer_by = now + self._books.elastic.offer_patience
      self._outbox.tell(donor, pb.ToIsland(offer_state=pb.OfferState()))

  def _offer(self) -> None:
    """Names to all who wait the state that most donors have, and the donors.

    But what one donor alone says may be wrong: of an older state the chain
    tells the hash. Nothing is named while islands disagree.
    """
    by_state: dict[tuple[int, bytes], list[pb.StateReady]] = {}
    for ready in self._offers.values():
      by_state.setdefault((ready.record, ready.state.id), []).append(ready)
    disputed = self._ties.disputed()
    sure = [
      (record, digest)
      for (record, digest), donors in by_state.items()
      if self._ties.known(record) or (len(donors) > 1 and not disputed)
    ]
    if disputed and not sure:
      return
    record, digest = max(
      sure or by_state, key=lambda k: (len(by_state[k]), k[0])
    )
    same = by_state[record, digest]
    state = pb.Blob(id=digest, length=same[0].state.length)
    for ready in same:
      state.parts.extend(ready.state.parts)
    restore = pb.ToIsland(restore=pb.Restore(record=record, state=state))
    for island in sorted(self._stateless):
      self._outbox.tell(island, restore)
    self._told_to_wait -= self._stateless
    self._stateless.clear()  # who cannot fetch it says so
