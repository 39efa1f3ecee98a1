"""An island's agent without a model, and a coordinator that says what we want."""

import collections
from collections.abc import Callable, Sequence
import contextlib
import queue
import threading

import grpc

from intellect_jax.elastic import blobs, chain, fetching, reduce, rpc
from intellect_jax.elastic.agent import Agent
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.inner import InnerNetwork
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.news import News
from intellect_jax.elastic.part import Part
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import elastic_pb2_grpc as pb_grpc
from intellect_jax.elastic.shelf import MeanShelf
from intellect_jax.outer.codec import make_codec

SECONDS = 30  # bound of every wait
BREAK = None  # ends the stream


def bare_agent(
  hello: pb.Hello,
  coordinators: Sequence[str],
  log: RecordLog,
  store: blobs.BlobStore,
  lease_seconds: float = 3,
  checkpoints: Callable[[], list[int]] = lambda: [0],
  use_relays: Callable[[list[str]], bool] = lambda relays: False,
  on_term: Callable[[int], None] = lambda term: None,
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
    on_term=on_term,
    use_relays=use_relays,
  )


class Coordinator(pb_grpc.CoordinatorServicer):
  """Says what is put into `says`; what it hears comes out of `heard`."""

  def __init__(self):
    self.says: queue.Queue = queue.Queue()
    self.heard = collections.defaultdict(queue.Queue)  # by kind
    self.log: list[pb.SealedRecord] | None = []  # None: it cannot be read
    self._server = rpc.server(8)
    pb_grpc.add_CoordinatorServicer_to_server(self, self._server)
    self.address = rpc.listen(self._server, "127.0.0.1:0", rpc.LOOPBACK)

  def Attend(self, request_iterator, context):
    def hear() -> None:
      with contextlib.suppress(Exception):  # the stream's end is no news here
        for message in request_iterator:
          kind = message.WhichOneof("message")
          self.heard[kind].put(getattr(message, kind))
        if context.is_active():  # the island has said its last
          self.says.put(BREAK)

    threading.Thread(target=hear, daemon=True).start()
    while (message := self.says.get(timeout=SECONDS)) is not BREAK:
      yield pb.ToIsland(term=1, **message)

  def ReadLog(self, request, context):
    log = self.log
    self.heard["read_log"].put(request)
    if log is None:
      context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
    else:
      yield from log[request.start :]

  def hear(self, kind: str):
    """The next message of a kind."""
    return self.heard[kind].get(timeout=SECONDS)

  def close(self) -> None:
    self.says.put(BREAK)
    self._server.stop(grace=None)


def genesis() -> pb.SealedRecord:
  return chain.seal(pb.Record(term=1, genesis=pb.Genesis(state=b"s")))


def settings(number: int, previous: bytes) -> pb.SealedRecord:
  changed = pb.Settings(reason="any")
  return chain.seal(
    pb.Record(number=number, term=1, previous=previous, settings=changed)
  )
