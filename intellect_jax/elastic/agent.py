"""The shell around an island's side of its rounds: a stream, workers, a clock.

One thread owns the round's state machine; it hears the coordinator, lets
workers reduce and gather, and renews the membership lease. The training thread
asks and waits here, and is never waited for.
"""

import collections
from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import itertools
import queue
import random
import threading
import time

from absl import logging
import grpc

from intellect_jax.elastic import blobs, reduce, rpc
from intellect_jax.elastic import round as round_lib
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import elastic_pb2_grpc as pb_grpc
from intellect_jax.elastic.samples import Interval
from intellect_jax.elastic.shelf import MeanShelf
from intellect_jax.errors import UserError

_BACKOFF = 0.2, 5.0  # seconds between tries to reach the coordinator
_LATE_RETRY = 1.0  # seconds before a committed mean is asked for again
_RECORDS_SENT = 256  # in one message, when the coordinator asks
_END = None


def describe(
  coordinators: Sequence[str], credentials: rpc.Credentials, patience: float
) -> pb.Description:
  """What a newcomer must know, from the first coordinator that answers.

  Waits `patience` seconds for one that is just being started.

  Raises:
    UserError: if nobody answers, or in another protocol.
  """
  end = time.monotonic() + patience
  for address in itertools.cycle(coordinators):
    left = max(_BACKOFF[0], end - time.monotonic())
    with rpc.channel(address, credentials) as channel:
      stub = pb_grpc.CoordinatorStub(channel)
      try:
        return _checked(
          stub.Describe(pb.DescribeRequest(), timeout=left), address
        )
      except grpc.RpcError as error:
        if time.monotonic() + _BACKOFF[0] >= end:
          raise UserError(
            f"No coordinator answered at {' or '.join(coordinators)} within"
            f" {patience:g} s. Check --coordinator, and that one runs: python"
            " -m intellect_jax.coordinator --config=… --listen=… --workdir=…"
          ) from error
    time.sleep(_BACKOFF[0])
  raise UserError("--coordinator is an empty list; name a host:port.")


def _checked(description: pb.Description, address: str) -> pb.Description:
  """The description, in our protocol, its relays with their hosts."""
  if description.protocol != rpc.PROTOCOL_VERSION:
    raise UserError(
      f"The coordinator at {address} speaks protocol {description.protocol},"
      f" this island {rpc.PROTOCOL_VERSION}. Run the same version of"
      " intellect_jax on both."
    )
  host = address.rpartition(":")[0]
  relays = [host + r if r.startswith(":") else r for r in description.relays]
  description.relays[:] = relays
  return description


@dataclasses.dataclass
class Progress:
  """What the training thread last said about itself."""

  heartbeat: pb.Heartbeat = dataclasses.field(default_factory=pb.Heartbeat)
  waiting_for: str = ""  # shown instead of the heartbeat's activity


