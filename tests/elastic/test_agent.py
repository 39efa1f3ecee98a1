"""An island's agent, over loopback, with a coordinator that says what we want."""

import contextlib
from unittest import mock

from bare import BREAK, SECONDS, Coordinator, bare_agent, genesis, settings
import numpy as np
import pytest

from intellect_jax.elastic import blobs, chain
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb


@pytest.fixture
def coordinator():
  with contextlib.closing(Coordinator()) as made:
    yield made


@pytest.fixture
def store():
  return blobs.BlobStore()


@pytest.fixture
def on_term():
  return mock.Mock()


@pytest.fixture
def agent(coordinator, store, tmp_path, on_term):
  """Stands at record 0."""
  log = RecordLog(tmp_path)
  log.open()
  log.keep(genesis())
  beats = iter(range(1_000_000))

  def use_relays(relays: list[str]) -> bool:
    before, store.addresses = store.addresses, [f"{r}/ada" for r in relays]
    return store.addresses != before

  made = bare_agent(
    pb.Hello(island="ada", incarnation=3, has_state=True, record=0),
    [coordinator.address],
    log,
    store,
    lease_seconds=3600,
    checkpoints=lambda: [next(beats)],
    use_relays=use_relays,
    on_term=on_term,
  )
  made.start()
  yield made
  made.close()


def test_a_changed_lease_is_renewed_in_time(coordinator, agent):
  """And each heartbeat tells the checkpoints that the island has by then."""
  coordinator.hear("hello")
  agent.renew_every(0.4)
  beats = [coordinator.hear("heartbeat") for _ in range(5)]
  told = [beat.checkpoints[0] for beat in beats]
  assert told == sorted(set(told))


def test_a_log_that_cannot_be_read_is_asked_for_again(coordinator, agent):
  """Though the stream goes on: the coordinator was busy, say."""
  coordinator.hear("hello")
  coordinator.log = None
  agent.renew_every(0.4)
  go_on = pb.Welcome(start=pb.Welcome.START_GO_ON, head=1)
  coordinator.says.put(dict(welcome=go_on))
  coordinator.hear("read_log")
  first = genesis()
  coordinator.log = [first, settings(1, first.hash)]
  assert coordinator.hear("ready").record == 1


def test_other_relays_in_a_welcome_are_other_addresses(coordinator, agent):
  assert not coordinator.hear("hello").addresses
  welcome = pb.Welcome(relays=[":7601", "r.org:1"])
  coordinator.says.put(dict(welcome=welcome))
  host = coordinator.address.rpartition(":")[0]
  reached_at = [f"{host}:7601/ada", "r.org:1/ada"]
  assert coordinator.hear("hello").addresses == reached_at
  coordinator.says.put(dict(welcome=welcome))
  coordinator.says.put(BREAK)
  coordinator.hear("hello")
  assert coordinator.heard["hello"].empty()  # the same relays are no news


def test_hello_names_what_is_leased_and_not_decided(coordinator, store, agent):
  assert not coordinator.hear("hello").leases
  for window in (7, 8, 9):
    grant = pb.LeaseGrant(window=window)
    grant.samples.add(start=10 * window, stop=10 * window + 4)
    coordinator.says.put(dict(lease_grant=grant))
  news = agent.news
  assert news.wait(lambda: len(news.leases) == 3, "leases", SECONDS)
  agent.drop([pb.Window(number=8)], "left out")
  coordinator.hear("dropped")
  mean = store.publish(np.zeros(260, np.uint8), 260)
  step = pb.OuterStep()
  step.shares.add(start=0, stop=1, mean=mean)
  step.members.add(island="ada", incarnation=3).windows.add(number=7)
  step.members.add(island="bo", incarnation=3).windows.add(number=9)
  record = pb.Record(number=1, term=1, previous=genesis().hash, step=step)
  coordinator.says.put(dict(record=chain.seal(record)))
  assert news.wait(lambda: len(news.adopted) == 1, "the record", SECONDS)
  coordinator.says.put(BREAK)
  (left,) = coordinator.hear("hello").leases
  assert left.window == 9 and left.samples[0].start == 90


def test_leases_end_with_the_membership(coordinator, agent):
  """Else each window after an eviction is void, and evicts it again."""
  coordinator.hear("hello")
  coordinator.says.put(dict(lease_grant=pb.LeaseGrant(window=7)))
  news = agent.news
  assert news.wait(lambda: 7 in news.leases, "a lease", SECONDS)
  go_on = pb.Welcome(evicted=True, start=pb.Welcome.START_GO_ON)
  coordinator.says.put(dict(welcome=go_on))
  assert news.wait(lambda: news.evicted, "a word", SECONDS)
  assert not news.leases
  agent.request_lease(7, samples=1)
  assert coordinator.hear("lease_request").window == 7
  coordinator.says.put(BREAK)
  assert not coordinator.hear("hello").leases


