"""The shell around an island's side of its rounds: it hears, says and waits.

One thread owns the round's state machine; it hears the coordinator through
the stream (`stream.py`), lets threads reduce and gather (`work.py`) and renews
the membership lease. The training thread asks and waits here, and is never
waited for.
"""

from collections.abc import Callable, Sequence
import math
import queue
import threading
import time

from absl import logging
import grpc

from intellect_jax.elastic import reduce, rpc
from intellect_jax.elastic import round as round_lib
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.describe import relays_at
from intellect_jax.elastic.introduction import Introduction
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.news import News
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.stream import ControlStream
from intellect_jax.elastic.work import ExchangeWork
from intellect_jax.errors import UserError

_BEATS_A_LEASE = 4
_DISK_RETRY = 0.5  # seconds before the next try to write the log
_RECORDS_SENT = 256  # in one message, when the coordinator asks


class Agent:
  """An island's life in the run: from `start` to `close`."""

  def __init__(
    self,
    news: News,
    hello: pb.Hello,
    term: int,
    coordinators: Sequence[str],
    credentials: rpc.Credentials,
    crew: Crew,
    log: RecordLog,
    lease_seconds: float,
    threads: int,
    checkpoints: Callable[[], list[int]],
    on_term: Callable[[int], None],
    use_relays: Callable[[list[str]], bool],
  ):
    """Prepares; nothing runs yet.

    Args:
      news: what the training thread is to know.
      hello: of this island; `has_state`, `record` and `record_hash` say where
        it stands, and are renewed at each reconnection.
      term: the highest that this island has seen.
      coordinators: host:port of each; the next is tried when one is gone.
      crew: the island's processes, which do the exchange work.
      log: of the records.
      lease_seconds: how long the others wait for a sign of life.
      threads: of exchange work.
      checkpoints: records that it can go back to.
      on_term: called with a newly seen higher term, to persist it.
      use_relays: called with the relays that a coordinator names; returns
        whether others reach this island in other ways now.
    """
    self.news = news
    self._introduction = Introduction(hello, log)
    self._term = term
    self._on_term = on_term
    self._use_relays = use_relays
    self._crew = crew
    self._log = log
    self._heartbeat_seconds = lease_seconds / _BEATS_A_LEASE
    self._checkpoints = checkpoints
    start = hello.record if hello.has_state else None
    self._round = round_lib.IslandRound(hello.island, start)
    self._inbox: queue.Queue = queue.Queue()
    self._unanswered: dict[int, pb.FromIsland] = {}  # lease requests by window
    self._ready = False  # said so, since the last welcome
    self._deciding = False  # whether it has a state of its own that counts
    self._owes_hello = False  # until that is decided
    self._owes_offer = False  # until it stands at a state
    self._unread: int | None = None  # the log, from here on: to ask for again
    self._genesis: pb.FromIsland | None = None  # the state this island made
    self._closing = threading.Event()
    self._stream = ControlStream(
      coordinators,
      credentials,
      self._inbox.put,
      self._say_hello,
      self._hear,
      self._hear_nobody,
    )
    self._hands = ExchangeWork(
      hello.island,
      crew,
      threads,
      self._tell_round,
      self.news.fail,
    )
    self._thread = threading.Thread(
      target=self._work, name="agent", daemon=True
    )

  def start(self) -> None:
    self._thread.start()
    self._stream.start()

  def flush(self, timeout: float = 5.0) -> None:
    """Waits until everything said so far is on the stream."""
    done = threading.Event()
    self._inbox.put(done.set)
    done.wait(timeout)

  @property
  def closing(self) -> threading.Event:
    """Set when all work is to end."""
    return self._closing

  def close(self) -> None:
    """Ends the stream, after what was said on it, and all threads."""
    self._closing.set()
    self._inbox.put(lambda: None)
    self._hands.close()
    self._stream.close()
    self._thread.join(timeout=5)

  # ------------------------------------------------- the training thread

  @property
  def standing(self) -> bool:
    """Whether this island's state is one of the run's."""
    return self._round.record is not None

  def say(self, **message) -> None:
    """Sends one message, if the stream is open: say(ready=pb.Ready(…))."""
    self._inbox.put(lambda: self._send(pb.FromIsland(**message)))

  def drop(self, windows: list[pb.Window], cause: str) -> None:
    """These windows will not be proposed: their work is lost."""

    def step() -> None:
      self._introduction.given_up(windows)
      self._beat()  # after how much it has trained
      dropped = pb.Dropped(windows=windows, cause=cause)
      self._send(pb.FromIsland(dropped=dropped))

    self._inbox.put(step)

  def renew_every(self, lease_seconds: float) -> None:
    """The membership lease lasts so long from now on."""

    def step() -> None:
      self._heartbeat_seconds = lease_seconds / _BEATS_A_LEASE
      self._beat()

    self._inbox.put(step)

  def beat(self) -> None:
    """Sends a heartbeat now."""
    self._inbox.put(self._beat)

  def initialised(self, state: pb.StateReady) -> None:
    """This island has made record 0's state."""
    self._genesis = pb.FromIsland(state_ready=state)
    self.stand_at(-1)
    self.say(state_ready=state)

  def request_lease(self, window: int, samples: int) -> None:
    """Asks for the samples of a window; the answer appears in `leases`."""
    request = pb.LeaseRequest(window=window, samples=samples)
    message = pb.FromIsland(lease_request=request)

    def ask() -> None:
      if window not in self._unanswered:  # else it is said at each welcome
        self._unanswered[window] = message
        self._send(message)

    self._inbox.put(ask)

  def propose(self, proposal: pb.Proposal) -> None:
    # Now, and not when it is sent: steps ahead are in no window of it.
    proposal.tokens_trained = self.news.heartbeat.tokens_trained

    def step() -> None:
      if not self.standing:  # what it starts from does not count, nor does it
        self._crew.withdraw(proposal.delta.id)
        return
      self._hands.serves_delta(proposal.fragment, proposal.delta.id)
      self._carry_out(self._round.propose(proposal))

    self._inbox.put(step)

  def stand_at(self, record: int, log: Sequence[pb.SealedRecord] = ()) -> None:
    """This island holds the state of `record`; -1: it is about to make it.

    Returns when `log`, the records up to there, is on the disk.

    Raises:
      Exception: what ended the agent's thread, such as a disk that failed.
    """
    done = threading.Event()

    def step() -> None:
      self._write(lambda: self._crew.write(log))
      self._carry_out(self._round.stand(record))
      with self.news.changed:
        self.news.initialise = False  # also if it was asked for twice
      self._decided()
      self._read_log(record + 1)
      done.set()

    self._inbox.put(step)
    while not (done.wait(0.1) or self._closing.is_set()):
      if self.news.failure is not None:
        raise self.news.failure

  def stand_nowhere(self, reason: str) -> None:
    """This island has no state of its own that counts: it asks for one."""

    def step() -> None:
      self._send(pb.FromIsland(fetch_failed=pb.FetchFailed(reason=reason)))
      self._decided()

    self._inbox.put(step)

  def rechecked(self, answer: pb.Rechecked) -> None:
    """Tells what this island's log comes to, and that it may go on."""

    def step() -> None:
      self._send(pb.FromIsland(rechecked=answer))
      self._say_ready()

    self._inbox.put(step)

  def withdraw(self) -> None:
    """What was proposed starts from a state that was not the run's."""

    def step() -> None:
      self._carry_out(self._round.withdraw())
      self._hands.withdraw_deltas()

    self._inbox.put(step)

  def get_log(self) -> list[pb.SealedRecord]:
    """All committed records, from the coordinator."""
    return self._stream.read_log(0)

  # ---------------------------------------------------- the agent's thread

  def _say_hello(self) -> None:
    """Where this island stands, first of all on a new stream."""
    if self._deciding:
      self._owes_hello = True
      return
    self._introduction.hello.addresses[:] = self._crew.addresses()
    said = self._introduction.say(self._round.record, self.news.heartbeat)
    self._send(said)

  def _decided(self) -> None:
    """It stands at a state, or knows that it has none."""
    self._deciding = False
    if self._owes_hello:
      self._owes_hello = False
      self._say_hello()
    if self._owes_offer:
      self._owes_offer = False
      self._on_offer_state(pb.OfferState())

  def _send(self, message: pb.FromIsland) -> None:
    addressed = pb.FromIsland(term=self._term)
    addressed.MergeFrom(message)
    self._stream.send(addressed)

  def _work(self) -> None:
    last_beat = -math.inf
    while not self._closing.is_set():
      try:
        wait = last_beat + self._heartbeat_seconds - time.monotonic()
        work = self._inbox.get(timeout=max(0.0, wait))
      except queue.Empty:
        work = None
      try:
        if work is not None:
          work()
        if time.monotonic() >= last_beat + self._heartbeat_seconds:
          self._beat()
          self._read_on()
          last_beat = time.monotonic()
      except Exception as error:  # nobody else could tell the operator
        logging.exception("The island's agent failed.")
        self.news.fail(error)

  def _beat(self) -> None:
    """Renews the lease and tells the operator's screen."""
    with self.news.changed:
      heartbeat = pb.Heartbeat()
      heartbeat.CopyFrom(self.news.heartbeat)
    waiting = self.news.trouble or self.news.waiting_for
    if waiting:  # which may take any time
      heartbeat.activity = waiting
      heartbeat.busy_seconds = 0
    heartbeat.checkpoints.extend(self._checkpoints())
    sent, relayed, received = self._crew.traffic()
    heartbeat.bytes_sent = sent
    heartbeat.bytes_relayed = relayed
    heartbeat.bytes_received = received
    heartbeat.upload_rate, heartbeat.download_rate = self._crew.rates()
    self._send(pb.FromIsland(heartbeat=heartbeat))

  def _hear(self, message: pb.ToIsland) -> None:
    if message.term < self._term:
      return  # a coordinator that has been replaced
    if message.term > self._term:
      self._term = message.term
      self._write(lambda: self._on_term(message.term))
    self.news.silent_since = None
    kind = message.WhichOneof("message")
    if kind is not None:
      getattr(self, f"_on_{kind}")(getattr(message, kind))
    with self.news.changed:
      self.news.changed.notify_all()

  def _hear_nobody(self) -> None:
    if self.news.silent_since is None:
      self.news.silent_since = time.monotonic()

  def _on_welcome(self, welcome: pb.Welcome) -> None:
    relays = relays_at(self._stream.coordinator, welcome.relays)
    if relays and self._use_relays(relays):
      self._say_hello()  # with other addresses than it was welcomed with
    self._ready = False
    self._introduction.hello.run_id = welcome.run_id
    with self.news.changed:
      self.news.welcome = welcome
      self.news.head = welcome.head
      if welcome.evicted:
        self.news.evicted = True
        self.news.leases.clear()  # they ended with its membership
    if welcome.evicted:
      self._introduction.leases_ended()
      self._carry_out(self._round.withdraw())
      self._hands.withdraw_deltas()
    record = self._round.record
    if welcome.start == pb.Welcome.START_GO_ON and record is not None:
      if welcome.head > record:
        self._read_log(record + 1)
      else:
        self._say_ready()
    elif welcome.start == pb.Welcome.START_GO_BACK:
      self._owes_hello = True  # once it has found out where it can stand
      self._carry_out([round_lib.Diverged(-1, -1)])
    elif welcome.start == pb.Welcome.START_RESTORE:
      self._forget_state()
    elif welcome.start == pb.Welcome.START_INITIALISE:
      if record != -1:
        self._forget_state()  # if it stands at one, that is of another chain
        with self.news.changed:
          self.news.initialise = True
      elif self._genesis:
        self._send(self._genesis)  # it may not have been heard
    for request in self._unanswered.values():
      self._send(request)

  def _forget_state(self) -> None:
    """What this island stands at is of no use; a Restore follows."""
    self._carry_out(self._round.withdraw())
    self._hands.withdraw_deltas()
    self._round.forget()
    with self.news.changed:
      self.news.adopted.clear()

  def _on_refusal(self, refusal: pb.Refusal) -> None:
    self.news.fail(UserError(refusal.reason))

  def _on_restore(self, restore: pb.Restore) -> None:
    with self.news.changed:
      self.news.restores.append(restore)

  def _on_recheck(self, recheck: pb.Recheck) -> None:
    with self.news.changed:
      self.news.rechecks.append(recheck)

  def _on_offer_state(self, offer: pb.OfferState) -> None:
    if self._deciding:  # what it has now is not what the run has
      self._owes_offer = True
      return
    if self._round.record is None or self._round.record < 0:
      return  # it waits for one itself, or makes the first

    def work() -> None:
      ready = self._crew.offer()
      self.say(state_ready=ready)

    self._hands.submit(work)

  def _on_lease_grant(self, grant: pb.LeaseGrant) -> None:
    self._unanswered.pop(grant.window, None)
    self._introduction.granted(grant)
    with self.news.changed:
      self.news.leases[grant.window] = [
        (i.start, i.stop) for i in grant.samples
      ]

  def _on_plan(self, plan: pb.Plan) -> None:
    self._carry_out(self._round.plan(plan))

  def _on_fix(self, fix: pb.Fix) -> None:
    self._carry_out(self._round.fix(fix))

  def _on_record(self, sealed: pb.SealedRecord) -> None:
    self.news.head = pb.Record.FromString(sealed.body).number
    self._carry_out(self._round.committed([sealed]))

  def _on_closing(self, closing: pb.Closing) -> None:
    self._carry_out(self._round.closing(closing))

  def _on_ask_records(self, ask: pb.AskRecords) -> None:
    """The coordinator's log is shorter than this island's."""
    head = self._introduction.hello.head
    records = pb.Records(end=head + 1)
    for number in range(ask.start, min(head + 1, ask.start + _RECORDS_SENT)):
      sealed = self._log.record(number)
      if sealed is None:
        break
      records.records.append(sealed)
    self._send(pb.FromIsland(records=records))

  def _on_finished(self, finished: pb.Finished) -> None:
    with self.news.changed:
      self.news.finished = True

  def _read_log(self, start: int) -> None:
    def work() -> None:
      try:
        records = self._stream.read_log(start)
        self._tell_round(lambda round: round.committed(records))
        self._inbox.put(self._say_ready)
      except grpc.RpcError as error:  # with the stream, or while that goes on
        logging.info("Reading the log failed: %s", error)
        self._inbox.put(lambda: setattr(self, "_unread", start))

    self._hands.submit(work)

  def _read_on(self) -> None:
    """Asks again for what of the log could not be read."""
    start, self._unread = self._unread, None
    if start is not None:
      self._read_log(start)

  def _say_ready(self) -> None:
    """Says so, if the log is read and its last mean is at hand."""
    welcome, record = self.news.welcome, self._round.record
    if welcome is None or record is None or record < 0:
      return  # there is no state to be ready with
    if record >= welcome.head:
      self._ready = True
      self._send(pb.FromIsland(ready=pb.Ready(record=record)))
      self._carry_out(self._round.reconnected())

  # ------------------------------------------------------ the round's work

  def _tell_round(
    self, event: Callable[[round_lib.IslandRound], list[round_lib.Action]]
  ) -> None:
    """Tells the round of something, from any thread."""
    self._inbox.put(lambda: self._carry_out(event(self._round)))

  def _carry_out(self, actions: list[round_lib.Action]) -> None:
    for action in actions:
      match action:
        case round_lib.Send(message):
          self._send(message)
        case round_lib.Cancel(fragment):
          self._hands.cancel(fragment)
        case round_lib.Reduce(plan, index):
          self._hands.reduce(plan, index)
        case round_lib.Gather():
          self._hands.gather(action)
        case round_lib.Adopt(record, sealed):
          self._adopt(record, sealed)
        case round_lib.ReadLog(start):
          self._read_log(start)
        case round_lib.HandIn(number, fragment):
          with self.news.changed:
            self.news.hand_in[fragment] = number
            self.news.changed.notify_all()
        case round_lib.Keep(sealed):
          self._write(lambda s=sealed: self._crew.write([s]))
        case round_lib.Diverged(record, to):
          self._forget_state()
          self._ready, self._deciding = False, True
          with self.news.changed:
            self.news.annulled = record, to
            self.news.changed.notify_all()

  def _write(self, write: Callable[[], object]) -> None:
    """Writes to the disk; while that is full, says so and tries again.

    Nothing else is done meanwhile: what comes stands on what is written.
    """
    while True:
      try:
        write()
        self.news.trouble = ""
        return
      except (OSError, reduce.MemberError) as error:
        logging.error("The log cannot be written: %s", error)
        self.news.trouble = f"waiting for the disk: {error}"
        self._beat()
        if self._closing.wait(_DISK_RETRY):
          raise

  def _adopt(self, record: pb.Record, sealed: pb.SealedRecord) -> None:
    self._write(lambda: self._crew.adopt(sealed))
    if record.HasField("step"):  # else it is proposed again
      self._hands.withdraw_delta(record.step.fragment)
    self._introduction.decided(record)
    with self.news.changed:
      self.news.adopted.append(record)
      self.news.changed.notify_all()
    if not self._ready:
      self._say_ready()
