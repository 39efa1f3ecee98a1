"""ElasticDeviceMesh: the island's devices inside, the islands outside.

The training loop talks to this one object and to nothing else of the run:

    with ElasticDeviceMesh(…) as mesh:        # joins, restores, or initialises
      state = mesh.state
      for batch in mesh.batches():            # leased data, until the end
        state, metrics = train_step(state, batch, mesh.schedule())
        state = mesh.after_step(state, metrics)

How islands agree stands in `round.py`; what becomes of an island's parameters
when a record moves theta, in `replica.py`.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import time
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np

from intellect_jax import config as config_lib
from intellect_jax.checkpoint.pretrained import Weights
from intellect_jax.data.index import GlobalIndex
from intellect_jax.elastic import join, rpc, samples
from intellect_jax.elastic.agent import Agent
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.diary import Diary, Event
from intellect_jax.elastic.evaluation import Evaluation
from intellect_jax.elastic.follow import Follower
from intellect_jax.elastic.host import Host
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.news import News
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.elastic.pursuit import Pursuit
from intellect_jax.elastic.team import Team
from intellect_jax.elastic.windows import Windows
from intellect_jax.errors import UserError
from intellect_jax.inner.step import TrainState, TrainStep
from intellect_jax.outer import overlap
from intellect_jax.outer.schedule import Schedule, position, warm_up

_PURSUIT_SECONDS = 60.0  # in which an island that is behind should gain


class ElasticDeviceMesh:
  """One island's place in a run, from `with` to the final record.

  Attributes:
    state: the TrainState to start from, once entered; None if the run is over.
  """

  state: Any = None

  def __init__(
    self,
    run: ConfigDict,
    island: ConfigDict,
    identity: Identity,
    train_step: TrainStep,
    index: GlobalIndex,
    evaluate: Callable[[Any], Mapping[str, float]] | None,
    coordinators: Sequence[str],
    description: pb.Description,
    credentials: rpc.Credentials = rpc.LOOPBACK,
    alone: bool = False,
    weights: Weights | None = None,
    team: Team | None = None,
  ):
    """Opens what the workdir has; joins when entered.

    Args:
      run: the run half of the config, as the coordinator serves it.
      island: this island's half.
      identity: of this island; it holds the workdir.
      train_step: compiled already, so that a join is quick.
      index: the global sample index.
      evaluate: maps host parameters to figures, "loss" among them, in a thread
        of its own; None: no evaluation.
      coordinators: host:port of each, tried in turn.
      description: what the coordinator says of itself.
      credentials: for servers and channels.
      alone: no other island will come: a restart goes back to the checkpoint
        and repeats what came after it, exactly.
      weights: that the run starts from, if it does and this island has them.
      team: the island's processes, of which this one leads; None: only this.

    Raises:
      UserError: if the workdir has checkpoints of another run.
    """
    self._run, self._island = run, island
    self._alone = alone
    self._identity = identity
    self._coordinators, self._credentials = coordinators, credentials
    self._relays = list(description.relays)
    self._run_id = description.run_id
    self._team = team or Team()
    self._host = Host(
      run,
      island,
      self._team,
      identity.island,
      identity.workdir,
      description.run_id,
      train_step,
      index,
      weights,
      credentials,
    )
    self._held = self._host.held
    mates = self._team.each(self._host.inner.address)[1:]
    self._crew = Crew(self._host.part, self._host.replica, mates, credentials)
    self._windows = Windows(
      run.inner.batch_size,
      run.data.sequence_length,
      run.outer.max_carry,
      run.outer.fragments,
    )
    self._moments_are_new = False  # since it joined a run under way
    # Of the next window, once that may begin; None: it is time to end.
    self._leased: list[samples.Interval] | None = None
    self._news = News()
    self._diary = Diary(
      self.island, self._held, self._crew, self._windows, self._news
    )
    self._meter = self._diary.meter
    self._evaluation = Evaluation(
      evaluate,
      run.evaluation.every,
      self.island,
      self._held,
      self._diary,
    )

  @property
  def island(self) -> str:
    """This island's name."""
    return self._identity.island

  @property
  def record(self) -> int:
    """Number of the record that theta stands at."""
    return self._held.record.number

  @property
  def events(self) -> collections.deque[Event]:
    """What happened since they were last taken; see `Diary`."""
    return self._diary.events

  def summary(self) -> dict[str, Any]:
    """This island's figures, under the names of summary.json."""
    return self._diary.summary()

  # ------------------------------------------------------- enter and leave

  def __enter__(self) -> "ElasticDeviceMesh":
    try:
      self._enter()
    except BaseException as error:
      self.__exit__(type(error), error, None)
      raise
    return self

  def _enter(self) -> None:
    resumed = join.resume(self._crew, self._held, replay=not self._alone)
    if resumed:
      self._diary.note("restored", source="checkpoint")
    self._host.open(self._relays, self._coordinators[0])
    self._agent = self._make_agent(has_state=resumed)
    self._follower = Follower(
      self._run,
      self.island,
      self._identity.incarnation,
      self._held,
      self._windows,
      self._crew,
      self._agent,
      self._diary,
      self._evaluation,
      self._initialise,
    )
    welcome = self._say_hello()
    if welcome is None:  # the run is over
      return
    self._identity.joined(self._run_id)
    if welcome.start == pb.Welcome.START_GO_ON:
      assert resumed
    elif not self._await_state(resumed):
      return
    self._catch_up()
    self._follower.steer()
    if warning := overlap.throws_away(self._follower.run.outer):
      logging.warning("%s.", warning)
    self._crew.order(ipb.Order(save=ipb.Save()))
    if self.record == 0:
      self._evaluation.take_turn([self.island])
    self._meter.start()
    self._leased = self._lease()
    self._meter.blocked()
    self.state = self._crew.replica.state

  def _say_hello(self) -> pb.Welcome | None:
    """Comes to the run; returns how it is welcomed, None if it is over.

    Raises:
      UserError: if it is refused. Then it is as if it had not been started.
    """
    self._identity.joins()
    self._agent.start()
    news = self._news
    try:
      welcomed = news.wait(lambda: news.welcome is not None, "a welcome")
    except UserError:
      self._identity.refused()
      raise  # whatever else ends it, it may have been let in
    if not welcomed:
      self._identity.refused()
    return news.welcome

  def _make_agent(self, has_state: bool) -> Agent:
    hello = pb.Hello(
      protocol=rpc.PROTOCOL_VERSION,
      run_digest=config_lib.digest(self._run),
      run_id=self._identity.run_id,
      island=self.island,
      incarnation=self._identity.incarnation,
      process=self._identity.process,
      addresses=self._crew.addresses(),
      place=self._island.place,
      has_state=has_state,
      record=self.record,
      alone=self._alone,
    )
    return Agent(
      self._news,
      hello,
      self._identity.term,
      self._coordinators,
      self._credentials,
      self._crew,
      self._held.log,
      self._run.elastic.lease_seconds,
      self._island.threads,
      self._held.saves.kept,
      self._identity.saw_term,
      self._host.use_relays,
    )

  def _await_state(self, resumed: bool) -> bool:
    """Waits for theta and b from islands that have them, or makes them.

    Returns:
      Whether there is a state to start from; False if the run is over.
    """
    news = self._news

    def came() -> bool:
      return news.initialise or bool(news.restores) or news.annulled is not None

    while news.wait(came, "a state"):
      if news.annulled is not None:
        if self._follower.go_back():
          return True
      elif news.initialise:
        if self._initialise():
          return True
      elif self._follower.take_over(news.restores.popleft()):
        self._moments_are_new = not resumed and self.record > 0
        return True
    return False

  def _initialise(self) -> bool:
    """Makes the initial state, or makes it again if it was lost.

    Returns:
      Whether it is the run's; see `join.initialise`.
    """
    self._news.initialise = False
    with self._news.busy("initialising", self._held.slow_seconds):
      return join.initialise(
        self._crew, self._agent, lambda: self._follower.stopping
      )

  def _catch_up(self) -> None:
    """Applies what was committed while this island was not there."""
    news = self._news

    def newest() -> int:  # annulled records are left out
      with news.changed:
        return news.adopted[-1].number if news.adopted else self.record

    def there() -> bool:  # at the head that the newest welcome named
      return news.welcome is not None and newest() >= news.welcome.head

    while not (there() or news.finished):
      pursuit = Pursuit(newest(), news.head, time.monotonic())
      came = news.wait(
        lambda: there() or bool(news.restores or news.annulled),
        "the log up to the newest record",
        _PURSUIT_SECONDS,
      )
      if not came:
        now = time.monotonic()
        warning = pursuit.warning(
          newest(), news.head, now, max(self._held.mean_bytes)
        )
        if warning:
          logging.warning("%s", warning)
      self._follower.merge_news()

  def _leave(self) -> None:
    """Saves, reports the state hash, and says goodbye.

    Raises:
      UserError: if the run goes on after all, and this island is to as well.
    """
    if self._news.finished and not self._held.record.final:
      return
    self._evaluation.wait()
    self._diary.wait()
    self._held.saves.wait()
    self._agent.beat()
    state = self._held.describe()
    self._agent.say(state_ready=state)
    if self._held.record.final:
      self._await_others(state)
    final = self._held.record.final
    reason = "the run is final" if final else "it was asked to stop"
    self._agent.say(leave=pb.Leave(reason=reason))
    self._agent.flush()
    if not (final or self._news.finished or self._follower.stopping):
      raise UserError(
        "The final record does not count any more, and the run goes on: start"
        " this island again."
      )

  def _await_others(self, state: pb.StateReady) -> None:
    """Stays until all that are here hold the same final state, this one too.

    Not without a coordinator: another would have to be started for that.
    `state`: that it holds now.
    """
    news, patience = self._news, self._run.elastic.lease_seconds
    while self._held.record.final and not news.finished:
      heard = news.wait(lambda: news.any, "the others' final state", patience)
      if not heard and news.silent_since is not None:
        return
      self._follower.merge_news()
      if not self._agent.standing:
        continue  # it waits for the others' state
      if heard:
        self._crew.order(ipb.Order(save=ipb.Save()))
        self._held.saves.wait()
        state = self._held.describe()
      self._agent.say(state_ready=state)  # again: it may not have been heard

  def __exit__(self, kind, error, trace) -> None:
    """Ends what was started; also after a failure half-way."""
    agent = getattr(self, "_agent", None)
    if agent is not None:
      agent.close()
    self._crew.close(failure="" if error is None else str(error) or repr(error))
    self._evaluation.close()
    self._host.__exit__(kind, error, trace)

  # -------------------------------------------------------- the inner loop

  def batches(self) -> Iterator[dict[str, np.ndarray]]:
    """Batches of leased samples, until the final record or `stop`.

    When they end, this island has left the run in good order.
    """
    while (lease := self._leased) is not None and not self._over():
      window = self._windows.start(lease)
      told = pb.LeaseGrant(window=window.number)
      told.samples.extend(pb.Interval(start=a, stop=b) for a, b in lease)
      self._crew.tell(ipb.Order(window=told))
      for batch in self._crew.replica.batches(lease):
        step = ipb.Step(**self.schedule()._asdict())
        self._crew.tell(ipb.Order(step=step))
        yield batch
        if self._windows.open is not window or self._over():
          break
    self._leave()

  def _over(self) -> bool:
    stopped = self._follower.stopping and self._windows.open is None
    return self._held.record.final or self._news.finished or stopped

  def stop(self) -> None:
    """Asks to hand in the open window and to end. Safe in signal handlers."""
    self._follower.stopping = True

  def schedule(self) -> Schedule:
    """Where the run stands, for the learning rate (docs/protocol.md, 9)."""
    record, run = self._held.record, self._follower.run
    own = self._windows.tokens_uncommitted
    scale = 1.0
    if self._moments_are_new:
      scale = warm_up(self._windows.steps, run.inner.joiner_warmup_steps)
    where = position(record.total_tokens, own, record.islands)
    return Schedule(where, run.tokens, scale)

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
    follower = self._follower
    self._count(metrics)
    turn = self._windows.at_turn or follower.stopping or follower.asked
    if not (turn or follower.far_ahead or follower.due):
      return state
    jax.block_until_ready(state)
    self._diary.step_done()
    self._meter.trained()
    replica = self._crew.replica
    replica.state = state
    follower.merge_news(early=False)
    follower.catch_up()
    if turn and not self._over():
      follower.hand_in()
    if self._windows.used_up:
      self._leased = self._lease()
    self._meter.blocked()
    return replica.state

  def _count(self, metrics: dict[str, jax.Array]) -> None:
    """Counts a step of the open window."""
    self._diary.step_done()  # the step before: it is done, this costs no wait
    where = self.schedule().position
    steps = self._windows.step()
    self._diary.step(metrics, where)
    if steps == max(1, self._windows.length // 2):
      self._request_lease(self._windows.next)

  def _request_lease(self, window: int) -> None:
    steps = self._island.inner.window_steps
    steps = steps or self._follower.run.outer.inner_steps
    self._agent.request_lease(window, steps * self._run.inner.batch_size)

  def _lease(self) -> list[samples.Interval] | None:
    """The samples of the next window; None if it is time to end.

    What comes meanwhile is merged: the samples may never come without that.
    """
    news, follower, window = self._news, self._follower, self._windows.next

    def heard() -> bool:
      return window in news.leases or follower.due or follower.stopping

    while not self._over():
      if (lease := news.leases.pop(window, None)) is not None:
        return lease
      self._request_lease(window)
      news.wait(heard, f"samples of window {window}")
      follower.merge_news(early=False)
      if follower.stopping:
        follower.hand_in()
    return None