def annul_record_1(coordinator, news) -> None:
  """The agent stands at it, and then nowhere."""
  first = settings(1, genesis().hash)
  coordinator.hear("hello")
  coordinator.says.put(dict(record=first))
  assert news.wait(lambda: len(news.adopted) == 1, "record 1", SECONDS)
  taken_back = pb.Record(number=2, term=1, previous=first.hash)
  taken_back.annulment.to = 0
  coordinator.says.put(dict(record=chain.seal(taken_back)))
  assert news.wait(lambda: news.annulled is not None, "news", SECONDS)


def test_the_initial_state_is_asked_of_those_without_one(coordinator, agent):
  """News that nobody takes would have the training thread wait busily."""
  news = agent.news
  annul_record_1(coordinator, news)
  asked = dict(welcome=pb.Welcome(start=pb.Welcome.START_INITIALISE))
  coordinator.says.put(asked)
  assert news.wait(lambda: news.initialise, "a word", SECONDS)
  agent.stand_at(-1)
  assert not news.initialise
  coordinator.says.put(asked)
  coordinator.says.put(dict(lease_grant=pb.LeaseGrant(window=1)))
  assert news.wait(lambda: 1 in news.leases, "what was said later", SECONDS)
  assert not news.initialise


def test_nothing_is_proposed_that_starts_from_what_does_not_count(
  coordinator, store, agent
):
  delta = store.publish(np.zeros(260, np.uint8), 260)
  annul_record_1(coordinator, agent.news)
  agent.propose(pb.Proposal(delta=delta))
  agent.stand_at(0)
  agent.propose(pb.Proposal(serial=2))
  assert coordinator.hear("proposal").serial == 2
  assert store.manifest(delta.id) is None


def test_whose_chain_has_lost_may_be_told_to_make_the_initial_state(
  coordinator, agent
):
  coordinator.hear("hello")
  asked = dict(welcome=pb.Welcome(start=pb.Welcome.START_INITIALISE))
  coordinator.says.put(asked)
  news = agent.news
  assert news.wait(lambda: news.initialise, "a word", SECONDS)
  assert not agent.standing


@pytest.mark.parametrize("has_own", [True, False])
def test_no_hello_while_it_is_not_known_where_it_stands(
  coordinator, agent, has_own
):
  news = agent.news
  annul_record_1(coordinator, news)
  assert news.annulled == (1, 0) and not news.adopted and not agent.standing
  coordinator.says.put(BREAK)
  assert news.wait(lambda: news.silent_since is not None, "silence", SECONDS)
  if has_own:
    agent.stand_at(0)
  else:
    agent.stand_nowhere("it has no checkpoint")
  hello = coordinator.hear("hello")
  assert hello.has_state == has_own
  assert coordinator.heard["hello"].empty()


@pytest.mark.parametrize("has_own", [True, False])
def test_whose_chain_has_lost_finds_out_where_it_stands_and_says_hello_again(
  coordinator, agent, has_own
):
  news = agent.news
  coordinator.hear("hello")
  lost = pb.Welcome(start=pb.Welcome.START_GO_BACK, evicted=True)
  coordinator.says.put(dict(welcome=lost))
  assert news.wait(lambda: news.annulled is not None, "a word", SECONDS)
  assert news.annulled == (-1, -1) and not agent.standing
  assert coordinator.heard["hello"].empty()
  if has_own:
    agent.stand_at(0)
  else:
    agent.stand_nowhere("it has no checkpoint")
  assert coordinator.hear("hello").has_state == has_own


def test_a_disk_that_takes_nothing_is_waited_for(coordinator, agent, tmp_path):
  """The island stays in the run, says so, and goes on when there is room."""
  coordinator.hear("hello")
  away = tmp_path.with_name("away")
  tmp_path.rename(away)
  coordinator.says.put(dict(record=settings(1, genesis().hash)))
  while "waiting for the disk" not in coordinator.hear("heartbeat").activity:
    pass
  assert not agent.news.adopted
  away.rename(tmp_path)
  news = agent.news
  assert news.wait(lambda: len(news.adopted) == 1, "the record", SECONDS)
  assert (tmp_path / "000000001.record").exists() and not news.trouble


def test_a_term_that_cannot_be_written_is_waited_for(
  coordinator, agent, on_term
):
  coordinator.hear("hello")
  on_term.side_effect = [OSError("no space left"), None]
  coordinator.says.put(dict(lease_grant=pb.LeaseGrant(window=7)))
  while "no space left" not in coordinator.hear("heartbeat").activity:
    pass
  news = agent.news
  assert news.wait(lambda: 7 in news.leases, "what was said", SECONDS)
