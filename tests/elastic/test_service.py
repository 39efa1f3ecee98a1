"""The coordinator's shell, spoken to with raw stubs over loopback."""

import contextlib
import queue

import grpc
import pytest
from simulation.world import run_config

from intellect_jax import config as config_lib
from intellect_jax.elastic import rpc
from intellect_jax.elastic.describe import describe
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import elastic_pb2_grpc as pb_grpc
from intellect_jax.elastic.service import CoordinatorService
from intellect_jax.errors import UserError

SECONDS = 10  # bound of every wait


class Stream:
  """An island's control stream, in the hands of a test."""

  def __init__(self, address: str):
    self._channel = rpc.channel(address, rpc.LOOPBACK)
    self.stub = pb_grpc.CoordinatorStub(self._channel)
    self._said: queue.Queue = queue.Queue()
    self._heard = self.stub.Attend(iter(self._said.get, None), timeout=SECONDS)

  def say(self, term: int = 0, **message) -> None:
    self._said.put(pb.FromIsland(term=term, **message))

  def hear(self, kind: str):
    """The next message of a kind; those before it are passed over."""
    for message in self._heard:
      if message.WhichOneof("message") == kind:
        return getattr(message, kind)
    raise EOFError(f"the stream ended without a {kind}")

  def ended(self) -> bool:
    return not list(self._heard)

  def close(self) -> None:
    self._said.put(None)
    self._heard.cancel()
    self._channel.close()


@pytest.fixture
def service(tmp_path):
  with contextlib.closing(CoordinatorService(run_config(), tmp_path)) as made:
    yield made


@pytest.fixture
def attend(service):
  with contextlib.ExitStack() as stack:
    yield lambda: stack.enter_context(
      contextlib.closing(Stream(service.address))
    )


def hello(**fields) -> pb.Hello:
  made = pb.Hello(
    protocol=rpc.PROTOCOL_VERSION,
    run_digest=config_lib.digest(run_config()),
    island="a",
    incarnation=1,
    process=b"p",
    addresses=["127.0.0.1:1"],
  )
  made.MergeFrom(pb.Hello(**fields))
  return made


def state_ready() -> pb.StateReady:
  return pb.StateReady(record=0, state=pb.Blob(id=b"theta"))


def test_a_newcomer_is_told_the_run(service, attend):
  described = attend().stub.Describe(pb.DescribeRequest(), timeout=SECONDS)
  assert config_lib.from_json(described.run_json) == run_config()
  assert described.run_digest == config_lib.digest(run_config())
  assert (described.protocol, described.term) == (rpc.PROTOCOL_VERSION, 1)
  assert described.run_id


def test_an_island_joins_and_makes_record_0(service, attend):
  stream = attend()
  stream.say(hello=hello())
  welcome = stream.hear("welcome")
  assert welcome.start == pb.Welcome.START_INITIALISE
  stream.say(state_ready=state_ready())
  sealed = stream.hear("record")
  record = pb.Record.FromString(sealed.body)
  assert record.genesis.state == b"theta"
  log = stream.stub.ReadLog(pb.ReadLogRequest(start=0), timeout=SECONDS)
  assert [(s.body, s.hash) for s in log] == [(sealed.body, sealed.hash)]
  stream.say(ready=pb.Ready(record=0))
  stream.say(lease_request=pb.LeaseRequest(window=0, samples=4))
  grant = stream.hear("lease_grant")
  assert [(s.start, s.stop) for s in grant.samples] == [(0, 4)]
  assert [i.state for i in service.status().islands] == ["in"]


def test_a_broken_stream_is_noticed(service, attend):
  gone, other = attend(), attend()
  gone.say(hello=hello())
  gone.hear("welcome")
  other.say(hello=hello(island="b"))
  assert other.hear("welcome").start == pb.Welcome.START_RESTORE
  gone.close()  # and now b is to initialise
  assert other.hear("welcome").start == pb.Welcome.START_INITIALISE


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    (dict(run_digest="f" * 64), ["f" * 12, config_lib.digest(run_config())]),
    (dict(protocol=99), ["protocol 99", str(rpc.PROTOCOL_VERSION)]),
    (dict(run_id="another"), ["another", "--workdir"]),
    (dict(process=b"q"), ["copied", "empty workdir"]),
  ],
)
def test_who_may_not_take_part_is_told_why(service, attend, fields, words):
  first, second = attend(), attend()
  first.say(hello=hello())
  first.hear("welcome")
  fields = {"process": b""} | fields
  second.say(hello=hello(**fields), term=1000)
  refusal = second.hear("refusal")
  assert all(word[:12] in refusal.reason for word in words)
  assert second.ended()
  assert not service.stopped
  first.say(state_ready=state_ready())
  first.hear("record")


def test_what_was_said_last_is_heard(service, attend):
  """Who does not hear that the run is over waits for ever."""
  stream = attend()
  stream.say(hello=hello())
  stream.hear("welcome")
  (outbox,) = service._outboxes.values()
  for _ in range(100):
    outbox.put(pb.ToIsland(closing=pb.Closing()))
  outbox.put(pb.ToIsland(finished=pb.Finished(reason="over")))
  service.close()
  assert stream.hear("finished").reason == "over"


