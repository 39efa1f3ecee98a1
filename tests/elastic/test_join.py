"""How an island comes to a state, whatever its coordinator does meanwhile."""

import concurrent.futures
import contextlib
import threading
from typing import Any

from bare import BREAK, SECONDS, Coordinator, bare_agent, genesis, settings
import pytest

from intellect_jax.elastic import blobs, join
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb

STATE = pb.Blob(id=b"state", length=8)
RESTORE = dict(welcome=pb.Welcome(start=pb.Welcome.START_RESTORE))


class Crew:
  """Does nothing, and says that it was done."""

  def __init__(self):
    self.orders: list[str] = []
    self.dropped: list[bytes] = []

  def order(self, order: ipb.Order) -> None:
    self.orders.append(str(order.WhichOneof("order")))

  def offer(self) -> pb.StateReady:
    return pb.StateReady(record=0, state=STATE)

  def fetch(self, state: pb.Blob, cancelled: threading.Event) -> bytes:
    return b"fetched"

  def drop(self, name: bytes) -> None:
    self.dropped.append(name)


class Outer:
  bytes = STATE.length


class Held:
  outer = Outer()


@pytest.fixture
def coordinator():
  with contextlib.closing(Coordinator()) as made:
    yield made


@pytest.fixture
def agent(coordinator, tmp_path):
  """Has no state."""
  log = RecordLog(tmp_path)
  log.open()
  hello = pb.Hello(island="ada", incarnation=3)
  made = bare_agent(hello, [coordinator.address], log, blobs.BlobStore())
  made.start()
  yield made
  made.close()


@pytest.fixture
def pool():
  with concurrent.futures.ThreadPoolExecutor(1) as made:
    yield made


def initialising(coordinator, agent, pool) -> concurrent.futures.Future:
  """It has made the initial state, and waits for what becomes of that."""
  crew: Any = Crew()
  coordinator.hear("hello")
  made = pool.submit(join.initialise, crew, agent, lambda: False)
  coordinator.hear("state_ready")
  return made


def test_another_island_is_told_to_make_the_initial_state_meanwhile(
  coordinator, agent, pool
):
  """As this one's stream was broken when it had made it."""
  made = initialising(coordinator, agent, pool)
  coordinator.says.put(BREAK)
  assert not coordinator.hear("hello").has_state
  coordinator.says.put(RESTORE)
  assert made.result(SECONDS) is False


def test_the_run_is_over_when_the_initial_state_is_made(
  coordinator, agent, pool
):
  made = initialising(coordinator, agent, pool)
  coordinator.says.put(dict(finished=pb.Finished()))
  assert made.result(SECONDS) is False


def take_over(agent, crew, stopping=lambda: False):
  held: Any = Held()
  offer = pb.Restore(record=1, state=STATE)
  return join.take_over(crew, held, agent, offer, stopping)


def test_a_state_is_taken_over_though_the_coordinator_is_just_being_restarted(
  coordinator, agent, pool
):
  crew: Any = Crew()
  coordinator.log = None
  taken = pool.submit(take_over, agent, crew)
  coordinator.hear("read_log")
  first = genesis()
  coordinator.log = [first, settings(1, first.hash), settings(2, b"any")]
  records = taken.result(SECONDS)
  assert [record.number for record in records] == [0, 1]
  assert crew.orders == ["stand"] and agent.standing


def test_a_state_of_which_the_log_knows_nothing_is_not_taken_over(
  coordinator, agent
):
  crew: Any = Crew()
  coordinator.hear("hello")
  coordinator.log = [genesis()]
  assert take_over(agent, crew) is None
  assert "no record 1" in coordinator.hear("fetch_failed").reason
  assert crew.dropped == [b"fetched"] and not crew.orders
  assert not agent.standing


def test_who_is_asked_to_end_does_not_wait_for_a_log(coordinator, agent):
  crew: Any = Crew()
  coordinator.log = None
  assert take_over(agent, crew, stopping=lambda: True) is None
