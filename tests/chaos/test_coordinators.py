"""An island with a list of coordinator addresses: the next one is tried."""

import contextlib
import socket

from bare import bare_agent
import pytest

from benchmarks.fault_proxy import FaultProxy
from intellect_jax import config as config_lib
from intellect_jax.elastic import blobs, rpc
from intellect_jax.elastic.agent import Agent
from intellect_jax.elastic.describe import describe
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.service import CoordinatorService
from intellect_jax.errors import UserError

SECONDS = 20  # bound of every wait


@pytest.fixture
def service(tmp_path):
  run = config_lib.load(config_lib.base_path().with_name("tiny.py")).run
  workdir = tmp_path / "coordinator"
  made = CoordinatorService(run, workdir, relays=[":7601", "r.org:1"])
  with contextlib.closing(made):
    yield made


def nobody() -> str:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{probe.getsockname()[1]}"


def agent_of(service, coordinators: list[str], folder) -> Agent:
  log = RecordLog(folder)
  log.open()
  hello = pb.Hello(
    protocol=rpc.PROTOCOL_VERSION,
    run_digest=service.description().run_digest,
    island="ada",
    incarnation=1,
    process=b"p",
    addresses=["127.0.0.1:1"],
  )
  return bare_agent(hello, coordinators, log, blobs.BlobStore())


def test_the_first_that_answers_describes_the_run(service):
  described = describe([nobody(), service.address], rpc.LOOPBACK, SECONDS)
  assert described.run_id == service.description().run_id
  # A relay without a host is where the coordinator was reached.
  assert list(described.relays) == ["127.0.0.1:7601", "r.org:1"]


def test_nobody_answers(service):
  two = [nobody(), nobody()]
  with pytest.raises(UserError, match=f"{two[0]} or {two[1]}"):
    describe(two, rpc.LOOPBACK, 0.3)


@pytest.mark.parametrize("fault", ["refuse", "partition"])
def test_an_island_goes_on_at_the_next_address(service, tmp_path, fault):
  with FaultProxy(service.address) as proxy:
    addresses = [proxy.address, service.address]
    agent = agent_of(service, addresses, tmp_path / "log")
    with contextlib.closing(agent):
      agent.start()
      assert agent.news.wait(
        lambda: agent.news.welcome is not None, "", SECONDS
      )
      first, agent.news.welcome = agent.news.welcome, None
      getattr(proxy, fault)()
      assert agent.news.wait(
        lambda: agent.news.welcome is not None, "", SECONDS
      )
      assert first is not None and agent.news.welcome is not None
      assert agent.news.welcome.run_id == first.run_id
      (island,) = service.status().islands
      assert island.island == "ada"
