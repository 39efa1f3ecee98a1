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
    initialise: Callable[[], object],
  ):
    """`initialise` makes the initial state, and stands there if it counts."""
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
    # By fragment, the outer settings as they were at its newest proposal.
    self._rules = [run.outer] * len(windows.parts)
    self._lease_seconds = run.elastic.lease_seconds

  # ------------------------------------------------------------ proposals

  @property
  def asked(self) -> list[int]:
    """Fragments that had better be proposed now: all, before leaving."""
    parts, hand_in = self._windows.parts, self._news.hand_in
    return self._windows.before(
      lambda f: self.stopping or hand_in.get(f, 0) > parts[f].moved
    )

  def hand_in(self) -> None:
    """Proposes the fragments that are asked for, or whose turn it is."""
    windows = self._windows
    if windows.open is not None and windows.at_turn and not self.stopping:
      self._wait(lambda: bool(windows.turns))
      first = windows.turns[:1]
    else:
      first = []
    for fragment in self.asked or first:
      if windows.parts[fragment].steps:
        self._propose(fragment)
    self.catch_up()
    if self.stopping:
      windows.end()

  def _propose(self, fragment: int) -> None:
    """Freezes a delta, encodes it once, publishes and proposes it."""
    held, began = self._held, time.monotonic()
    self._rules[fragment] = outer = self.run.outer
    keep_x = overlap.most_ahead(outer) > 0 and not overlap.blends(outer)
    eager = self._expected(fragment) if outer.eager else None
    with self._news.busy("encoding", held.slow_seconds):
      delta, norm = self._crew.propose_delta(keep_x, fragment, eager)
    self._diary.hand_in_seconds = time.monotonic() - began
    proposal = self._windows.propose(fragment)
    proposal.base = held.record.number
    proposal.delta.CopyFrom(delta)
    proposal.norm = norm
    proposal.base_state = held.state_hash(fragment)
    if len(held.fragments) > 1:
      for start, stop in held.fragments[fragment].runs:
        proposal.blocks.add(start=start, stop=stop)
    self._agent.propose(proposal)

  def _expected(self, fragment: int) -> ipb.Eager | None:
    """What the fragment's next step is like if it is as the newest one was.

    None: there is none, or this island was not part of it.
    """
    sealed = self._held.log.record(self._windows.parts[fragment].moved)
    if sealed is None:
      return None
    step = pb.Record.FromString(sealed.body).step
    weight = sum(member.weight for member in step.members)
    for member in step.members:
      if member.island == self._island:
        return ipb.Eager(
          part=(step.scale or 1.0) * member.clip * member.weight / weight,
          learning_rate=step.learning_rate,
          momentum=step.momentum,
        )
    return None

  # ------------------------------------------------------------- records

  @property
  def due(self) -> bool:
    """Whether something has come that changes this island's state now."""
    news = self._news
    with news.changed:  # the agent may take back what is adopted
      return news.diverted or (bool(news.adopted) and not self._overlaps)

  @property
  def _overlaps(self) -> bool:
    """Whether the next record is merged later: tau is a minimum."""
    record = self._news.adopted[0]
    part = self._windows.parts[record.step.fragment]
    tau = self._rules[record.step.fragment].overlap_steps
    early = record.HasField("step") and part.proposed and part.ahead < tau
    return bool(early) and not (self.stopping or record.final)

  @property
  def far_ahead(self) -> bool:
    """Whether training has to wait for a record."""
    return any(
      self._windows.parts[fragment].ahead
      >= overlap.most_ahead(self._rules[fragment])
      for fragment in self._windows.proposed
    )

  def catch_up(self) -> None:
    """Waits until training may go on, and before leaving for all records."""
    windows = self._windows
    if self.stopping:
      self._wait(lambda: not windows.proposed)
    else:
      self._wait(lambda: not self.far_ahead)

  def _wait(self, enough: Callable[[], bool]) -> None:
    """Merges what comes until it is enough."""
    news = self._news
    while not enough() and not news.finished:
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

  def merge_news(self, early: bool = True) -> None:
    """Merges the records that have come; gives up what is void.

    `early`: also those that would be merged later if training went on.
    """
    news = self._news
    if news.annulled is not None:
      self.go_back()
    if news.initialise and not self._agent.standing:
      self._initialise()
      self.steer()
      self._give_up("its state was lost")
    while (record := self._next_record(early)) is not None:
      self._merge(record)
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
    while news.rechecks:
      self._recheck(news.rechecks.popleft())
    self._diary.stands()

  def _next_record(self, early: bool) -> pb.Record | None:
    """What is to be merged now, if there is anything."""
    news = self._news
    with news.changed:  # the agent may take back what is adopted
      here = bool(news.adopted) and (early or self.due)
      return news.adopted.popleft() if here else None

  def _recheck(self, wanted: pb.Recheck) -> None:
    """Islands hold different states: what does this one's log come to?"""
    if not self._agent.standing:
      return
    patience = self.run.elastic.recheck_patience
    with self._news.busy("replaying the log", patience):
      answer = rebuild.recheck(self._crew, self._held, self._island, wanted)
    if answer.mended:
      self._agent.withdraw()
      self._give_up("its state was not what its log comes to")
      self._diary.note("restored", source="checkpoint")
    self._agent.rechecked(answer)

  def _merge(self, record: pb.Record) -> None:
    """Applies a record to theta and b, and what follows from it to x."""
    held = self._held
    if record.number <= held.record.number:
      return  # of before the state that it was restored to
    if not record.HasField("step"):
      self._crew.order(ipb.Order(merge=ipb.Merge(record=record)))
      self.steer()
      return
    fragment, included = record.step.fragment, self._is_in(record)
    held.decide(record, included)
    merge, lost = self._decide(record, included)
    with self._news.busy("merging", held.slow_seconds):
      self._crew.order(ipb.Order(merge=merge))
    self._windows.parts[fragment].moved = record.number
    blends = overlap.blends(self._rules[fragment])
    if included and blends and not merge.alpha:
      self._throw_away(fragment)
    self._obey()
    if lost:
      self._lose(fragment)
    self._diary.recorded(record, included)
    if not fragment:
      self._evaluation.take_turn([m.island for m in record.step.members])
    if held.saves.is_due(record):
      with self._news.busy("saving", held.slow_seconds):
        self._crew.order(ipb.Order(save=ipb.Save()))

  def _decide(
    self, record: pb.Record, included: bool
  ) -> tuple[ipb.Merge, bool]:
    """How a record is merged into x, and whether work is lost by it."""
    fragment, windows = record.step.fragment, self._windows
    part, rule = windows.parts[fragment], self._rules[fragment]
    merge, lost = ipb.Merge(record=record, anchor=ipb.Merge.ANCHOR_X), False
    if included:
      self._diary.meter.exchanged(record.step, self._island)
      windows.commit(fragment)
      if overlap.blends(rule):
        merge.alpha = rule.merge_alpha
      elif part.steps:
        merge.anchor = ipb.Merge.ANCHOR_FROZEN
    else:
      lost = windows.carry(fragment)
      if part.steps and not lost:
        merge.anchor = ipb.Merge.ANCHOR_THETA
    return merge, lost

  def _throw_away(self, fragment: int) -> None:
    """x is theta, and no step ahead of it is left."""
    dropped = self._windows.throw_away(fragment)
    if dropped:
      cause = "thrown away at a merge: run.outer.merge_alpha is 0"
      self._agent.drop(dropped, cause)
      self._diary.note("lost", cause=cause)

  def _lose(self, fragment: int) -> None:
    """What was left out too often is lost; tokens go with fragment 0."""
    cause = "left out of too many records"
    if fragment:
      self._windows.parts[fragment].drop()
      self._crew.order(ipb.Order(revert=ipb.Revert(fragment=fragment)))
      self._diary.note("lost", cause=f"fragment {fragment}: {cause}")
    else:
      self._give_up(cause)

  def go_back(self) -> bool:
    """Where it stood does not count: to its own state from before that.

    Returns:
      Whether it stands at one of the run's now.
    """
    with self._news.changed:
      annulled, self._news.annulled = self._news.annulled, None
    if annulled is None or self._agent.standing:
      return True  # another island's state has come meanwhile
    record, to = annulled
    cause = f"record {record} was annulled"
    if to < 0:
      cause = "what it had is not the run's"
    logging.warning("Going back to a state of its own: %s.", cause)
    own = self._held.log.records()  # the run's follow soon
    with self._news.busy("going back", self._held.slow_seconds):
      counts = join.go_back(self._crew, self._held, self._agent, cause, to)
    if counts is None:
      return False
    undone = [record for record in own if record.number > counts]
    self._windows.annul(self._committed(undone))
    self._diary.note("restored", source="checkpoint")
    self.steer()
    self._give_up(cause)
    return True

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
      records = join.take_over(
        self._crew, self._held, self._agent, offer, lambda: self.stopping
      )
    if records is None:
      return False
    for record in records:
      if record.number > before:
        included = self._is_in(record)
        self._held.decide(record, included)
        if included:
          self._windows.commit(record.step.fragment)
    self._held.agree(chain.effective(records))
    self._held.saves.forget_annulled()
    self.steer()
    self._diary.note("restored", source="other islands")
    return True

  def steer(self) -> None:
    """Hears what an operator changed, from the log up to here."""
    newest = self._held.record.number
    records = chain.effective(self._held.log.records())
    self._steering = Steering.of(records)
    for fragment, part in enumerate(self._windows.parts):
      moved = (r.number for r in records if chain.moves(r, fragment))
      part.moved = max((n for n in moved if n <= newest), default=-1)
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
    return record.HasField("step") and self._windows.includes(
      record.step, self._island, self._incarnation
    )
