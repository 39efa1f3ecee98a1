"""Who may come in, and how it gets to the run's state. No I/O.

An island says hello at each new stream. It is refused, or asked for records
that this coordinator lacks, or welcomed: to go on, to make record 0, or to
wait for a state (docs/protocol.md, 5 and 6).
"""

from intellect_jax.elastic import chain as chain_lib
from intellect_jax.elastic import rpc
from intellect_jax.elastic.actions import Close, SaveProcess
from intellect_jax.elastic.annulment import Annulments
from intellect_jax.elastic.books import Books
from intellect_jax.elastic.membership import Member, Membership, State
from intellect_jax.elastic.outbox import Outbox
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.rounds import Rounds
from intellect_jax.elastic.transfers import Transfers


class Admission:
  """From a hello to a welcome.

  Attributes:
    met: islands that were here in this term.
  """

  def __init__(
    self,
    books: Books,
    members: Membership,
    transfers: Transfers,
    rounds: Rounds,
    annulments: Annulments,
    outbox: Outbox,
  ):
    self._books = books
    self._members = members
    self._transfers = transfers
    self._rounds = rounds
    self._annulments = annulments
    self._outbox = outbox
    self.met: set[str] = set()
    # Sessions of islands that have newer records: (hello, was it evicted).
    self._asking: dict[int, tuple[pb.Hello, bool]] = {}

  def refusal(self, hello: pb.Hello, now: float) -> str:
    """Why an island may not take part; empty if it may."""
    books = self._books
    if hello.protocol != rpc.PROTOCOL_VERSION:
      return (
        f"This island speaks protocol {hello.protocol}, the coordinator"
        f" {rpc.PROTOCOL_VERSION}. Run the same version of intellect_jax."
      )
    if hello.run_digest != books.digest:
      return (
        f"The run half of this island's config has digest"
        f" {hello.run_digest[:12]}, the coordinator's {books.digest[:12]}."
        " Start the island without --config: it gets the run half from the"
        " coordinator."
      )
    if hello.run_id and hello.run_id != books.run_id:
      return (
        f"This workdir belongs to run {hello.run_id}, the coordinator leads"
        f" run {books.run_id}. Start the island with another --workdir."
      )
    return self._members.refusal(hello, now)

  def eviction(self, hello: pb.Hello) -> str:
    """Why an island may not come back; empty if it may."""
    evicted = self._books.steering.evicted
    if (hello.island, hello.incarnation) in evicted:
      return (
        f"An operator evicted this process of island {hello.island!r}. Start"
        " it again when what was wrong with it is mended."
      )
    return ""

  def hello(self, session: int, hello: pb.Hello, now: float) -> None:
    """Lets an island in; its process may replace an older one."""
    books = self._books
    if books.head.final and not hello.has_state:
      finished = pb.Finished(reason="the run has all its tokens")
      self._outbox.answer(session, pb.ToIsland(finished=finished))
      self._outbox.add(Close(session))
      return
    previous = self._members.members.get(hello.island)
    if previous is not None and previous.session not in (None, session):
      self._outbox.add(Close(previous.session))
    self.met.add(hello.island)
    who = hello.incarnation, hello.process
    if previous is None or who != (previous.incarnation, previous.process):
      self._outbox.add(SaveProcess(hello.island, *who))
    member, replaced, evicted = self._members.admit(hello, session, now)
    if replaced is not None:
      books.accounts.depart(replaced, "its process was replaced by a newer one")
      self._transfers.gone(replaced)
      self._rounds.gone(replaced.island)
    books.accounts.correct(self._members.members.values())
    if evicted:
      books.accounts.depart(member, "trained while it was evicted")
    elif books.recovered:
      books.accounts.settle(self._rounds.uses)  # of an older process
      books.accounts.claim(member, hello.leases)
    self._transfers.came(member)
    newest = max(hello.head, hello.record) if hello.has_state else -1
    log = books.chain.log
    if newest >= len(log) and not hello.alone:
      self._asking[session] = hello, evicted
      ask = pb.AskRecords(start=len(log))
      self._outbox.answer(session, pb.ToIsland(ask_records=ask))
    else:
      self._welcome(member, session, hello, evicted, now)

  def is_asked(self, session: int) -> bool:
    """Whether records are awaited on a stream; nothing else counts there."""
    return session in self._asking

  @property
  def knows_the_end(self) -> bool:
    """Whether an island has said that this ledger's chain is whole."""
    return bool(self.met) and not self._asking

  def ended(self, session: int) -> None:
    self._asking.pop(session, None)

  def records(self, member: Member, sent: pb.Records, now: float) -> str:
    """Takes over records that this coordinator's disk has lost.

    Returns:
      Why this coordinator must stop; empty if it need not.
    """
    session, log = member.session, self._books.chain.log
    if session is None or session not in self._asking:
      return ""
    # What a recovery had asked for begins before the end of this log.
    known = {sealed.hash for sealed in log}
    new = [sealed for sealed in sent.records if sealed.hash not in known]
    found = chain_lib.continuation(log[-1] if log else None, new)
    if found and found[-1][0].term >= self._books.term:
      return (
        f"{member.island} has records of a term that is not over: the ledger"
        " is an old copy; start again with --recover"
      )
    if found:
      self._books.take_over(found, now)
      what = f"records up to {len(log) - 1} from {member.island}"
      self._outbox.warn(f"took over {what}: the ledger lacked them")
    goes_on = found or (sent.records and not new)
    if goes_on and len(log) < sent.end:
      ask = pb.AskRecords(start=len(log))
      self._outbox.tell(member.island, pb.ToIsland(ask_records=ask))
      return ""
    hello, evicted = self._asking.pop(session)
    self._welcome(member, session, hello, evicted, now)
    return ""

  def _welcome(
    self,
    member: Member,
    session: int,
    hello: pb.Hello,
    evicted: bool,
    now: float,
  ) -> None:
    start = self._start(member, hello, now)
    if start in (pb.Welcome.START_RESTORE, pb.Welcome.START_GO_BACK):
      if hello.has_state:
        cause = "its records are not those of the run"
        self._books.accounts.depart(member, cause)
        evicted = True
      self._transfers.tell_to_wait(member.island)
    else:
      self._transfers.has_one(member.island)
    if hello.HasField("tokens_open"):
      self._rounds.compare(member, hello.tokens_trained, hello.tokens_open)
    welcome = pb.Welcome(
      run_id=self._books.run_id,
      evicted=evicted,
      start=start,
      head=self._books.head.number,
    )
    self._outbox.answer(session, pb.ToIsland(welcome=welcome))
    self._rounds.say_again(member.island)

  def _start(self, member: Member, hello: pb.Hello, now: float):
    """How a newcomer gets to the run's state."""
    chain = self._books.chain
    on_chain = chain.has(hello.record, hello.record_hash)
    if hello.alone:
      if hello.has_state and not on_chain:
        return pb.Welcome.START_GO_BACK
      if hello.record < chain.head.number:
        reason = "its island went back to a checkpoint"
        self._annulments.annul(hello.record, reason, now)
      if not hello.has_state:
        return pb.Welcome.START_INITIALISE
      return pb.Welcome.START_GO_ON
    self._transfers.has_one(member.island)
    if hello.has_state and on_chain:
      member.record = chain.counting(hello.record)
      return pb.Welcome.START_GO_ON
    member.state = State.JOINING
    first = self._transfers.initialiser()
    if not chain.head.number and first in (None, member):
      self._transfers.makes(member.island)
      return pb.Welcome.START_INITIALISE
    if hello.has_state:
      return pb.Welcome.START_GO_BACK
    return pb.Welcome.START_RESTORE
