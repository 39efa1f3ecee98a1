"""The shell around the coordinator's state machine: gRPC, SQLite, a clock.

One thread owns the state machine. Whatever happens, a message, a broken
stream, a tick, comes to it through one queue; what the machine wants done is
done in the machine's order, so that a record is durable before it is told.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import itertools
import pathlib
import queue
import random
import threading
import time

from absl import logging
import grpc
from ml_collections import ConfigDict

from intellect_jax import config as config_lib
from intellect_jax.elastic import actions as actions_lib
from intellect_jax.elastic import rpc
from intellect_jax.elastic.coordination import Coordinator
from intellect_jax.elastic.ledger import FILE, Ledger
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import elastic_pb2_grpc as pb_grpc
from intellect_jax.elastic.recovery import TERMS, Recovery

_TICK = 0.1  # seconds
_MAX_ISLANDS = 64  # control streams, a thread each
_QUEUED = 10_000  # messages for one island before it counts as dead
_PATIENCE = 30  # seconds for the machine's thread to answer
_END = None  # ends an outgoing queue


class CoordinatorService(pb_grpc.CoordinatorServicer):
  """A coordinator that serves one run, until `close`."""

  def __init__(
    self,
    run: ConfigDict,
    workdir: pathlib.Path,
    listen: str = "127.0.0.1:0",
    credentials: rpc.Credentials = rpc.LOOPBACK,
    relays: Sequence[str] = (),
    on_record: Callable[[pb.Record, pb.Status], None] | None = None,
    recover: bool = False,
    force: bool = False,
  ):
    """Opens the ledger in `workdir`, starts a term, listens.

    `recover`: the ledger is lost, and the islands have the run's records;
    `force`: also if too few of them answer to be sure.

    `relays` are told to islands: host:port, or :port at this very host.
    `on_record` is called from the coordinator's thread after each record.
    """
    self._run = run
    self._relays = relays
    self._ledger = Ledger(workdir / FILE)
    try:
      now = time.monotonic()
      self._machine: Coordinator | Recovery
      if recover:
        self._ledger.check_empty()
        serial = random.randrange(TERMS)
        self._machine = Recovery(run, force, serial, now)
      else:
        history = self._ledger.open_run(
          config_lib.digest(run), config_lib.to_json(run)
        )
        self._machine = Coordinator(run, history, now)
      self._on_record = on_record
      self._inbox: queue.Queue = queue.Queue()
      self._outboxes: dict[int, queue.Queue] = {}
      self._sessions = itertools.count(1)
      self._closing = threading.Event()
      self.done = threading.Event()  # the run is over and everyone has left
      self.stopped = ""  # why it ended before the run was over
      self._server = rpc.server(_MAX_ISLANDS + 8, credentials)
      pb_grpc.add_CoordinatorServicer_to_server(self, self._server)
      self.address = rpc.listen(self._server, listen, credentials)
    except BaseException:
      self._ledger.close()
      raise
    self._thread = threading.Thread(
      target=self._work, name="coordinator", daemon=True
    )
    self._thread.start()

  def status(self) -> pb.Status:
    """What an operator sees."""
    return self._ask(lambda machine: machine.status(time.monotonic()))

  def description(self) -> pb.Description:
    """What a newcomer must know.

    While the run is being recovered without a run id: islands know it.
    """
    machine = self._machine
    description = pb.Description(
      protocol=rpc.PROTOCOL_VERSION,
      run_json=config_lib.to_json(self._run),
      run_digest=config_lib.digest(self._run),
      relays=self._relays,
    )
    if isinstance(machine, Coordinator):
      description.run_id, description.term = machine.run_id, machine.term
    return description

  def close(self) -> None:
    """Ends all streams; the run goes on with the next coordinator."""
    self._closing.set()
    for session in list(self._outboxes):
      self._end(session)  # after what was said to it
    self._server.stop(grace=0.5).wait()
    self._inbox.put(lambda: None)
    self._thread.join()
    self._ledger.close()

  # ----------------------------------------------------------------- RPCs

  def Describe(self, request, context) -> pb.Description:
    return self.description()

  def GetStatus(self, request, context) -> pb.Status:
    return self.status()

  def Control(self, request, context) -> pb.ControlReply:
    def change(machine: Coordinator | Recovery):
      if isinstance(machine, Recovery):
        return pb.ControlReply(refusal=machine.describe())
      reply, actions = machine.control(request, time.monotonic())
      self._carry_out(actions)
      return reply

    try:
      reply = self._ask(change)
    except Exception as error:
      context.abort(grpc.StatusCode.UNAVAILABLE, f"it failed: {error}")
    if self.stopped:  # the change may not be on the disk
      context.abort(grpc.StatusCode.UNAVAILABLE, self.stopped)
    return reply

  def ReadLog(self, request, context) -> Iterator[pb.SealedRecord]:
    log, holders = self._ask(lambda m: (list(m.log), m.holders()))
    if self.stopped:  # its newest record may not be on the disk
      context.abort(grpc.StatusCode.UNAVAILABLE, self.stopped)
    for sealed in log[request.start :]:
      yield pb.SealedRecord(body=sealed.body, hash=sealed.hash, holders=holders)

  def Attend(self, request_iterator, context) -> Iterator[pb.ToIsland]:
    session = next(self._sessions)
    outbox: queue.Queue = queue.Queue()
    self._outboxes[session] = outbox
    threading.Thread(
      target=self._listen_to,
      args=(session, request_iterator),
      name=f"session-{session}",
      daemon=True,
    ).start()
    while True:
      try:
        message = outbox.get(timeout=1.0)
      except queue.Empty:
        if self._closing.is_set() or not context.is_active():
          return
        continue
      if message is _END:
        return
      yield message

  def _listen_to(self, session: int, messages) -> None:
    try:
      for message in messages:
        self._post(
          lambda m, s=session, x=message: m.handle(s, x, time.monotonic())
        )
    except grpc.RpcError:
      pass  # the stream broke, which is what is said next
    self._post(lambda m: m.disconnected(session, time.monotonic()))
    self._end(session)

  # --------------------------------------------------- the machine's thread

  def _post(self, step: Callable) -> None:
    def work() -> None:
      if not self.stopped:
        self._carry_out(step(self._machine))

    self._inbox.put(work)

  def _ask(self, question: Callable):
    """The answer to a question that the machine's thread is asked."""
    answer: concurrent.futures.Future = concurrent.futures.Future()

    def work() -> None:
      try:
        answer.set_result(question(self._machine))
      except Exception as error:
        answer.set_exception(error)
        raise

    self._inbox.put(work)
    for _ in range(_PATIENCE):
      done, _ = concurrent.futures.wait([answer], timeout=1.0)
      if done or self._closing.is_set():
        break
    return answer.result(timeout=0)

  def _work(self) -> None:
    next_tick = time.monotonic()
    while not self._closing.is_set():
      wait = max(0.0, next_tick - time.monotonic())
      try:
        work = self._inbox.get(timeout=wait)
      except queue.Empty:
        work = None
      try:
        if work is not None:
          work()
        now = time.monotonic()
        if now >= next_tick:
          next_tick = now + _TICK
          self._tick(now)
      except Exception as error:  # a full disk, say: nothing more is promised
        logging.exception("The coordinator failed.")
        self._stop(f"it failed ({error}); mend that and start it again")

  def _tick(self, now: float) -> None:
    if not self.stopped:
      if isinstance(self._machine, Recovery):
        self._try_to_recover(self._machine, now)
      else:
        self._carry_out(self._machine.tick(now))
        if self._machine.done():
          self.done.set()

  def _try_to_recover(self, recovery: Recovery, now: float) -> None:
    """Once enough islands were heard, a coordinator takes over."""
    history = recovery.history(now)
    if history is None:
      return
    lost = recovery.may_be_lost()
    if lost:
      logging.warning("Recovered by force: %s", lost)
    run = self._run
    self._ledger.recovered(
      history, config_lib.digest(run), config_lib.to_json(run)
    )
    self._machine = Coordinator(run, history, now)
    for session, hello in recovery.hellos.items():
      self._carry_out(self._machine.handle(session, hello, now))

  def _carry_out(self, actions: list[actions_lib.CoordinatorAction]) -> None:
    """Does what the machine wants, in its order."""
    for action in actions:
      match action:
        case actions_lib.Tell(session, message):
          if message.HasField("welcome"):
            message.welcome.relays.extend(self._relays)
          self._send(session, message)
        case actions_lib.Close(session):
          self._end(session)
        case actions_lib.Append(record, sealed):
          self._ledger.append(record, sealed)
          if self._on_record is not None:
            status = self._machine.status(time.monotonic())
            self._on_record(record, status)
        case actions_lib.SaveLease(holder, samples):
          self._ledger.save_lease(holder, samples)
        case actions_lib.EndLeases(holders, loss):
          if loss is not None:
            where, cause = loss.island, loss.cause
            logging.warning("%d tokens of %s: %s", loss.tokens, where, cause)
          self._ledger.end_leases(holders, loss)
        case actions_lib.SaveLosses(losses):
          self._ledger.save_losses(losses)
        case actions_lib.SaveProcess(island, incarnation, process):
          self._ledger.save_process(island, incarnation, process)
        case actions_lib.SaveEvaluation(record, loss):
          self._ledger.save_evaluation(record, loss)
        case actions_lib.Warn(text):
          logging.warning("%s", text)
        case actions_lib.Stop(reason):
          self._stop(reason)

  def _stop(self, reason: str) -> None:
    self.stopped = reason
    self.done.set()

  def _send(self, session: int, message: pb.ToIsland) -> None:
    outbox = self._outboxes.get(session)
    if outbox is None:
      return
    if outbox.qsize() > _QUEUED:
      self._end(session)
    else:
      outbox.put(message)

  def _end(self, session: int) -> None:
    outbox = self._outboxes.pop(session, None)
    if outbox is not None:
      outbox.put(_END)
