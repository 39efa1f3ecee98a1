"""ElasticDeviceMesh: the island's devices inside, the islands outside.

The training loop talks to this one object and to nothing else of the run:

    with ElasticDeviceMesh(…) as mesh:        # joins, restores, or initialises
      state = mesh.state
      for batch in mesh.batches():            # leased data, until the end
        state, metrics = train_step(state, batch, mesh.schedule_position())
        state = mesh.after_step(state, metrics)

How islands agree stands in `round.py`; here stands what becomes of an island's
parameters x when a record moves theta:

    x <- theta_new + (x - anchor)

where the anchor is x at the proposal if the record includes it, so that steps
taken since go on from the new theta; and the old theta if it was left out, so
that its whole displacement stays for the next proposal.
"""

import collections
from collections.abc import Callable, Iterator
import concurrent.futures
import dataclasses
import math
import time
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np

from intellect_jax import config as config_lib
from intellect_jax.checkpoint.durable import DurableCheckpoints
from intellect_jax.data.index import GlobalIndex
from intellect_jax.elastic import blobs, reduce, rpc, samples
from intellect_jax.elastic.agent import Agent
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.state import OuterState
from intellect_jax.errors import UserError
from intellect_jax.inner.step import TrainState, TrainStep
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer.codec import make_codec
from intellect_jax.outer.delta import delta
from intellect_jax.outer.layout import Layout
from intellect_jax.outer.schedule import position

_SERVE_THREADS = 16
_EVALUATIONS_TOLD = 4  # newest, in each heartbeat: a lost one is made up for
_STOP_PATIENCE = 60.0  # seconds to hand in a window before leaving without

Event = dict[str, Any]


@dataclasses.dataclass
class _Window:
  """What this island trains on now, or has trained on and not committed."""

  number: int
  lease: list[samples.Interval]
  steps: int = 0
  tokens: int = 0
  carried: int = 0  # records that left it out

  def message(self, batch_size: int) -> pb.Window:
    window = pb.Window(number=self.number, steps=self.steps, tokens=self.tokens)
    for start, stop in samples.take(self.lease, self.steps * batch_size):
      window.samples.add(start=start, stop=stop)
    return window


