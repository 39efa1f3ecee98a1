"""How the training thread follows the run: what it waits for, what it gives up."""

import concurrent.futures
import types
from typing import Any
from unittest import mock

import pytest
from simulation.world import run_config

from intellect_jax.elastic import chain
from intellect_jax.elastic.follow import Follower
from intellect_jax.elastic.mesh import ElasticDeviceMesh
from intellect_jax.elastic.news import News
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.elastic.windows import Windows
from intellect_jax.errors import UserError

FRAGMENTS = 3
SECONDS = 30  # bound of every wait


GENESIS = pb.Record(genesis=pb.Genesis())


def step(number: int, fragment: int, window: int = 0) -> pb.Record:
  record = pb.Record(number=number, step=pb.OuterStep(fragment=fragment))
  member = record.step.members.add(island="ada", incarnation=3)
  if window:
    member.windows.add(number=window, tokens=10 * window)
  return record


class Island:
  """A follower of a run of three fragments, whose parts are played here."""

  def __init__(self, records: list[pb.Record]):
    self.records = records
    self.news = News()
    self.windows = Windows(1, 10, 1, FRAGMENTS)
    self.held = types.SimpleNamespace(
      record=records[-1],
      feedback=None,
      slow_seconds=1.0,
      fetcher=mock.Mock(),
      log=types.SimpleNamespace(records=self._records, record=self._record),
      resumable=lambda to: 0,
      saves=mock.Mock(),
      describe=pb.StateReady,
    )
    self.agent = mock.Mock(news=self.news, standing=True)
    held: Any = self.held
    diary: Any = mock.Mock()
    self.crew: Any = mock.Mock(reach=lambda checkpoint: checkpoint)
    self.crew.order.return_value = [ipb.Report()]
    self.follower = Follower(
      run_config(),
      "ada",
      3,
      held,
      self.windows,
      self.crew,
      self.agent,
      diary,
      mock.Mock(),
      self.initialise,
    )
    self.follower.steer()

  def _records(self, start: int = 0) -> list[pb.Record]:
    return self.records[start:]

  def _record(self, number: int) -> pb.SealedRecord | None:
    sealed = [chain.seal(record) for record in self.records]
    return sealed[number] if number < len(sealed) else None

  def initialise(self) -> None:
    self.records = [pb.Record(genesis=pb.Genesis())]
    self.held.record = self.records[0]
    self.agent.standing = True

  def mesh(self) -> Any:
    """As far as its lease is concerned."""
    mesh: Any = ElasticDeviceMesh.__new__(ElasticDeviceMesh)
    mesh._news, mesh._windows, mesh._held = self.news, self.windows, self.held
    mesh._agent, mesh._follower = self.agent, self.follower
    mesh._crew = mesh._diary = mesh._evaluation = mock.Mock()
    mesh._island = types.SimpleNamespace(inner=mock.Mock(window_steps=4))
    mesh._run = run_config()
    return mesh

  @property
  def moved(self) -> list[int]:
    return [part.moved for part in self.windows.parts]


def test_a_run_that_begins_again_has_moved_no_fragment():
  """Else this island and a newcomer wait for each other in other rounds."""
  island = Island([GENESIS, step(1, 1), step(2, 2), step(3, 0)])
  assert island.moved == [3, 1, 2]
  island.agent.standing = False
  island.news.initialise = True
  island.follower.merge_news()
  assert island.moved == [0, 0, 0]


def leased(island: Island, *answers):
  """The lease that an island comes to if requests are answered by these."""
  calls = iter(answers)

  def answer(window: int, samples: int) -> None:
    with island.news.changed:
      next(calls)(window)
      island.news.changed.notify_all()

  island.agent.request_lease = answer
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    lease = pool.submit(island.mesh()._lease)
    try:
      return lease.result(SECONDS)
    finally:
      island.news.finished = True


def test_samples_that_ended_with_the_membership_are_asked_for_again():
  """The lease and its end may come before anybody looks."""
  island = Island([GENESIS])
  news = island.news

  def evict(window: int) -> None:
    news.leases.clear()
    news.evicted = True

  def grant(window: int) -> None:
    news.leases[window] = [(8, 12)]

  assert leased(island, evict, grant) == [(8, 12)]
  assert not news.evicted


def test_who_waits_for_samples_goes_back_when_its_record_is_annulled():
  """It says no hello before, and gets none without one."""
  island = Island([GENESIS, step(1, 0)])
  news, agent, windows = island.news, island.agent, island.windows

  def annul(window: int) -> None:
    agent.standing = False
    news.annulled = 1, 0

  def stand_at(record: int) -> None:
    agent.standing = True
    news.leases[windows.next] = [(8, 12)]

  agent.stand_at = stand_at
  assert leased(island, annul) == [(8, 12)]


def test_who_is_asked_to_end_hands_in_what_it_has_and_waits_for_no_samples():
  island = Island([GENESIS])
  windows, follower = island.windows, island.follower
  windows.start([(0, 1)])
  windows.step()

  def stop(window: int) -> None:
    follower.stopping = True

  def propose(fragment: int) -> None:
    windows.propose(fragment)
    windows.commit(fragment)

  follower._propose = propose
  assert leased(island, stop) is None
  assert windows.open is None and not windows.tokens_uncommitted


def test_of_a_lost_chain_that_is_lost_which_the_run_has_not():
  """Also if the run's records are in the log as soon as it stands."""
  common = [GENESIS, step(1, 0, window=1)]
  won = [*common, step(2, 1), step(3, 2)]
  island = Island([*common, step(2, 0, window=2)])
  agent, windows = island.agent, island.windows
  windows.tokens_committed = 30
  agent.get_log.return_value = list(map(chain.seal, won))

  def stand_at(record: int) -> None:
    agent.standing = True
    island.records = won

  agent.stand_at = stand_at
  agent.standing = False
  island.news.annulled = -1, -1
  island.held.record = GENESIS  # that its checkpoint is of
  island.follower.merge_news()
  assert (windows.tokens_committed, windows.tokens_lost) == (10, 20)


def test_who_was_about_to_leave_when_the_final_record_is_taken_back_says_so():
  """Whoever started it starts it again: the run goes on."""
  final = pb.Record(number=1, final=True, step=pb.OuterStep())
  island = Island([GENESIS, final])
  agent, news = island.agent, island.news

  def stand_at(record: int) -> None:
    agent.standing, island.held.record = True, island.records[record]

  agent.stand_at = stand_at
  agent.standing = False
  news.annulled = 1, 0
  island.held.record = final

  def restore(order: ipb.Order) -> list[ipb.Report]:
    if order.HasField("restore"):
      island.held.record = GENESIS
    return [ipb.Report()]

  island.crew.order = restore
  with pytest.raises(UserError, match="start this island again"):
    island.mesh()._leave()
  assert agent.standing
