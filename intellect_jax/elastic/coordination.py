"""The coordinator's state machine: messages in, actions out. No I/O.

It knows who is in, which round is open and who committed what. It moves no
tensors and computes no updates. The shell around it is `service.py`; the clock
is the argument `now`, in seconds of any monotonic clock.

    admission.py    who may come in, and how it gets to the run's state
    membership.py   who is in: incarnations, leases
    transfers.py    who waits for theta and b, and who serves them
    tie.py          who is right, when islands hold different ones
    rounds.py       when a round is planned, and what it commits
    round.py        ... and what a round is
    quorum.py       how many must be there
    annulment.py    when records are taken back
    ending.py       when islands may leave, after the final record
    books.py        what outlives the coordinator: the chain, settings,
    accounts.py     ... and whose every sample and token is

An event is noted where it belongs, and then `_advance` does whatever can be
done by now. So nothing hangs on the order of events.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from intellect_jax.elastic.actions import Close, CoordinatorAction, Stop
from intellect_jax.elastic.admission import Admission
from intellect_jax.elastic.annulment import Annulments
from intellect_jax.elastic.books import Books, History
from intellect_jax.elastic.ending import Ending
from intellect_jax.elastic.membership import Member, Membership, State
from intellect_jax.elastic.outbox import Outbox
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.quorum import Quorum
from intellect_jax.elastic.rounds import Rounds
from intellect_jax.elastic.steering import settings_of
from intellect_jax.elastic.tie import Ties
from intellect_jax.elastic.transfers import Transfers
from intellect_jax.errors import UserError
from intellect_jax.outer import overlap


class Coordinator:
  """Hears islands, an operator and the clock, and leads the run."""

  def __init__(self, run: ConfigDict, history: History, now: float):
    """Goes on where `history` ends; `run` is the config as it was started."""
    self._members = Membership(run.elastic.lease_seconds)
    self._outbox = outbox = Outbox(history.term, self._members)
    self.books = books = Books(run, history, self._members, outbox, now)
    self._quorum = Quorum(books, self._members, now)
    self._ties = Ties(books, self._members, outbox)
    self._transfers = Transfers(
      books,
      self._members,
      outbox,
      self._ties,
      self._repair,
      lambda island: self.rounds.gone(island),
    )
    self._annulments = Annulments(
      books, self._members, self._quorum, self._transfers, outbox, now
    )
    self.rounds = Rounds(
      books,
      self._members,
      self._quorum,
      outbox,
      self._transfers,
      self._ties,
      self._repair,
      now,
    )
    self._ending = Ending(
      books, self._members, self._ties, outbox, self._repair
    )
    self._admission = Admission(
      books,
      self._members,
      self._transfers,
      self.rounds,
      self._annulments,
      outbox,
    )
    self._stopped = False
    self._ticked_at = now

  # ------------------------------------------------------------ questions

  @property
  def run_id(self) -> str:
    return self.books.run_id

  @property
  def term(self) -> int:
    return self.books.term

  @property
  def log(self) -> list[pb.SealedRecord]:
    return self.books.chain.log

  @property
  def head(self) -> pb.Record:
    """The newest record; an empty one before the run has a state."""
    return self.books.head

  @property
  def losses(self) -> list[pb.Loss]:
    return self.books.accounts.losses

  @property
  def final(self) -> bool:
    return self.head.final

  def holders(self) -> list[str]:
    """Addresses where the means of recent records are served."""
    return self._members.serving()

  def done(self) -> bool:
    """Whether the run is over and every island has left or is gone."""
    members = self._members.members.values()
    return self.final and not any(member.present for member in members)

  def status(self, now: float) -> pb.Status:
    """What an operator sees."""
    books, open_tokens = self.books, 0
    status = pb.Status(
      run_id=self.run_id,
      term=self.term,
      record=self.head.number,
      total_tokens=self.head.total_tokens,
      run_tokens=books.run.tokens,
      final=self.final,
      phase=self.rounds.describe(),
      losses=self.losses,
      tokens_lost=sum(loss.tokens for loss in self.losses),
      warnings=self._warnings(now),
      paused=bool(books.steering.paused),
      settings=books.steering.changed(len(self.log)),
    )
    for member in self._members.members.values():
      if member.present:
        open_tokens += books.accounts.open(member)
      status.islands.add(
        island=member.island,
        incarnation=member.incarnation,
        place=member.place,
        state=member.state.value,
        silent_seconds=max(0.0, now - member.heard),
        heartbeat=member.heartbeat,
        state_hash=member.state_hash,
        state_record=member.state_record,
      )
    status.tokens_trained = (
      status.total_tokens + status.tokens_lost + open_tokens
    )
    for record, loss in sorted(books.evaluations.items()):
      status.evaluations.add(record=record, loss=loss)
    return status

  def _warnings(self, now: float) -> list[str]:
    """What keeps the run from going on as it should."""
    if self.final:
      return []
    warnings = [
      self._quorum.warning(now),
      self._annulments.warning(),
      overlap.throws_away(self.books.run.outer),
    ]
    return [warning for warning in warnings if warning]

  # --------------------------------------------------------------- events

  def handle(
    self, session: int, message: pb.FromIsland, now: float
  ) -> list[CoordinatorAction]:
    """Takes one message of an island's control stream."""
    if self._stopped:
      return []
    kind = message.WhichOneof("message")
    if kind == "hello":
      reason = self._admission.refusal(message.hello, now)
      if not reason and message.term <= self.term:  # or it would not hear it
        reason = self._admission.eviction(message.hello)
      if reason:
        self._outbox.dismiss(session, reason)
        return self._outbox.take()
    member = self._members.by_session(session)
    if kind != "hello" and member is None:
      return []  # fenced: a newer process is in
    known = kind != "hello" or message.hello.island in self._admission.met
    if message.term > self.term - (not known):
      self._stop(
        f"an island has seen term {message.term}, and this coordinator's is"
        f" {self.term}: another one is or was at work; if this one's ledger"
        " is an old copy, start it with --recover"
      )
    elif member is None or kind == "hello":
      self._admission.hello(session, message.hello, now)
    elif self._admission.is_asked(session) and kind not in (
      "records",
      "heartbeat",
    ):
      pass  # of before its welcome: it says so again
    elif kind is not None:
      self._members.renew(member, now)
      getattr(self, f"_on_{kind}")(member, getattr(message, kind), now)
    return self._advance(now)

  def disconnected(self, session: int, now: float) -> list[CoordinatorAction]:
    """A control stream broke: its island leaves the attempt at once."""
    if self._stopped:
      return []
    member = self._members.by_session(session)
    self._admission.ended(session)
    if member is not None:
      member.session = None
      self._gone(member)
    return self._advance(now)

  def tick(self, now: float) -> list[CoordinatorAction]:
    """Lets time pass: leases run out, a deadline comes."""
    if self._stopped:
      return []
    elastic = self.books.elastic
    lease, hang = elastic.lease_seconds, elastic.hang_seconds
    if now - self._ticked_at > lease / 2:  # this process was frozen
      self._members.renew_all(now)
    self._ticked_at = now
    for member in self._members.expired(now):
      self._evict(member, f"not heard of for {lease:g} s, and evicted")
    for member in self._members.hung(now, hang):
      self._evict(member, f"no inner step in {hang:g} s, and evicted")
    self._quorum.note(now)
    self._annulments.advance(now)
    self.rounds.announce_closing(now)
    for island, fragments in self._ties.overdue(now).items():
      member = self._members.members[island]
      if member.state is State.JOINING:  # else it was but one vote in a tie
        self._give_state(member, fragments)
    self._ending.advance(now)
    return self._advance(now)

  def _advance(self, now: float) -> list[CoordinatorAction]:
    """Does what can be done by now."""
    if not self._stopped:
      self.rounds.advance(now)
      self._transfers.advance(now)
      self.books.accounts.settle(self.rounds.uses)
    return self._outbox.take()

  def _stop(self, reason: str) -> None:
    """Another coordinator leads, or led: nothing more is promised."""
    self._stopped = True
    self._outbox.add(Stop(reason))

  # ------------------------------------------------- what islands say

  def _on_heartbeat(
    self, member: Member, heartbeat: pb.Heartbeat, now: float
  ) -> None:
    trained = max(heartbeat.tokens_trained, member.heartbeat.tokens_trained)
    self._members.note(member, heartbeat, now)
    member.heartbeat.tokens_trained = trained
    if heartbeat.record > 0 and not self._transfers.lacks(member.island):
      counting = self.books.chain.counting(heartbeat.record)
      member.record = max(member.record, counting)
    for evaluation in heartbeat.evaluations:
      self.books.evaluated(evaluation)

  def _on_records(self, member: Member, sent: pb.Records, now: float) -> None:
    reason = self._admission.records(member, sent, now)
    if reason:
      self._stop(reason)

  def _on_ready(self, member: Member, ready: pb.Ready, now: float) -> None:
    if self._transfers.waits(member.island) or not self.log:
      return  # said before it heard that it waits
    if self._knows_more(member, ready.record):
      return
    if not member.hung:
      member.state = State.IN
    counting = self.books.chain.counting(ready.record)
    member.record = max(member.record, counting)
    self._transfers.has_one(member.island)

  def _knows_more(self, member: Member, record: int) -> bool:
    """Whether it stands at a record that this ledger has lost.

    It has learned of it since its hello; the next one tells.
    """
    more = record > self.head.number
    if more and member.session is not None:
      self._outbox.add(Close(member.session))
    return more

  def _on_state_ready(
    self, member: Member, ready: pb.StateReady, now: float
  ) -> None:
    self._transfers.on_state_ready(member, ready, now)

  def _on_lease_request(
    self, member: Member, request: pb.LeaseRequest, now: float
  ) -> None:
    self.books.accounts.lease(member, request)

  def _on_proposal(
    self, member: Member, proposal: pb.Proposal, now: float
  ) -> None:
    waits = self._transfers.waits(member.island)
    if waits or not self._knows_more(member, proposal.base):
      self.rounds.on_proposal(member, proposal, now)

  def _on_share_reduced(
    self, member: Member, report: pb.ShareReduced, now: float
  ) -> None:
    self.rounds.on_share_reduced(member, report)

  def _on_prepared(
    self, member: Member, prepared: pb.Prepared, now: float
  ) -> None:
    self.rounds.on_prepared(member, prepared)

  def _on_fetch_failed(
    self, member: Member, report: pb.FetchFailed, now: float
  ) -> None:
    if report.attempt:
      self.rounds.on_fetch_failed(member, report, now)
    else:  # a state, not a delta: ask somebody else
      self._transfers.could_not_fetch(member.island)
      if member.state is State.IN:  # nobody waits for it meanwhile
        member.state = State.JOINING

  def _on_rechecked(
    self, member: Member, answer: pb.Rechecked, now: float
  ) -> None:
    if answer.fragment >= len(self._ties):
      return
    tie = self._ties.of(answer.fragment)
    if not tie.rechecked(member.island, answer):
      return
    known = tie.known(answer.record)
    if known and answer.state != known:
      self._give_state(member, [answer.fragment])
    elif answer.mended:  # it has withdrawn what it had in all rounds
      self.rounds.gone(member.island)
      self.rounds.excuse(member.island)
    if tie.disputed():
      self.rounds.doubt()

  def _on_dropped(
    self, member: Member, dropped: pb.Dropped, now: float
  ) -> None:
    self.rounds.dropped(member)
    self.books.accounts.drop(member, dropped)

  def _on_leave(self, member: Member, leave: pb.Leave, now: float) -> None:
    self.books.accounts.depart(member, leave.reason)
    member.state = State.LEFT
    self._gone(member)

  # ------------------------------------------------- who is out, or wrong

  def _gone(self, member: Member) -> None:
    """A member cannot be heard: the attempt goes on without it, or anew."""
    self._transfers.gone(member)
    self.rounds.gone(member.island)

  def _evict(self, member: Member, cause: str) -> None:
    self.books.accounts.depart(member, cause)
    if member.session is not None:
      self._outbox.add(Close(member.session))
      self._admission.ended(member.session)
      member.session = None
    self._gone(member)

  def _repair(self, member: Member, fragments: Sequence[int]) -> None:
    """Some of a member's state is not the run's: its log may mend it."""
    if not self._ties.ask(member.island, fragments):  # or it could not
      self._give_state(member, fragments)
      return
    text = f"{member.island} diverged at record {self.head.number}"
    self._outbox.warn(f"{text}, and replays its log.")
    member.state = State.JOINING
    self.rounds.gone(member.island)
    self.rounds.excuse(member.island)

  def _give_state(self, member: Member, fragments: Sequence[int]) -> None:
    """Some of a member's state is not the run's: it goes back to the others'.

    What it has said of other fragments stays evidence, for those others.
    """
    text = f"{member.island} diverged at record {self.head.number}"
    self._outbox.warn(f"{text}, and is given the others' state.")
    cause = f"its state at record {self.head.number} had diverged"
    self.books.accounts.depart(member, cause)
    member.state, member.record = State.JOINING, -1
    self._ties.retract(member.island, fragments)
    self.rounds.gone(member.island)
    self._transfers.tell_to_wait(member.island)
    welcome = pb.Welcome(
      run_id=self.run_id,
      evicted=True,
      start=pb.Welcome.START_RESTORE,
      head=self.head.number,
    )
    self._outbox.tell(member.island, pb.ToIsland(welcome=welcome))

  # ------------------------------------------------------------- steering

  def control(
    self, request: pb.ControlRequest, now: float
  ) -> tuple[pb.ControlReply, list[CoordinatorAction]]:
    """What an operator wants; the reply may go out once the actions are done."""
    refusal = ""
    if self._stopped or not self.log or self.final:
      refusal = "the run is over, or has not begun: there is nothing to steer"
    elif not self._admission.knows_the_end:
      refusal = "no island is back that knows the newest record: try again soon"
    else:
      try:
        self._steer(request, now)
      except UserError as error:
        refusal = str(error)
    reply = pb.ControlReply(refusal=refusal, record=self.head.number)
    return reply, self._advance(now)

  def _steer(self, request: pb.ControlRequest, now: float) -> None:
    """Makes a change. Raises UserError if it cannot be."""
    books = self.books
    match request.WhichOneof("change"):
      case "evict":
        self._evict_by_order(request.evict.island, request.reason, now)
      case "rollback":
        self._annulments.roll_back(request.rollback.to, request.reason, now)
      case _:
        number = len(self.log)  # of the record that says so
        settings = settings_of(request, books.steering, books.run, number)
        books.change(settings, now)

  def _evict_by_order(self, island: str, reason: str, now: float) -> None:
    """An operator has an island out; a newer process of it may come."""
    member = self._members.members.get(island)
    if member is None or not member.present:
      raise UserError(f"no island {island!r} is in the run")
    who = pb.Eviction(island=island, incarnation=member.incarnation)
    self.books.change(pb.Settings(evicted=who, reason=reason), now)
    self._outbox.refuse(member, f"an operator evicted it: {reason}")
    self._ties.retract(island, range(len(self._ties)))
    self._evict(member, "evicted by an operator")
    member.state = State.LEFT