class ElasticDeviceMesh:
  """One island's place in a run, from `with` to the final record.

  Attributes:
    state: the parameters and moments to start from, once entered.
    outer: theta and b.
    events: what happened since they were last taken, for the logs: dicts with
      a "kind" of "step", "record", "evaluation", "lost" or "restored".
  """

  def __init__(
    self,
    run: ConfigDict,
    island: ConfigDict,
    identity: Identity,
    train_step: TrainStep,
    index: GlobalIndex,
    evaluate: Callable[[Any], float] | None,
    coordinator: str,
    description: pb.Description,
    credentials: rpc.Credentials = rpc.LOOPBACK,
    alone: bool = False,
  ):
    """Opens what the workdir has; joins when entered.

    Args:
      run: the run half of the config, as the coordinator serves it.
      island: this island's half.
      identity: of this island; it holds the workdir.
      train_step: compiled already, so that a join is quick.
      index: the global sample index.
      evaluate: maps host parameters to nats a token; None: no evaluation.
      coordinator: host:port.
      description: what the coordinator says of itself.
      credentials: for servers and channels.
      alone: no other island will come: a restart goes back to the checkpoint
        and repeats what came after it, exactly.

    Raises:
      UserError: if the workdir has checkpoints of another run.
    """
    self._run, self._island = run, island
    self._train_step = train_step
    self._index = index
    self._evaluate = evaluate
    self._alone = alone
    self._identity = identity
    self._coordinator, self._credentials = coordinator, credentials
    self._run_id = description.run_id

    params = train_step.abstract_state.params
    self._layout = Layout.of(params, tensor_names(params))
    self._codec = make_codec(run.outer.codec)
    self._delta_bytes = self._layout.blocks * self._codec.block_bytes
    self.outer = OuterState(self._layout.size)
    self._state_hash: concurrent.futures.Future | None = None
    self._committed_tokens = 0  # of the swarm, at the outer state's record
    self._members = 1  # at the outer state's record

    self._log = RecordLog(identity.workdir / "log")
    self._checkpoints = DurableCheckpoints(
      identity.workdir / "checkpoints",
      description.run_id,
      island.checkpoint.keep,
    )
    self._store = blobs.BlobStore()
    self._fetcher = blobs.Fetcher(credentials, run.elastic.fetch_patience)
    self._background = concurrent.futures.ThreadPoolExecutor(
      2, thread_name_prefix="background"
    )
    self._offered = b""  # id of the state that is served to newcomers

    self.events: collections.deque[Event] = collections.deque()
    self._windows: list[_Window] = []  # done, not committed
    self._window: _Window | None = None  # in progress
    self._next_window = 0
    self._proposed: list[int] = []  # numbers of the windows proposed
    self._x_proposed: Any = None  # parameters at the proposal
    self._ahead = 0  # steps since the proposal
    self._moved = False  # x differs from theta
    self._steps = 0
    self._tokens_trained = 0
    self._tokens_committed = 0
    self._tokens_lost = 0
    self._unreported: dict[str, Any] | None = None  # the newest step
    self._train_seconds = 0.0
    self._blocked_seconds = 0.0
    self._mark = 0.0
    self._final = False
    self._stopping = False
    self._codec_bytes = 0
    self._rounds = 0
    self._most_members = 1
    self._evaluations: dict[int, float] = {}
    self._evaluating: concurrent.futures.Future | None = None
    self._rebase = jax.jit(
      lambda x, anchor, theta: jax.tree.map(
        lambda x, a, t: t + (x - a), x, anchor, theta
      ),
      donate_argnums=0,
    )

  @property
  def island(self) -> str:
    return self._identity.island

  # ------------------------------------------------------- enter and leave

  def __enter__(self) -> "ElasticDeviceMesh":
    try:
      self._enter()
    except BaseException:
      self._close()
      raise
    return self

  def _enter(self) -> None:
    restored = self._restore_checkpoint()
    hello = pb.Hello(
      protocol=rpc.PROTOCOL_VERSION,
      run_digest=config_lib.digest(self._run),
      run_id=self._identity.run_id,
      island=self.island,
      incarnation=self._identity.incarnation,
      process=self._identity.process,
      place=self._island.place,
      has_state=restored is not None,
      record=self.outer.record,
      alone=self._alone,
    )
    sealed = self._log.record(self.outer.record) if hello.has_state else None
    hello.record_hash = sealed.hash if sealed is not None else b""
    self._server = rpc.server(_SERVE_THREADS)
    self._store.add_to(self._server)
    listening = rpc.listen(self._server, self._island.listen, self._credentials)
    self._store.address = self._island.advertise or listening
    hello.addresses.append(self._store.address)
    self._agent = Agent(
      hello,
      self._identity.term,
      self._coordinator,
      self._credentials,
      reduce.Exchange(self._codec, self._store, self._fetcher),
      self._log,
      self._delta_bytes,
      self._run.elastic.lease_seconds,
      self._island.threads,
      self._offer_state,
      self._identity.saw_term,
    )
    self._agent.start()
    self._agent.wait(lambda: self._agent.welcome is not None, "a welcome")
    if self._agent.finished:
      self._final = True
      return
    assert self._agent.welcome is not None
    self._identity.joined(self._run_id)
    match self._agent.welcome.start:
      case pb.Welcome.START_INITIALISE:
        self.state = self._initialise()
      case pb.Welcome.START_RESTORE:
        self.state = self._restore_from_peers(restored)
      case _:
        assert restored is not None
        self.state = restored
    self._catch_up()
    self._hash_state()
    self._save_checkpoint(self.state)
    if self.outer.record == 0 and not self._evaluations:
      self._evaluate_in_background(0, [self.island])
    self._mark = time.monotonic()

  def __exit__(self, *_) -> None:
    self._close()

  def _leave(self) -> None:
    """Saves, reports the state hash, and says goodbye."""
    reason = "the run is final" if self._final else "asked to stop"
    if not self._agent.finished:
      if self._evaluating is not None:
        self._evaluating.result()
      self._checkpoints.wait()
      record, manifest = self.outer.manifest()
      self._agent.say(
        state_ready=pb.StateReady(
          record=record, state=pb.Blob(id=manifest.id, length=manifest.length)
        )
      )
      self._agent.beat()
      self._agent.say(leave=pb.Leave(reason=reason))
      self._agent.flush()

  def _close(self) -> None:
    """Ends what was started; also after a failure half-way."""
    agent = getattr(self, "_agent", None)
    if agent is not None:
      agent.close()
    server = getattr(self, "_server", None)
    if server is not None:
      server.stop(grace=0.5).wait()
    self._fetcher.close()
    self._background.shutdown(wait=False, cancel_futures=True)
    self._checkpoints.close()

  # ------------------------------------------------------ where it starts

  def _initialise(self) -> TrainState:
    """Makes record 0's state; every other island fetches these very bits."""
    state = self._train_step.init(jax.random.key(self._run.seed))
    theta = self._layout.flatten(state.params)
    self.outer.replace(np.concatenate([theta, np.zeros_like(theta)]), 0)
    self._agent.stand_at(-1)
    self._agent.say(state_ready=self._offer_state())
    self._agent.wait(lambda: len(self._agent.adopted) > 0, "record 0")
    return state

  def _restore_checkpoint(self) -> TrainState | None:
    """Back to the newest whole checkpoint, then through the log."""
    if self._checkpoints.latest() is None:
      return None
    restored = self._checkpoints.restore(
      self._train_step.abstract_state, self._layout.size
    )
    self.outer.replace(
      np.concatenate([restored.theta, restored.momentum]), restored.record
    )
    sealed = self._log.record(restored.record)
    if sealed is None or sealed.hash.hex() != restored.meta["record_hash"]:
      logging.warning("The log does not have the checkpoint's record.")
      return None
    self._take_figures(pb.Record.FromString(sealed.body))
    if not self._alone:
      for record, mean in self._log.after(restored.record):
        self._apply(record, mean)
    self.events.append(
      dict(kind="restored", record=self.outer.record, source="checkpoint")
    )
    inner = restored.inner
    theta = self._train_step.place(self._layout.unflatten(self.outer.theta))
    return TrainState(theta, inner.opt_state)

  def _restore_from_peers(self, restored: TrainState | None) -> TrainState:
    """Fetches theta and b from an island that has them."""
    while True:
      self._agent.wait(lambda: len(self._agent.restores) > 0, "a state")
      restore = self._agent.restores.popleft()
      try:
        both = self._fetch_state(restore.state)
        break
      except blobs.FetchError as error:
        logging.warning("Could not fetch a state: %s", error)
        self._agent.say(
          fetch_failed=pb.FetchFailed(peer=error.peer, reason=error.reason)
        )
    for sealed in self._agent.get_log():
      if pb.Record.FromString(sealed.body).number <= restore.record:
        record = self._log.adopt(sealed)
        self._take_figures(record)
    self.outer.replace(both, restore.record)
    self._agent.stand_at(restore.record)
    self.events.append(
      dict(kind="restored", record=restore.record, source="peers")
    )
    params = self._layout.unflatten(self.outer.theta)
    state = self._train_step.from_params(params)
    return state if restored is None else restored._replace(params=state.params)

  def _fetch_state(self, blob: pb.Blob) -> np.ndarray:
    both = np.empty(2 * self._layout.size, np.float32)
    if blob.length != both.nbytes:
      raise UserError(
        f"The run's state has {blob.length} bytes, but this model's has"
        f" {both.nbytes}: the configs differ. Start without --config."
      )
    data = both.view(np.uint8)
    addresses = list(blob.parts[0].addresses)
    for offset, chunk in self._fetcher.fetch(
      addresses, blob.id, 0, blob.length, self._agent.closing
    ):
      data[offset : offset + len(chunk)] = np.frombuffer(chunk, np.uint8)
    return both

  def _offer_state(self) -> pb.StateReady:
    """Serves a copy of theta and b to whoever joins."""
    record, manifest, data = self.outer.snapshot()
    self._store.withdraw(self._offered)
    self._offered = manifest.id
    state = self._store.publish_hashed(manifest, data)
    return pb.StateReady(record=record, state=state)

  def _catch_up(self) -> None:
    """Applies what was committed while this island was not there."""
    agent = self._agent
    assert agent.welcome is not None
    head = agent.welcome.head
    agent.wait(
      lambda: self.outer.record + len(agent.adopted) >= head,
      f"the log up to record {head}",
    )
    while agent.adopted:
      self.state = self._merge(self.state, agent.adopted.popleft())

  # -------------------------------------------------------- the inner loop

  def batches(self) -> Iterator[dict[str, np.ndarray]]:
    """Batches of leased samples, until the final record or `stop`.

    When they end, this island has left the run in good order.
    """
    batch_size = self._run.inner.batch_size
    while not self._over():
      lease = self._lease(self._next_window)
      if lease is None:
        break
      window = _Window(self._next_window, lease)
      self._window = window
      self._next_window += 1
      for batch in self._index.batches(lease, batch_size):
        yield batch
        if self._window is not window or self._over():
          break
    self._leave()

  def _over(self) -> bool:
    return (
      self._final
      or self._agent.finished
      or (self._stopping and self._window is None)
    )

  def stop(self) -> None:
    """Asks to hand in the open window and to end. Safe in signal handlers."""
    self._stopping = True

  def schedule_position(self) -> int:
    """Where the run stands, in tokens of the swarm (docs/protocol.md, 9)."""
    own = sum(w.tokens for w in self._windows) if self._windows else 0
    own += self._window.tokens if self._window is not None else 0
    return position(self._committed_tokens, own, self._members)

  def after_step(
    self, state: TrainState, metrics: dict[str, jax.Array]
  ) -> TrainState:
    """Counts a step; proposes and merges when it is time. Else returns at once.

    Args:
      state: after the inner step.
      metrics: of the inner step, on the device.

    Returns:
      The state to go on from; `state` itself unless a record was merged.
    """
    window = self._window
    assert window is not None
    self._count(window, metrics)
    done = window.steps == self._run.outer.inner_steps or self._stopping
    ahead_used_up = self._proposed and (
      done or self._ahead >= self._run.outer.max_ahead_steps
    )
    if not (done or ahead_used_up or self._agent.adopted):
      return state
    jax.block_until_ready(state)
    self._report_step()
    self._account(blocked=False)
    state = self._merge_adopted(state)
    if ahead_used_up:
      state = self._await_record(state)
    if done and not self._final:
      self._windows.append(window)
      self._window = None
      self._propose(state)
      if self._run.outer.max_ahead_steps == 0 or self._stopping:
        state = self._await_record(state)
    self._account(blocked=True)
    return state

  def _count(self, window: _Window, metrics: dict[str, jax.Array]) -> None:
    self._report_step()  # of the step before: it is done, this costs no wait
    tokens = self._run.inner.batch_size * self._run.data.sequence_length
    self._unreported = dict(
      metrics=metrics,
      round=self.outer.record + 1,
      step=self._steps + 1,
      position=self.schedule_position(),
      window=window.number,
    )
    window.steps += 1
    window.tokens += tokens
    self._steps += 1
    self._tokens_trained += tokens
    self._moved = True
    self._ahead += 1
    if window.steps == max(1, self._run.outer.inner_steps // 2):
      self._request_lease(self._next_window)

  def _report_step(self) -> None:
    """Tells of the newest step, waiting for it; once."""
    told, self._unreported = self._unreported, None
    if told is None:
      return
    metrics, step = jax.device_get(told.pop("metrics")), told["step"]
    figures = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(figures["loss"]):
      raise UserError(
        f"The loss of inner step {step} is {figures['loss']}. Nothing of this"
        " window is proposed. Lower run.inner.learning_rate, or look at the"
        " data of the last batches."
      )
    self._account(blocked=False)
    seconds = max(self._train_seconds, 1e-9)
    tokens = self._run.inner.batch_size * self._run.data.sequence_length
    rate = step * tokens / seconds
    self.events.append(
      dict(
        kind="step",
        **told,
        **figures,
        tokens=step * tokens,
        tokens_per_second=rate,
        train_seconds=self._train_seconds,
        blocked_seconds=self._blocked_seconds,
        bytes_sent=self._store.bytes_sent,
        bytes_received=self._fetcher.bytes_received,
      )
    )
    with self._agent.changed:
      heartbeat = self._agent.progress.heartbeat
      heartbeat.record = self.outer.record
      heartbeat.window = told["window"]
      heartbeat.step = step
      heartbeat.tokens_trained = self._tokens_trained
      heartbeat.activity = "training"
      heartbeat.loss = figures["loss"]
      heartbeat.tokens_per_second = rate
      heartbeat.train_seconds = self._train_seconds
      heartbeat.blocked_seconds = self._blocked_seconds

  def _account(self, blocked: bool) -> None:
    """Books the time since the last call as training, or as blocked."""
    now = time.monotonic()
    if blocked:
      self._blocked_seconds += now - self._mark
    else:
      self._train_seconds += now - self._mark
    self._mark = now

  # --------------------------------------------------------- data leases

  def _request_lease(self, window: int) -> None:
    batch = self._run.inner.batch_size
    self._agent.request_lease(window, self._run.outer.inner_steps * batch)

  def _lease(self, window: int) -> list[samples.Interval] | None:
    """The samples of a window; None if it is time to end."""
    leases = self._agent.leases
    if window not in leases:
      self._account(blocked=False)
      self._request_lease(window)
      self._agent.wait(
        lambda: window in leases or self._stopping,
        f"samples of window {window}",
      )
      self._account(blocked=True)
    return leases.pop(window, None)

  # -------------------------------------------------------------- rounds

  def _propose(self, state: TrainState) -> None:
    """Freezes the delta, encodes it once, publishes and proposes it."""
    size, block = self._layout.size, self._codec.block_bytes
    values = np.empty(size, np.float32)
    delta(self.outer.theta, state.params, self._layout, values)
    codes = np.empty(self._delta_bytes, np.uint8)
    self._codec.encode(values, codes)
    blob = self._store.publish(codes, blobs.chunk_bytes(len(codes), block))
    if self._run.outer.max_ahead_steps > 0:
      self._x_proposed = self._train_step.place(state.params)
    batch_size = self._run.inner.batch_size
    self._proposed = [window.number for window in self._windows]
    self._ahead = 0
    assert self._state_hash is not None
    self._agent.propose(
      pb.Proposal(
        base=self.outer.record,
        windows=[window.message(batch_size) for window in self._windows],
        delta=blob,
        norm=math.sqrt(self._codec.squared_norm(codes)),
        base_state=self._state_hash.result(),
      )
    )

  def _await_record(self, state: TrainState) -> TrainState:
    """Waits until the proposal is decided."""
    agent = self._agent
    while self._proposed and not agent.finished:
      stopping = self._stopping
      came = agent.wait(
        lambda stopping=stopping: (
          len(agent.adopted) > 0
          or agent.evicted
          or self._stopping is not stopping
        ),
        f"record {self.outer.record + 1}",
        _STOP_PATIENCE if stopping else None,
      )
      if not came and stopping:
        logging.warning("Leaving with a window that was not committed.")
        break
      state = self._merge_adopted(state)
    return state

  def _merge_adopted(self, state: TrainState) -> TrainState:
    agent = self._agent
    while agent.adopted:
      state = self._merge(state, agent.adopted.popleft())
    if agent.evicted:
      agent.evicted = False
      state = self._give_up_windows(state, "evicted while it was silent")
    return state

  def _merge(self, state: TrainState, record: pb.Record) -> TrainState:
    """Applies a record to theta and b, and what follows from it to x."""
    step = record.step if record.HasField("step") else None
    if step is None:
      self._apply(record, None)
      return state
    included = any(
      member.island == self.island
      and member.incarnation == self._identity.incarnation
      and [window.number for window in member.windows] == self._proposed
      for member in step.members
    )
    if included:
      self._tokens_committed += sum(window.tokens for window in self._windows)
      self._windows = []
      self._moved = self._ahead > 0
    anchor = self._x_proposed if included else None
    if self._moved and anchor is None:
      anchor = self._place_theta()
    self._apply(record, self._log.mean(record.number))
    self._proposed, self._x_proposed = [], None
    host_theta = self._layout.unflatten(self.outer.theta)
    theta = self._train_step.place(host_theta)
    params = self._rebase(state.params, anchor, theta) if self._moved else theta
    state = TrainState(params, state.opt_state)
    for window in self._windows:
      window.carried += 1
    if any(w.carried > self._run.outer.max_carry for w in self._windows):
      state = self._give_up_windows(state, "left out too often", say=True)
    self._hash_state()
    self._report_record(record, included)
    members = [member.island for member in step.members]
    self._evaluate_in_background(record.number, members)
    if self._is_checkpoint(record):
      self._save_checkpoint(state)
    return state

  def _apply(self, record: pb.Record, mean: np.ndarray | None) -> None:
    if mean is None:
      self.outer.advance(record.number)
    else:
      self.outer.apply(record, mean, self._codec)
    self._take_figures(record)

  def _take_figures(self, record: pb.Record) -> None:
    self._committed_tokens = record.total_tokens
    self._members = record.islands
    self._final = record.final

  def _place_theta(self) -> Any:
    return self._train_step.place(self._layout.unflatten(self.outer.theta))

  def _give_up_windows(
    self, state: TrainState, cause: str, say: bool = False
  ) -> TrainState:
    """Goes back to theta; what was trained and not committed is lost."""
    lost = list(self._windows)
    if self._window is not None:
      lost.append(self._window)
    tokens = sum(window.tokens for window in lost)
    self._tokens_lost += tokens
    self.events.append(dict(kind="lost", tokens=tokens, cause=cause))
    if say:
      batch_size = self._run.inner.batch_size
      messages = [window.message(batch_size) for window in lost]
      self._agent.say(dropped=pb.Dropped(windows=messages, cause=cause))
    self._windows, self._window, self._proposed = [], None, []
    self._moved = False
    return TrainState(self._place_theta(), state.opt_state)

  def _hash_state(self) -> None:
    """Starts to hash theta and b, off the training thread."""

    def work() -> bytes:
      return self.outer.manifest()[1].id

    self._state_hash = self._background.submit(work)

  def _report_record(self, record: pb.Record, included: bool) -> None:
    step = record.step
    self._rounds += 1
    members = len(step.members)
    self._most_members = max(self._most_members, members)
    if included:
      own = [s for s in step.shares if s.owner == self.island]
      own_bytes = sum(s.mean.length for s in own)
      others = self._delta_bytes - own_bytes
      # To the owners of the other shares, and its own share to all others.
      self._codec_bytes += others + own_bytes * (members - 1)
    self.events.append(
      dict(
        kind="record",
        round=record.number,
        included=included,
        members=members,
        total_tokens=record.total_tokens,
        final=record.final,
        train_seconds=self._train_seconds,
        blocked_seconds=self._blocked_seconds,
        bytes_sent=self._store.bytes_sent,
        bytes_received=self._fetcher.bytes_received,
      )
    )

  # ------------------------------------------- checkpoints and evaluation

  def _is_checkpoint(self, record: pb.Record) -> bool:
    every = self._island.checkpoint.every
    return record.final or (every > 0 and record.number % every == 0)

  def _save_checkpoint(self, state: TrainState) -> None:
    record = self.outer.record
    sealed = self._log.record(record)
    assert sealed is not None
    self._checkpoints.save(
      record,
      self.outer.theta,
      self.outer.momentum,
      state,
      dict(
        run_id=self._run_id,
        run=self._run.to_dict(),
        record_hash=sealed.hash.hex(),
        committed_tokens=self._committed_tokens,
        tokenizer=self._run.data.tokenizer,
      ),
    )
    self._log.trim(before=self._checkpoints.latest() or 0)

  def _evaluate_in_background(self, record: int, members: list[str]) -> None:
    """Evaluates theta if it is this island's turn, off the training thread."""
    turn = members[record % len(members)] == self.island
    busy = self._evaluating is not None and not self._evaluating.done()
    if self._evaluate is None or not turn or (busy and not self._final):
      return
    params = self._layout.unflatten(self.outer.theta)
    evaluate = self._evaluate

    def work() -> None:
      loss = evaluate(params)
      self._evaluations[record] = loss
      self.events.append(dict(kind="evaluation", round=record, eval_loss=loss))
      with self._agent.changed:
        told = self._agent.progress.heartbeat.evaluations
        told.add(record=record, loss=loss)
        del told[:-_EVALUATIONS_TOLD]

    self._evaluating = self._background.submit(work)

  # -------------------------------------------------------------- figures

  def summary(self) -> dict[str, Any]:
    """This island's figures, under the names of summary.json."""
    trained = self._train_seconds + self._blocked_seconds
    hashed = self.outer.manifest()[1].id.hex()
    island = self.island
    return dict(
      island=island,
      islands=[island],
      rounds=self._rounds,
      members=self._most_members,
      record=self.outer.record,
      final=self._final,
      inner_steps=self._steps,
      tokens_trained=self._tokens_trained,
      tokens_committed=self._tokens_committed,
      tokens_lost=self._tokens_lost,
      theta_hash={island: hashed},
      bytes_sent={island: self._store.bytes_sent},
      bytes_received={island: self._fetcher.bytes_received},
      codec_bytes_sent=self._codec_bytes,
      train_seconds=self._train_seconds,
      blocked_seconds=self._blocked_seconds,
      compute_utilization=self._train_seconds / trained if trained else 0.0,
      values=sum(tensor.size for tensor in self._layout.tensors),
    )
