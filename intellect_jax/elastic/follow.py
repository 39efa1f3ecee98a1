"""How the training thread follows the run: proposes, waits, merges, gives up."""

from collections.abc import Callable
import time

from absl import logging
from ml_collections import ConfigDict

from intellect_jax.elastic import chain, join, rebuild
from intellect_jax.elastic.agent import Agent
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.diary import Diary
from intellect_jax.elastic.evaluation import Evaluation
from intellect_jax.elastic.holdings import Holdings
from intellect_jax.elastic.news import News
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.elastic.steering import Steering
from intellect_jax.elastic.windows import Windows
from intellect_jax.outer import overlap

_STOP_PATIENCE = 20.0  # seconds to hand in a window before leaving without


class Follower:
  """Between the agent, which knows the run, and the training loop.

  Attributes:
    run: the run half, as an operator has it for the next record.
    stopping: the island is asked to hand in what it has, and to end.
  """

  def __init__(
    self,
    run: ConfigDict,
    island: str,
    incarnation: int,
    held: Holdings,
    windows: Windows,
    crew: Crew,
    agent: Agent,
    diary: Diary,
    evaluation: Evaluation,
    initialise: Callable[[], None],
  ):
    """`initialise` makes the initial state, and stands there."""
    self.run = run
    self.stopping = False
    self._started_run = run
    self._island = island
    self._incarnation = incarnation
    self._held = held
    self._windows = windows
    self._crew = crew
    self._agent = agent
    self._news: News = agent.news
    self._diary = diary
    self._evaluation = evaluation
    self._initialise = initialise
    self._steering = Steering()
    self._outer = run.outer  # as it was at the newest proposal
    self._lease_seconds = run.elastic.lease_seconds

  def propose(self) -> None:
    """Freezes the delta, encodes it once, publishes and proposes it."""
    held, began = self._held, time.monotonic()
    self._outer = outer = self.run.outer
    keep_x = overlap.most_ahead(outer) > 0 and not overlap.blends(outer)
    with self._news.busy("encoding", held.slow_seconds):
      delta, norm = self._crew.propose_delta(keep_x)
    self._diary.hand_in_seconds = time.monotonic() - began
    self._agent.propose(
      pb.Proposal(
        base=held.record.number,
        windows=self._windows.propose(),
        delta=delta,
        norm=norm,
        base_state=held.state_hash(),
      )
    )

  @property
  def due(self) -> bool:
    """Whether something has come that changes this island's state now."""
    news = self._news
    return news.diverted or (bool(news.adopted) and not self._overlaps)

  @property
  def far_ahead(self) -> bool:
    """Whether training has to wait for the record."""
    windows, most = self._windows, overlap.most_ahead(self._outer)
    return windows.proposed and windows.ahead >= most

  @property
  def _overlaps(self) -> bool:
    """Whether a record that is there is merged later: tau is a minimum."""
    windows = self._windows
    early = windows.proposed and windows.ahead < self._outer.overlap_steps
    return early and not (self.stopping or self._news.adopted[-1].final)

  def await_record(self) -> None:
    """Waits until the proposal is decided, if there is one."""
    news = self._news
    while self._windows.proposed and not news.finished:
      stopping = self.stopping

      def heard(stopping=stopping) -> bool:
        return news.any or self.stopping is not stopping

      patience = _STOP_PATIENCE if stopping else None
      came = news.wait(
        heard, f"record {self._held.record.number + 1}", patience
      )
      if not came and stopping:
        logging.warning("Leaving with a window that was not committed.")
        break
      self.merge_news()

  def merge_news(self) -> None:
    """Merges all records that have come; gives up what is void."""
    news = self._news
    if news.annulled is not None:
      self._go_back()
    if news.initialise and not self._agent.standing:
      self._initialise()
      self._give_up("its state was lost")
    while news.adopted:
      self._merge(news.adopted.popleft())
    while news.restores:  # its own state is void, or too far behind
      offer = news.restores.popleft()
      wanted = (
        not self._agent.standing or offer.record > self._held.record.number
      )
      if wanted and self.take_over(offer):
        self._give_up("its state was not the others'")
    if news.evicted:
      news.evicted = False
      self._give_up("evicted while it was silent")
    if news.recheck is not None:
      recheck, news.recheck = news.recheck, None
      self._recheck(recheck.right)
    self._diary.stands()

  def _recheck(self, right: bytes) -> None:
    """Islands hold different states: what does this one's log come to?

    Args:
      right: the state hash that it must be; empty: not known.
    """
    if not self._agent.standing:
      return
    patience = self.run.elastic.recheck_patience
    with self._news.busy("replaying the log", patience):
      answer = rebuild.recheck(self._crew, self._held, self._island, right)
    if answer.mended:
      self._agent.withdraw()
      self._give_up("its state was not what its log comes to")
      self._diary.note("restored", source="checkpoint")
    self._agent.rechecked(answer)

  def _merge(self, record: pb.Record) -> None:
    """Applies a record to theta and b, and what follows from it to x."""
    held, windows = self._held, self._windows
    if record.number <= held.record.number:
      return  # of before the state that it was restored to
    if not record.HasField("step"):
      self._crew.order(ipb.Order(merge=ipb.Merge(record=record)))
      self.steer()
      return
    included, lost = self._is_in(record), False
    held.decide(record, included)
    anchor, alpha = ipb.Merge.ANCHOR_X, 0.0
    if included:
      self._diary.meter.exchanged(record.step, self._island)
      windows.commit()
      if overlap.blends(self._outer):
        alpha = self._outer.merge_alpha
      elif windows.ahead:
        anchor = ipb.Merge.ANCHOR_FROZEN
    else:
      lost = windows.carry()
      if windows.tokens_uncommitted and not lost:
        anchor = ipb.Merge.ANCHOR_THETA
    merge = ipb.Merge(record=record, anchor=anchor, alpha=alpha)
    with self._news.busy("merging", held.slow_seconds):
      self._crew.order(ipb.Order(merge=merge))
    if included and overlap.blends(self._outer) and not alpha:
      self._throw_away()
    self._obey()
    if lost:
      self._give_up("left out of too many records")
    self._diary.recorded(record, included)
    self._evaluation.take_turn([m.island for m in record.step.members])
    if held.saves.is_due(record):
      with self._news.busy("saving", held.slow_seconds):
        self._crew.order(ipb.Order(save=ipb.Save()))

  def _throw_away(self) -> None:
    """x is theta, and no step ahead of it is left."""
    dropped = self._windows.drop_open()
    if dropped:
      cause = "thrown away at a merge: run.outer.merge_alpha is 0"
      self._agent.drop(dropped, cause)
      self._diary.note("lost", cause=cause)

  def _go_back(self) -> None:
    """Where it stood was annulled: to its own state from before that."""
    with self._news.changed:
      annulled, self._news.annulled = self._news.annulled, None
    if annulled is None or self._agent.standing:
      return  # another island's state has come meanwhile
    record, to = annulled
    logging.warning("Record %d was annulled; back to %d.", record, to)
    with self._news.busy("going back", self._held.slow_seconds):
      went = join.go_back(self._crew, self._held, self._agent, record, to)
    if not went:
      return
    undone = max(to, self._held.record.number) + 1
    self._windows.annul(self._committed(self._held.log.records(undone)))
    self._diary.note("restored", source="checkpoint")
    self.steer()
    self._give_up(f"record {record} was annulled")

  def _committed(self, records: list[pb.Record]) -> int:
    """Tokens of this process in these records."""
    own = self._island, self._incarnation
    return sum(
      window.tokens
      for record in records
      for holder, window in chain.windows_of(record)
      if holder[:2] == own
    )

  def _give_up(self, cause: str) -> None:
    """Goes back to theta; what is not committed is lost."""
    dropped = self._windows.drop()
    if self._held.feedback is not None:
      self._held.feedback.withdraw()
    if dropped:
      self._agent.drop(dropped, cause)
      self._diary.note("lost", cause=cause)
    self._crew.order(ipb.Order(revert=ipb.Revert()))

  def take_over(self, offer: pb.Restore) -> bool:
    """Stands at a state that another island serves. Whether it could."""
    before = self._held.record.number
    with self._news.busy("fetching a state", self._held.slow_seconds):
      records = join.take_over(self._crew, self._held, self._agent, offer)
    if records is None:
      return False
    for record in records:
      if record.number > before:
        included = self._is_in(record)
        self._held.decide(record, included)
        if included:
          self._windows.commit()
    self._held.agree(chain.effective(records))
    self._held.saves.forget_annulled()
    self.steer()
    self._diary.note("restored", source="other islands")
    return True

  def steer(self) -> None:
    """Hears what an operator changed, from the log up to here."""
    self._steering = Steering.of(chain.effective(self._held.log.records()))
    self._obey()

  def _obey(self) -> None:
    """What an operator changed may hold from the next record on."""
    next_record = self._held.record.number + 1
    self.run = run = self._steering.run_at(self._started_run, next_record)
    self._windows.max_carry = run.outer.max_carry
    self._held.fetcher.patience = run.elastic.fetch_patience
    if run.elastic.lease_seconds != self._lease_seconds:
      self._lease_seconds = run.elastic.lease_seconds
      self._agent.renew_every(self._lease_seconds)

  def _is_in(self, record: pb.Record) -> bool:
    """Whether the record includes what this island has proposed."""
    return self._windows.included(
      list(record.step.members), self._island, self._incarnation
    )
