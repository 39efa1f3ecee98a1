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
from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import math
import time
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np

from intellect_jax import config as config_lib
from intellect_jax.checkpoint.pretrained import Weights
from intellect_jax.data.index import GlobalIndex
from intellect_jax.elastic import blobs, chain, reduce, rpc, samples
from intellect_jax.elastic.agent import Agent
from intellect_jax.elastic.holdings import Holdings
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.meter import Meter
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.reach import Reach
from intellect_jax.elastic.steering import Steering
from intellect_jax.elastic.windows import Windows
from intellect_jax.errors import UserError
from intellect_jax.inner.step import TrainState, TrainStep
from intellect_jax.outer.delta import delta
from intellect_jax.outer.schedule import position

_EVALUATIONS_TOLD = 4  # newest, in each heartbeat: a lost one is made up for
_STOP_PATIENCE = 20.0  # seconds to hand in a window before leaving without

Event = dict[str, Any]


class ElasticDeviceMesh:
  """One island's place in a run, from `with` to the final record.

  Attributes:
    state: the TrainState to start from, once entered; None if the run is over.
    events: what happened since they were last taken, for the logs: dicts with
      a "kind" of "step", "record", "evaluation", "lost" or "restored".
  """

  state: Any = None

  def __init__(
    self,
    run: ConfigDict,
    island: ConfigDict,
    identity: Identity,
    train_step: TrainStep,
    index: GlobalIndex,
    evaluate: Callable[[Any], float] | None,
    coordinators: Sequence[str],
    description: pb.Description,
    credentials: rpc.Credentials = rpc.LOOPBACK,
    alone: bool = False,
    weights: Weights | None = None,
  ):
    """Opens what the workdir has; joins when entered.

    Args:
      run: the run half of the config, as the coordinator serves it.
      island: this island's half.
      identity: of this island; it holds the workdir.
      train_step: compiled already, so that a join is quick.
      index: the global sample index.
      evaluate: maps host parameters to nats a token; None: no evaluation.
      coordinators: host:port of each, tried in turn.
      description: what the coordinator says of itself.
      credentials: for servers and channels.
      alone: no other island will come: a restart goes back to the checkpoint
        and repeats what came after it, exactly.
      weights: that the run starts from, if it does and this island has them.

    Raises:
      UserError: if the workdir has checkpoints of another run.
    """
    self._run, self._island = run, island
    self._train_step = train_step
    self._index = index
    self._evaluate = evaluate
    self._alone = alone
    self._weights = weights
    self._identity = identity
    self._coordinators, self._credentials = coordinators, credentials
    self._relays = list(description.relays)
    self._run_id = description.run_id
    self._held = Holdings(
      run, island, identity, train_step, description.run_id, credentials
    )
    self._encoding_seconds = 0.0  # of the newest proposal
    self._steering = Steering()
    self._outer = run.outer  # as an operator has it for the next record
    self._meter = Meter(self._held.store, self._held.fetcher)
    self._windows = Windows(
      run.inner.batch_size, run.data.sequence_length, run.outer.max_carry
    )
    self._background = concurrent.futures.ThreadPoolExecutor(1, "evaluate")
    self._evaluating: concurrent.futures.Future | None = None
    self.events: collections.deque[Event] = collections.deque()
    self._x_proposed: Any = None  # parameters at the proposal, if steps go on
    self._unreported: dict[str, Any] | None = None  # the newest step
    self._stopping = False
    self._rebase = jax.jit(
      lambda x, anchor, theta: jax.tree.map(
        lambda x, a, t: t + (x - a), x, anchor, theta
      ),
      donate_argnums=0,
    )

  @property
  def island(self) -> str:
    """This island's name."""
    return self._identity.island

  @property
  def record(self) -> int:
    """Number of the record that theta stands at."""
    return self._held.record.number

  # ------------------------------------------------------- enter and leave

  def __enter__(self) -> "ElasticDeviceMesh":
    try:
      self._enter()
    except BaseException:
      self.__exit__()
      raise
    return self

  def _enter(self) -> None:
    restored = self._held.restore(replay=not self._alone)
    if restored is not None:
      self._tell("restored", source="checkpoint")
    self._reach = Reach(
      self._held.store,
      self.island,
      self._island.listen,
      self._island.advertise,
      self._relays,
      self._coordinators[0],
      self._credentials,
    )
    self._held.serve_log()
    self._agent = self._make_agent(has_state=restored is not None)
    self._agent.start()
    self._agent.wait(lambda: self._agent.welcome is not None, "a welcome")
    welcome = self._agent.welcome
    if welcome is None:  # the run is over
      return
    self._identity.joined(self._run_id)
    if welcome.start == pb.Welcome.START_INITIALISE:
      self.state = self._initialise()
    elif welcome.start == pb.Welcome.START_RESTORE:
      self.state = self._await_state(restored)
    else:
      assert restored is not None
      self.state = restored
    self._catch_up(welcome.head)
    self._steer()
    self._held.save(self.state)
    if self.record == 0:
      self._evaluate_in_background([self.island])
    self._meter.start()

  def _make_agent(self, has_state: bool) -> Agent:
    hello = pb.Hello(
      protocol=rpc.PROTOCOL_VERSION,
      run_digest=config_lib.digest(self._run),
      run_id=self._identity.run_id,
      island=self.island,
      incarnation=self._identity.incarnation,
      process=self._identity.process,
      addresses=self._held.store.addresses,
      place=self._island.place,
      has_state=has_state,
      record=self.record,
      alone=self._alone,
    )
    return Agent(
      hello,
      self._identity.term,
      self._coordinators,
      self._credentials,
      reduce.Exchange(self._held.codec, self._held.store, self._held.fetcher),
      self._held.log,
      self._held.shelf,
      self._held.mean_bytes,
      self._run.elastic.lease_seconds,
      self._island.threads,
      self._held.offer,
      self._identity.saw_term,
    )

  def _initialise(self) -> TrainState:
    """Makes record 0's state; every other island fetches these very bits."""
    state = self._initial_state()
    theta = self._held.layout.flatten(state.params)
    both = np.concatenate([theta, np.zeros_like(theta)])
    self._held.stand_at(pb.Record(islands=1), both)
    self._agent.initialised(self._held.offer())
    self._agent.wait(lambda: len(self._agent.adopted) > 0, "record 0")
    return state

  def _initial_state(self) -> TrainState:
    """Random, or from given weights; always with zero moments."""
    step = self._train_step
    if not self._run.init_from:
      return step.init(jax.random.key(self._run.seed))
    if self._weights is None:
      raise UserError(
        "This run starts from given weights"
        f" ({self._run.init_from[:12]}…), and this island is its first. Start"
        " it with --init-from=FOLDER, as the coordinator was; the islands after"
        " it need no folder."
      )
    return step.from_params(self._weights.read(step.abstract_state.params))

  def _await_state(self, restored: TrainState | None) -> TrainState:
    """Waits for theta and b from an island that has them."""
    agent = self._agent
    while True:
      agent.wait(lambda: len(agent.restores) > 0, "a state")
      if self._stand_at_offer(agent.restores.popleft()):
        break
    if restored is None:
      return self._train_step.from_params(self._held.host_theta())
    return restored._replace(params=self._held.place_theta())

  def _stand_at_offer(self, offer: pb.Restore) -> bool:
    """Takes over a state that another island serves. Returns whether it did."""
    agent, held = self._agent, self._held
    try:
      both = held.fetch(offer.state, agent.closing)
    except blobs.FetchError as error:
      logging.warning("Could not fetch a state: %s", error)
      agent.say(
        fetch_failed=pb.FetchFailed(peer=error.peer, reason=error.reason)
      )
      return False
    log = agent.get_log()[: offer.record + 1]
    agent.stand_at(offer.record, log)
    for record in (pb.Record.FromString(sealed.body) for sealed in log):
      if record.number > self.record and self._is_in(record):
        self._windows.commit()
    held.stand_at(pb.Record.FromString(log[-1].body), both)
    self._steer()
    self._tell("restored", source="other islands")
    return True

  def _catch_up(self, head: int) -> None:
    """Applies what was committed while this island was not there."""
    agent = self._agent

    def newest() -> int:  # annulled records are left out
      return agent.adopted[-1].number if agent.adopted else self.record

    while newest() < head and not agent.finished:
      agent.wait(
        lambda: newest() >= head or len(agent.restores) > 0,
        f"the log up to record {head}",
      )
      self.state = self._merge_news(self.state)

  def _leave(self) -> None:
    """Saves, reports the state hash, and says goodbye."""
    if self._agent.finished:
      return
    if self._evaluating is not None:
      self._evaluating.result()
    self._held.checkpoints.wait()
    state = pb.Blob(id=self._held.state_hash())
    self._agent.say(state_ready=pb.StateReady(record=self.record, state=state))
    self._agent.beat()
    final = self._held.record.final
    reason = "the run is final" if final else "it was asked to stop"
    self._agent.say(leave=pb.Leave(reason=reason))
    self._agent.flush()

  def __exit__(self, *_) -> None:
    """Ends what was started; also after a failure half-way."""
    agent = getattr(self, "_agent", None)
    if agent is not None:
      agent.close()
    reach = getattr(self, "_reach", None)
    if reach is not None:
      reach.close()
    self._background.shutdown(wait=False, cancel_futures=True)
    self._held.close()

  # -------------------------------------------------------- the inner loop

  def batches(self) -> Iterator[dict[str, np.ndarray]]:
    """Batches of leased samples, until the final record or `stop`.

    When they end, this island has left the run in good order.
    """
    while not self._over():
      lease = self._lease(self._windows.next)
      if lease is None:
        break
      window = self._windows.start(lease)
      for batch in self._index.batches(lease, self._run.inner.batch_size):
        yield batch
        if self._windows.open is not window or self._over():
          break
    self._leave()

  def _over(self) -> bool:
    stopped = self._stopping and self._windows.open is None
    return self._held.record.final or self._agent.finished or stopped

  def stop(self) -> None:
    """Asks to hand in the open window and to end. Safe in signal handlers."""
    self._stopping = True

  def schedule_position(self) -> int:
    """Where the run stands, in tokens of the swarm (docs/protocol.md, 9)."""
    record = self._held.record
    own = self._windows.tokens_uncommitted
    return position(record.total_tokens, own, record.islands)

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
    outer, windows = self._outer, self._windows
    steps = self._count(metrics)
    asked = self._agent.hand_in > self.record and not windows.proposed
    done = steps == windows.length or asked or self._stopping
    far_ahead = windows.proposed and windows.ahead >= outer.max_ahead_steps
    if not (done or far_ahead or self._agent.has_news):
      return state
    jax.block_until_ready(state)
    self._report_step()
    self._meter.trained()
    state = self._merge_news(state)
    if done or far_ahead:
      state = self._await_record(state)
    if done and windows.open is not None and not self._over():
      self._propose(state)
      if outer.max_ahead_steps == 0 or self._stopping:
        state = self._await_record(state)
    self._meter.blocked()
    return state

  def _count(self, metrics: dict[str, jax.Array]) -> int:
    """Counts a step of the open window; returns the window's steps."""
    self._report_step()  # of the step before: it is done, this costs no wait
    window = self._windows.open
    assert window is not None
    told = dict(
      metrics=metrics,
      round=self.record + 1,
      window=window.number,
      position=self.schedule_position(),
    )
    steps = self._windows.step()
    self._unreported = dict(told, step=self._windows.steps)
    if steps == max(1, self._windows.length // 2):
      self._request_lease(self._windows.next)
    return steps

  def _request_lease(self, window: int) -> None:
    batch = self._run.inner.batch_size
    self._agent.request_lease(window, self._outer.inner_steps * batch)

  def _lease(self, window: int) -> list[samples.Interval] | None:
    """The samples of a window; None if it is time to end."""
    leases = self._agent.leases
    if window not in leases:
      self._meter.trained()
      self._request_lease(window)
      self._agent.wait(
        lambda: window in leases or self._stopping,
        f"samples of window {window}",
      )
      self._meter.blocked()
    return leases.pop(window, None)

  # -------------------------------------------------------------- rounds

  def _propose(self, state: TrainState) -> None:
    """Freezes the delta, encodes it once, publishes and proposes it."""
    held, codec, began = self._held, self._held.codec, time.monotonic()
    values = np.empty(held.layout.size, np.float32)
    delta(held.outer.theta, state.params, held.layout, values)
    codes = np.empty(held.mean_bytes, np.uint8)
    codec.encode(values, codes)
    chunk = blobs.chunk_bytes(len(codes), codec.block_bytes)
    self._encoding_seconds = time.monotonic() - began
    if self._outer.max_ahead_steps > 0:
      self._x_proposed = self._train_step.place(state.params)
    self._agent.propose(
      pb.Proposal(
        base=self.record,
        windows=self._windows.propose(),
        delta=held.store.publish(codes, chunk),
        norm=math.sqrt(codec.squared_norm(codes)),
        base_state=held.state_hash(),
      )
    )

  def _await_record(self, state: TrainState) -> TrainState:
    """Waits until the proposal is decided, if there is one."""
    agent = self._agent
    while self._windows.proposed and not agent.finished:
      stopping = self._stopping

      def heard(stopping=stopping) -> bool:
        return agent.has_news or self._stopping is not stopping

      patience = _STOP_PATIENCE if stopping else None
      came = agent.wait(heard, f"record {self.record + 1}", patience)
      if not came and stopping:
        logging.warning("Leaving with a window that was not committed.")
        break
      state = self._merge_news(state)
    return state

  def _merge_news(self, state: TrainState) -> TrainState:
    """Merges all records that have come; gives up what is void."""
    agent = self._agent
    while agent.adopted:
      state = self._merge(state, agent.adopted.popleft())
    while agent.restores:  # its own state is void, or too far behind
      offer = agent.restores.popleft()
      wanted = not agent.standing or offer.record > self.record
      if wanted and self._stand_at_offer(offer):
        state = self._give_up(state, "its state was not the others'")
    if agent.evicted:
      agent.evicted = False
      state = self._give_up(state, "evicted while it was silent")
    return state

  def _give_up(self, state: TrainState, cause: str) -> TrainState:
    """Goes back to theta; what is not committed is lost."""
    dropped = self._windows.drop()
    if dropped:
      self._agent.say(dropped=pb.Dropped(windows=dropped, cause=cause))
      self._tell("lost", cause=cause)
    return state._replace(params=self._held.place_theta())

  def _merge(self, state: TrainState, record: pb.Record) -> TrainState:
    """Applies a record to theta and b, and what follows from it to x."""
    held, windows = self._held, self._windows
    if record.number <= self.record:
      return state  # of before the state that it was restored to
    if not record.HasField("step"):
      held.apply(record)
      self._steer()
      return state
    members = record.step.members
    included = self._is_in(record)
    lost = False
    if included:
      windows.commit()
      anchor = self._x_proposed if windows.ahead else None
      self._meter.exchanged(record.step, self.island)
    else:
      lost = windows.carry()
      anchor = held.place_theta() if windows.tokens_uncommitted else None
    self._x_proposed = None
    held.apply(record)
    self._obey()
    params = held.place_theta()
    if lost:
      state = self._give_up(state, "left out of too many records")
    elif anchor is not None:
      params = self._rebase(state.params, anchor, params)
    state = TrainState(params, state.opt_state)
    self._tell(
      "record",
      included=included,
      members=len(members),
      total_tokens=record.total_tokens,
      final=record.final,
    )
    self._evaluate_in_background([member.island for member in members])
    if held.is_checkpoint():
      held.save(state)
    return state

  def _steer(self) -> None:
    """Hears what an operator changed, from the log up to here."""
    self._steering = Steering.of(chain.effective(self._held.log.records()))
    self._obey()

  def _obey(self) -> None:
    """What an operator changed may hold from the next record on."""
    run = self._steering.run_at(self._run, self.record + 1)
    self._outer = run.outer
    self._windows.max_carry = run.outer.max_carry

  def _is_in(self, record: pb.Record) -> bool:
    """Whether the record includes what this island has proposed."""
    return self._windows.included(
      list(record.step.members), self.island, self._identity.incarnation
    )

  def _evaluate_in_background(self, members: list[str]) -> None:
    """Evaluates theta if it is this island's turn, off the training thread."""
    record, final = self.record, self._held.record.final
    turn = members[record % len(members)] == self.island
    busy = self._evaluating is not None and not self._evaluating.done()
    evaluate = self._evaluate
    if evaluate is None or not turn or (busy and not final):
      return
    theta = self._held.host_theta()

    def work() -> None:
      loss = evaluate(theta)
      self.events.append(dict(kind="evaluation", round=record, eval_loss=loss))
      with self._agent.changed:
        told = self._agent.progress.heartbeat.evaluations
        told.add(record=record, loss=loss)
        del told[:-_EVALUATIONS_TOLD]

    self._evaluating = self._background.submit(work)

  # -------------------------------------------------------------- figures

  def _tell(self, kind: str, **figures) -> None:
    figures |= self._meter.figures()
    tokens_lost = self._windows.tokens_lost
    self.events.append(
      dict(kind=kind, round=self.record, tokens_lost=tokens_lost, **figures)
    )

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
    self._meter.trained()
    tokens = step * self._windows.tokens_a_step
    rate = tokens / max(self._meter.train_seconds, 1e-9)
    told.update(figures, tokens=tokens, tokens_per_second=rate)
    self.events.append(dict(kind="step", **told, **self._meter.figures()))
    with self._agent.changed:
      heartbeat = self._agent.progress.heartbeat
      heartbeat.record = self.record
      heartbeat.window = told["window"]
      heartbeat.step = step
      heartbeat.tokens_trained = self._windows.tokens_trained
      heartbeat.activity = "training"
      step_seconds = self._meter.train_seconds / max(1, step)
      heartbeat.hand_in_seconds = step_seconds + self._encoding_seconds
      heartbeat.loss = figures["loss"]
      heartbeat.tokens_per_second = rate
      heartbeat.train_seconds = self._meter.train_seconds
      heartbeat.blocked_seconds = self._meter.blocked_seconds

  def summary(self) -> dict[str, Any]:
    """This island's figures, under the names of summary.json."""
    held, windows, meter = self._held, self._windows, self._meter
    return dict(
      island=self.island,
      islands=[self.island],
      rounds=meter.rounds,
      members=meter.most_members,
      record=self.record,
      final=held.record.final,
      inner_steps=windows.steps,
      tokens_trained=windows.tokens_trained,
      tokens_committed=windows.tokens_committed,
      tokens_lost=windows.tokens_lost,
      theta_hash={self.island: held.state_hash().hex()},
      bytes_sent={self.island: held.store.bytes_sent},
      bytes_relayed={self.island: held.store.bytes_relayed},
      bytes_received={self.island: held.fetcher.bytes_received},
      codec_bytes_sent=meter.codec_bytes,
      train_seconds=meter.train_seconds,
      blocked_seconds=meter.blocked_seconds,
      compute_utilization=meter.compute_utilization,
      values=sum(tensor.size for tensor in held.layout.tensors),
    )