def test_a_restarted_coordinator_has_the_log_and_the_next_term(tmp_path):
  with contextlib.closing(CoordinatorService(run_config(), tmp_path)) as made:
    run_id = made.description().run_id
    with contextlib.closing(Stream(made.address)) as stream:
      stream.say(hello=hello())
      stream.say(state_ready=state_ready())
      first = stream.hear("record")
      stream.say(lease_request=pb.LeaseRequest(window=0, samples=4))
      stream.hear("lease_grant")
  with contextlib.closing(CoordinatorService(run_config(), tmp_path)) as made:
    assert made.description().term == 2
    state = dict(has_state=True, record=0, record_hash=first.hash)
    with contextlib.closing(Stream(made.address)) as copied:
      copied.say(hello=hello(run_id=run_id, process=b"q", **state), term=1)
      assert "was copied" in copied.hear("refusal").reason
    with contextlib.closing(Stream(made.address)) as stream:
      stream.say(hello=hello(run_id=run_id, **state), term=1)
      assert stream.hear("welcome").start == pb.Welcome.START_GO_ON


def test_a_higher_term_stops_it(service, attend):
  stream = attend()
  stream.say(hello=hello(), term=5)
  assert service.done.wait(SECONDS)
  assert "has seen term 5" in service.stopped


def test_what_is_not_durable_is_not_told(service, attend):
  """The disk fails: the coordinator stops rather than promise."""
  stream = attend()
  stream.say(hello=hello())
  stream.hear("welcome")
  service._ledger.close()
  stream.say(state_ready=state_ready())
  assert service.done.wait(SECONDS)
  assert "it failed" in service.stopped
  with pytest.raises(grpc.RpcError, match="it failed"):
    list(stream.stub.ReadLog(pb.ReadLogRequest(start=0), timeout=SECONDS))
  service.close()
  with pytest.raises((EOFError, grpc.RpcError)):
    stream.hear("record")


def test_a_change_that_cannot_be_written_is_answered_at_once(service, attend):
  """Nor does the process that ends linger until somebody is tired of asking."""
  stream = attend()
  stream.say(hello=hello())
  stream.say(state_ready=state_ready())
  stream.hear("record")
  service._ledger.close()
  pause = pb.ControlRequest(pause=pb.SetPause(paused=True))
  with pytest.raises(grpc.RpcError, match="it failed"):
    stream.stub.Control(pause, timeout=5)
  assert service.done.wait(SECONDS)


def test_a_port_in_use_is_said_and_holds_nothing(service, tmp_path):
  workdir = tmp_path / "other"
  with pytest.raises(UserError, match="port is in use"):
    CoordinatorService(run_config(), workdir, service.address)
  CoordinatorService(run_config(), workdir).close()  # its ledger is free


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_listening_to_the_world_must_be_asked_for(tmp_path, address):
  with pytest.raises(UserError, match="--insecure"):
    CoordinatorService(run_config(), tmp_path, address)
  insecure = rpc.Credentials(insecure=True)
  CoordinatorService(run_config(), tmp_path, "0.0.0.0:0", insecure).close()


@pytest.mark.parametrize("address", ["7600", "localhost", ":7600", "host:x"])
def test_a_malformed_address_is_explained(tmp_path, address):
  with pytest.raises(UserError, match="must be host:port"):
    CoordinatorService(run_config(), tmp_path, address)


def test_a_lost_ledger_is_recovered_from_the_islands(tmp_path):
  """Their records are the run's; the term is above all that they have seen."""
  with contextlib.closing(CoordinatorService(run_config(), tmp_path)) as made:
    run_id = made.description().run_id
    with contextlib.closing(Stream(made.address)) as stream:
      stream.say(hello=hello())
      stream.say(state_ready=state_ready())
      first = stream.hear("record")
  empty = tmp_path / "empty"
  recovering = CoordinatorService(run_config(), empty, recover=True)
  with contextlib.closing(recovering) as made:
    assert "waiting for islands" in made.status().phase
    # An island that has been in the run may come, with its own word for which
    # that is: all of them may have lost power too.
    with pytest.raises(UserError, match="recovering a run"):
      describe([made.address], rpc.LOOPBACK, 0.3)
    described = describe([made.address], rpc.LOOPBACK, SECONDS, run_id)
    assert described.run_id == run_id
    assert described.run_digest == made.description().run_digest
    with contextlib.closing(Stream(made.address)) as stream:
      state = dict(has_state=True, record=0, record_hash=first.hash)
      stream.say(hello=hello(run_id=run_id, **state), term=1)
      assert stream.hear("ask_records").start == 0
      first.ClearField("holders")
      stream.say(records=pb.Records(records=[first], end=1), term=1)
      assert stream.hear("welcome").start == pb.Welcome.START_GO_ON
      described = made.description()
      assert described.run_id == run_id
      assert described.term > 1
  with contextlib.closing(CoordinatorService(run_config(), empty)) as made:
    assert made.description().run_id == run_id  # and it is on the disk
  with pytest.raises(UserError, match="has a run"):
    CoordinatorService(run_config(), empty, recover=True)