class Agent:
  """An island's life in the run: from `start` to `close`.

  Attributes that the training thread reads after `wait`: `welcome`,
  `restores`, `leases`, `adopted`; the condition that guards them is `changed`.
  """

  def __init__(
    self,
    hello: pb.Hello,
    term: int,
    coordinators: Sequence[str],
    credentials: rpc.Credentials,
    exchange: reduce.Exchange,
    log: RecordLog,
    shelf: MeanShelf,
    mean_bytes: int,
    lease_seconds: float,
    threads: int,
    offer_state: Callable[[], pb.StateReady],
    on_term: Callable[[int], None],
  ):
    """Prepares; nothing runs yet.

    Args:
      hello: of this island; `has_state`, `record` and `record_hash` say where
        it stands, and are renewed at each reconnection.
      term: the highest that this island has seen.
      coordinators: host:port of each; the next is tried when one is gone.
      mean_bytes: length of an encoded mean.
      threads: of exchange work.
      offer_state: snapshots and publishes this island's state.
      on_term: called with a newly seen higher term, to persist it.
    """
    self.changed = threading.Condition()
    self.welcome: pb.Welcome | None = None
    self.evicted = False  # since the training thread last looked
    self.hand_in = 0  # record that what is trained had better be proposed for
    self.restores: collections.deque[pb.Restore] = collections.deque()
    self.leases: dict[int, list[Interval]] = {}
    self.adopted: collections.deque[pb.Record] = collections.deque()
    self.progress = Progress()
    self._failure: Exception | None = None  # why the island must end
    self._finished = False
    self._hello = hello
    self._term = term
    self._on_term = on_term
    self._channels = [rpc.channel(a, credentials) for a in coordinators]
    self._stub = pb_grpc.CoordinatorStub(self._channels[0])
    self._exchange = exchange
    self._log = log
    self._shelf = shelf
    self._mean_bytes = mean_bytes
    self._heartbeat_seconds = lease_seconds / 4
    self._offer_state = offer_state
    start = hello.record if hello.has_state else None
    self._round = round_lib.IslandRound(hello.island, start)
    self._inbox: queue.Queue = queue.Queue()
    self._outgoing: queue.Queue | None = None  # of the stream that is open
    self._unanswered: dict[int, pb.FromIsland] = {}  # lease requests by window
    self._silent_since: float | None = None
    self._cancelled = threading.Event()  # of the open attempt
    self._ready = False  # said so, since the last welcome
    self._genesis: pb.FromIsland | None = None  # the state this island made
    self._delta = b""  # id of the delta that is served
    self._share = b""  # id of the share that was reduced last
    self._closing = threading.Event()
    self._workers = concurrent.futures.ThreadPoolExecutor(
      threads, thread_name_prefix="exchange"
    )
    self._fetchers = concurrent.futures.ThreadPoolExecutor(
      max(threads, 8), thread_name_prefix="gather"
    )
    self._threads = [
      threading.Thread(target=self._work, name="agent", daemon=True),
      threading.Thread(target=self._attend, name="attend", daemon=True),
    ]

  def start(self) -> None:
    for thread in self._threads:
      thread.start()

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
    self._cancelled.set()
    outgoing = self._outgoing
    if outgoing is not None:
      outgoing.put(_END)
    self._inbox.put(lambda: None)
    for thread in self._threads:
      thread.join(timeout=5)
    self._workers.shutdown(wait=False, cancel_futures=True)
    self._fetchers.shutdown(wait=False, cancel_futures=True)
    for channel in self._channels:
      channel.close()

  # ------------------------------------------------- the training thread

  def wait(
    self, ready: Callable[[], bool], reason: str, timeout: float | None = None
  ) -> bool:
    """Waits until `ready()`; what for is shown to the operator meanwhile.

    Returns:
      Whether it is ready; False after `timeout` seconds.

    Raises:
      UserError: if the coordinator refuses this island.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
      with self.changed:
        while not ready():
          if self._failure is not None:
            raise self._failure
          if self._finished:
            return False
          if deadline is not None and time.monotonic() > deadline:
            return False
          self.progress.waiting_for = f"waiting for {reason}{self._silence()}"
          self.changed.wait(0.5)
        return True
    finally:
      self.progress.waiting_for = ""

  def _silence(self) -> str:
    since = self._silent_since
    if since is None:
      return ""
    return f" (coordinator unreachable for {time.monotonic() - since:.0f} s)"

  @property
  def has_news(self) -> bool:
    """Whether the training thread should look: a record, a state, eviction."""
    return bool(self.adopted) or bool(self.restores) or self.evicted

  @property
  def standing(self) -> bool:
    """Whether this island's state is one of the run's."""
    return self._round.record is not None

  @property
  def finished(self) -> bool:
    """The coordinator said that the run is over."""
    return self._finished

  def say(self, **message) -> None:
    """Sends one message, if the stream is open: say(ready=pb.Ready(…))."""
    self._inbox.put(lambda: self._send(pb.FromIsland(**message)))

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
      self._unanswered[window] = message
      self._send(message)

    self._inbox.put(ask)

  def propose(self, proposal: pb.Proposal) -> None:
    def step() -> None:
      self._withdraw_delta()
      self._delta = proposal.delta.id
      proposal.tokens_trained = self.progress.heartbeat.tokens_trained
      self._carry_out(self._round.propose(proposal))

    self._inbox.put(step)

  def stand_at(self, record: int, log: Sequence[pb.SealedRecord] = ()) -> None:
    """This island holds the state of `record`; -1: it is about to make it.

    Returns when `log`, the records up to there, is on the disk.
    """
    done = threading.Event()

    def step() -> None:
      for sealed in log:
        self._log.adopt(sealed)
      self._carry_out(self._round.stand(record))
      self._read_log(record + 1)
      done.set()

    self._inbox.put(step)
    while not (done.wait(0.1) or self._closing.is_set()):
      pass

  def get_log(self) -> list[pb.SealedRecord]:
    """All committed records, from the coordinator."""
    return list(self._stub.ReadLog(pb.ReadLogRequest(start=0), timeout=60))

  # ------------------------------------------------------ the open stream

  def _attend(self) -> None:
    """Keeps the control stream open; each break is told to the agent."""
    pause = _BACKOFF[0]
    for channel in itertools.cycle(self._channels):
      if self._closing.is_set():
        return
      self._stub = pb_grpc.CoordinatorStub(channel)
      outgoing: queue.Queue = queue.Queue()
      self._inbox.put(lambda q=outgoing: self._connected(q))
      try:
        for message in self._stub.Attend(iter(outgoing.get, _END)):
          pause = _BACKOFF[0]
          self._inbox.put(lambda m=message: self._hear(m))
      except grpc.RpcError as error:
        if not self._closing.is_set():
          logging.info("The control stream broke: %s", error)
      outgoing.put(_END)
      self._inbox.put(self._disconnected)
      if not self._closing.is_set():
        self._closing.wait(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _BACKOFF[1])

  def _connected(self, outgoing: queue.Queue) -> None:
    self._outgoing = outgoing
    record = self._round.record
    if record is not None and record >= 0:
      sealed = self._log.record(record)
      self._hello.has_state = True
      self._hello.record = record
      self._hello.record_hash = sealed.hash if sealed is not None else b""
      self._hello.head = max(self._hello.head, record)
      while self._log.record(self._hello.head + 1) is not None:
        self._hello.head += 1
    self._hello.tokens_trained = self.progress.heartbeat.tokens_trained
    self._send(pb.FromIsland(hello=self._hello))

  def _disconnected(self) -> None:
    self._outgoing = None
    if self._silent_since is None:
      self._silent_since = time.monotonic()

  def _send(self, message: pb.FromIsland) -> None:
    if self._outgoing is not None:
      addressed = pb.FromIsland(term=self._term)
      addressed.MergeFrom(message)
      self._outgoing.put(addressed)

  # ---------------------------------------------------- the agent's thread

  def _work(self) -> None:
    next_beat = time.monotonic()
    while not self._closing.is_set():
      try:
        work = self._inbox.get(timeout=max(0.0, next_beat - time.monotonic()))
      except queue.Empty:
        work = None
      try:
        if work is not None:
          work()
        if time.monotonic() >= next_beat:
          self._beat()
          next_beat = time.monotonic() + self._heartbeat_seconds
      except Exception as error:  # nobody else could tell the operator
        logging.exception("The island's agent failed.")
        self._fail(error)

  def _fail(self, error: Exception) -> None:
    with self.changed:
      self._failure = error
      self.changed.notify_all()

  def _beat(self) -> None:
    """Renews the lease and tells the operator's screen."""
    with self.changed:
      heartbeat = pb.Heartbeat()
      heartbeat.CopyFrom(self.progress.heartbeat)
    heartbeat.activity = self.progress.waiting_for or heartbeat.activity
    heartbeat.bytes_sent = self._exchange.store.bytes_sent
    heartbeat.bytes_relayed = self._exchange.store.bytes_relayed
    heartbeat.bytes_received = self._exchange.fetcher.bytes_received
    self._send(pb.FromIsland(heartbeat=heartbeat))

  def _hear(self, message: pb.ToIsland) -> None:
    if message.term < self._term:
      return  # a coordinator that has been replaced
    if message.term > self._term:
      self._term = message.term
      self._on_term(message.term)
    self._silent_since = None
    kind = message.WhichOneof("message")
    if kind is not None:
      getattr(self, f"_on_{kind}")(getattr(message, kind))
    with self.changed:
      self.changed.notify_all()

  def _on_welcome(self, welcome: pb.Welcome) -> None:
    self._ready = False
    self._hello.run_id = welcome.run_id
    with self.changed:
      self.welcome = welcome
      self.evicted |= welcome.evicted
    if welcome.evicted:
      self._carry_out(self._round.withdraw())
      self._withdraw_delta()
    record = self._round.record
    if welcome.start == pb.Welcome.START_GO_ON and record is not None:
      if welcome.head > record:
        self._read_log(record + 1)
      else:
        self._say_ready()
    elif welcome.start == pb.Welcome.START_RESTORE:
      self._forget_state()
    elif welcome.start == pb.Welcome.START_INITIALISE and self._genesis:
      self._send(self._genesis)  # it may not have been heard
    for request in self._unanswered.values():
      self._send(request)

  def _forget_state(self) -> None:
    """What this island stands at is of no use; a Restore follows."""
    self._carry_out(self._round.withdraw())
    self._withdraw_delta()
    self._round.forget()
    with self.changed:
      self.adopted.clear()

  def _on_refusal(self, refusal: pb.Refusal) -> None:
    self._fail(UserError(refusal.reason))

  def _on_restore(self, restore: pb.Restore) -> None:
    with self.changed:
      self.restores.append(restore)

  def _on_offer_state(self, offer: pb.OfferState) -> None:
    def work() -> None:
      ready = self._offer_state()
      self.say(state_ready=ready)

    self._workers.submit(work)

  def _on_lease_grant(self, grant: pb.LeaseGrant) -> None:
    self._unanswered.pop(grant.window, None)
    with self.changed:
      self.leases[grant.window] = [(i.start, i.stop) for i in grant.samples]

  def _on_plan(self, plan: pb.Plan) -> None:
    self._carry_out(self._round.plan(plan))

  def _on_fix(self, fix: pb.Fix) -> None:
    self._carry_out(self._round.fix(fix))

  def _on_record(self, sealed: pb.SealedRecord) -> None:
    self._carry_out(self._round.committed([sealed]))

  def _on_closing(self, closing: pb.Closing) -> None:
    self._carry_out(self._round.closing(closing))

  def _on_ask_records(self, ask: pb.AskRecords) -> None:
    """The coordinator's log is shorter than this island's."""
    head = self._hello.head
    records = pb.Records(end=head + 1)
    for number in range(ask.start, min(head + 1, ask.start + _RECORDS_SENT)):
      sealed = self._log.record(number)
      if sealed is None:
        break
      records.records.append(sealed)
    self._send(pb.FromIsland(records=records))

  def _on_finished(self, finished: pb.Finished) -> None:
    with self.changed:
      self._finished = True

  def _read_log(self, start: int) -> None:
    def work() -> None:
      try:
        request = pb.ReadLogRequest(start=start)
        records = list(self._stub.ReadLog(request, timeout=60))
        committed = self._round.committed
        self._inbox.put(lambda: self._carry_out(committed(records)))
        self._inbox.put(self._say_ready)
      except grpc.RpcError as error:
        logging.info("Reading the log failed: %s", error)  # asked at next hello

    self._workers.submit(work)

  def _say_ready(self) -> None:
    """Says so, if the log is read and its last mean is at hand."""
    welcome, record = self.welcome, self._round.record
    if welcome is None or record is None or record < 0:
      return  # there is no state to be ready with
    if record >= welcome.head:
      self._ready = True
      self._send(pb.FromIsland(ready=pb.Ready(record=record)))
      self._carry_out(self._round.reconnected())

  # ------------------------------------------------------ the round's work

  def _carry_out(self, actions: list[round_lib.Action]) -> None:
    for action in actions:
      match action:
        case round_lib.Send(message):
          self._send(message)
        case round_lib.Cancel():
          self._cancelled.set()
          self._cancelled = threading.Event()
        case round_lib.Reduce(plan, index):
          self._withdraw_share()
          self._workers.submit(self._reduce, plan, index, self._cancelled)
        case round_lib.Gather():
          end = self._closing if action.late else self._cancelled
          self._workers.submit(self._gather, action, end)
        case round_lib.Adopt(record, sealed):
          self._adopt(record, sealed)
        case round_lib.ReadLog(start):
          self._read_log(start)
        case round_lib.HandIn(number):
          with self.changed:
            self.hand_in = number
            self.changed.notify_all()
        case round_lib.Diverged(record):
          reason = f"record {record}, at which it stands, was annulled"
          self._forget_state()
          self._send(pb.FromIsland(fetch_failed=pb.FetchFailed(reason=reason)))

  def _reduce(
    self, plan: pb.Plan, index: int, cancelled: threading.Event
  ) -> None:
    exchange = self._exchange
    try:
      mean, squares = exchange.reduce_share(plan, index, cancelled)
      chunk = blobs.chunk_bytes(self._mean_bytes, exchange.codec.block_bytes)
      report = pb.ShareReduced(
        attempt=plan.attempt,
        share=index,
        mean=exchange.store.publish(mean, chunk),
        squared_norms=squares,
      )
      self._share = report.mean.id
      self._inbox.put(lambda: self._carry_out(self._round.reduced(report)))
    except Exception as error:
      self._not_done(error, plan.attempt)

  def _gather(
    self, action: round_lib.Gather, cancelled: threading.Event
  ) -> None:
    try:
      attempt = action.attempt
      into = self._shelf.open(attempt)
      self._exchange.gather(action, into, cancelled, self._fetchers.submit)
      self._shelf.put(attempt, action.shares, into)
      self._inbox.put(lambda: self._carry_out(self._round.gathered(attempt)))
    except Exception as error:
      if action.late and not isinstance(error, blobs.Cancelled):
        logging.info("Record %d has no mean yet: %s", action.late, error)
        self._closing.wait(_LATE_RETRY)
        retry = self._round.late_fetch_failed
        self._inbox.put(lambda: self._carry_out(retry(action.late)))
      else:
        self._not_done(error, action.attempt)

  def _not_done(self, error: Exception, attempt: bytes) -> None:
    """Tells the coordinator who did not deliver, unless nobody asks now."""
    if isinstance(error, blobs.Cancelled) or self._closing.is_set():
      return
    if isinstance(error, OSError):  # such as a full disk: others go on
      error = reduce.MemberError(self._hello.island, str(error))
    if not isinstance(error, reduce.MemberError):
      logging.exception("Exchange work failed.", exc_info=error)
      self._fail(error)
      return
    logging.warning("An attempt failed: %s", error)
    failed = self._round.failed
    self._inbox.put(
      lambda: self._carry_out(failed(attempt, error.island, error.reason))
    )

  def _adopt(self, record: pb.Record, sealed: pb.SealedRecord) -> None:
    self._shelf.adopt(sealed)
    self._workers.submit(self._log.sync, record.number)
    if record.HasField("step"):  # else it is proposed again
      self._withdraw_delta()
    with self.changed:
      self.adopted.append(record)
      self.changed.notify_all()
    if not self._ready:
      self._say_ready()

  def _withdraw_share(self) -> None:
    """The share of the attempt before: who needs it has the whole mean."""
    self._exchange.store.withdraw(self._share)
    self._share = b""

  def _withdraw_delta(self) -> None:
    self._exchange.store.withdraw(self._delta)
    self._delta = b""
