"""An island's agent without a model, for tests that speak with it."""

from collections.abc import Callable, Sequence

from intellect_jax.elastic import blobs, fetching, reduce, rpc
from intellect_jax.elastic.agent import Agent
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.inner import InnerNetwork
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.news import News
from intellect_jax.elastic.part import Part
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.shelf import MeanShelf
from intellect_jax.outer.codec import make_codec


def bare_agent(
  hello: pb.Hello,
  coordinators: Sequence[str],
  log: RecordLog,
  store: blobs.BlobStore,
  lease_seconds: float = 3,
  checkpoints: Callable[[], list[int]] = lambda: [0],
  use_relays: Callable[[list[str]], bool] = lambda relays: False,
) -> Agent:
  """An agent of one block of values; its arguments are those of Agent."""
  codec = make_codec("int8")
  part = Part(
    reduce.Exchange(codec, store, fetching.Fetcher(rpc.LOOPBACK, 1)),
    MeanShelf(store, log, codec.block_bytes, [codec.block_bytes]),
    log,
    [codec.block_bytes],
    InnerNetwork(),
    pb.StateReady,
  )
  return Agent(
    News(),
    hello,
    term=0,
    coordinators=coordinators,
    credentials=rpc.LOOPBACK,
    crew=Crew(part),
    log=log,
    lease_seconds=lease_seconds,
    threads=1,
    checkpoints=checkpoints,
    on_term=lambda term: None,
    use_relays=use_relays,
  )
