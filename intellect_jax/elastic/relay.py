"""The relay: blobs of islands that can call out, but that nobody can call.

    reader                relay                 island behind NAT
                            <-- Attend -----------  keeps the call open
    Fetch(island) ------>   --- RelayedFetch ---->  is told who wants what
           <--- frames --   <-- Deliver(frames) --  answers in a call of its own

Each fetch is a call of its own on both sides, so that HTTP/2 mixes them and
holds each of them back: the relay has a few frames of a fetch at a time, and
reads from the island as fast as the reader reads from it. It understands
nothing of what it passes on: readers verify every chunk, as from anyone.
"""

import collections
from collections.abc import Iterator
import concurrent.futures
import contextlib
import queue
import random
import secrets
import threading

from absl import logging
import grpc

from intellect_jax.elastic import rpc
from intellect_jax.elastic.blobs import FETCH, BlobStore
from intellect_jax.elastic.protocol import elastic_pb2 as pb

_ATTEND = "/intellect.v1.Relay/Attend"
_DELIVER = "/intellect.v1.Relay/Deliver"
_TICKET = "ticket-bin"  # metadata of Deliver
_HELD = 4  # frames of a fetch that the relay has at a time
_MAX_ISLANDS = 256  # a thread each
_MAX_FETCHES = 256  # two threads each
_SERVED_AT_ONCE = 16  # fetches that an island answers through a relay
_BACKOFF = 0.2, 5.0  # seconds between tries to reach the relay
_END = None


class Relay:
  """A relay at `address`, from construction to `close`.

  Attributes:
    bytes_relayed: of each island that was read through here.
  """

  def __init__(self, listen: str, credentials: rpc.Credentials = rpc.LOOPBACK):
    """Listens; raises UserError as `rpc.listen` does."""
    self.bytes_relayed: collections.Counter[str] = collections.Counter()
    self._attending: dict[str, list[queue.Queue]] = {}  # the newest is last
    self._pipes: dict[bytes, _Pipe] = {}  # of open fetches, by ticket
    self._lock = threading.Lock()
    self._server = rpc.server(_MAX_ISLANDS + 2 * _MAX_FETCHES, credentials)
    fetch = grpc.unary_stream_rpc_method_handler(
      self._fetch, request_deserializer=pb.FetchRequest.FromString
    )
    attend = grpc.unary_stream_rpc_method_handler(
      self._attend,
      request_deserializer=pb.RelayHello.FromString,
      response_serializer=pb.RelayedFetch.SerializeToString,
    )
    deliver = grpc.stream_unary_rpc_method_handler(
      self._deliver, response_serializer=pb.Delivered.SerializeToString
    )
    for path, handler in (
      (FETCH, fetch),
      (_ATTEND, attend),
      (_DELIVER, deliver),
    ):
      rpc.add_handler(self._server, path, handler)
    self.address = rpc.listen(self._server, listen, credentials)

  def close(self) -> None:
    """Breaks all streams off."""
    self._server.stop(grace=None).wait()

  @property
  def islands(self) -> list[str]:
    """Who keeps a stream open."""
    with self._lock:
      return sorted(self._attending)

  def _attend(self, hello: pb.RelayHello, context) -> Iterator[pb.RelayedFetch]:
    wanted: queue.Queue = queue.Queue()
    with self._lock:
      if len(self._attending) >= _MAX_ISLANDS:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the relay is full")
      self._attending.setdefault(hello.island, []).append(wanted)
    if not context.add_callback(lambda: wanted.put(_END)):
      wanted.put(_END)  # it is over already
    try:
      yield from iter(wanted.get, _END)
    finally:
      with self._lock:
        streams = self._attending[hello.island]
        streams.remove(wanted)
        if not streams:
          del self._attending[hello.island]

  def _fetch(self, request: pb.FetchRequest, context) -> Iterator[bytes]:
    island, ticket, pipe = request.island, secrets.token_bytes(16), _Pipe()
    with self._lock:
      streams = self._attending.get(island)
      full = len(self._pipes) >= _MAX_FETCHES
      if streams and not full:
        self._pipes[ticket] = pipe
        streams[-1].put(pb.RelayedFetch(ticket=ticket, request=request))
    if full:
      context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the relay is busy")
    if not streams:
      reason = f"{island} keeps no stream open to this relay"
      context.abort(grpc.StatusCode.UNAVAILABLE, reason)
    if not context.add_callback(pipe.close):
      pipe.close()
    try:
      for frame in pipe:
        self.bytes_relayed[island] += len(frame)
        yield frame
    finally:
      pipe.close()
      with self._lock:
        del self._pipes[ticket]

  def _deliver(self, frames: Iterator[bytes], context) -> pb.Delivered:
    ticket = dict(context.invocation_metadata()).get(_TICKET)
    with self._lock:
      pipe = self._pipes.get(ticket or b"")
    if pipe is None:
      return pb.Delivered()  # the reader has gone
    try:
      for frame in frames:
        if not pipe.put(frame):
          break
    except grpc.RpcError:
      pass  # the island broke off, which the reader finds out by the end
    finally:
      pipe.close()
    return pb.Delivered()


class _Pipe:
  """A few frames between two calls, either of which can close it."""

  def __init__(self):
    self._frames: collections.deque[bytes] = collections.deque()
    self._closed = False
    self._changed = threading.Condition()

  def put(self, frame: bytes) -> bool:
    """Waits for room. Returns whether anybody still reads."""
    with self._changed:
      self._changed.wait_for(lambda: self._closed or len(self._frames) < _HELD)
      if not self._closed:
        self._frames.append(frame)
        self._changed.notify_all()
      return not self._closed

  def close(self) -> None:
    """What is in it can still be read."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()

  def __iter__(self) -> Iterator[bytes]:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._closed or self._frames)
        if not self._frames:
          return
        frame = self._frames.popleft()
        self._changed.notify_all()
      yield frame


class RelayLink:
  """Serves a store through a relay, until `close`. Calls out only."""

  def __init__(
    self,
    relay: str,
    island: str,
    store: BlobStore,
    credentials: rpc.Credentials = rpc.LOOPBACK,
  ):
    """Connects in the background, as often as is needed.

    Args:
      relay: host:port.
      island: under whose name the blobs are asked for.
      store: what is served.
      credentials: for the channel.
    """
    self._relay, self._island, self._store = relay, island, store
    self._channel = rpc.channel(relay, credentials)
    self._attend = self._channel.unary_stream(
      _ATTEND,
      request_serializer=pb.RelayHello.SerializeToString,
      response_deserializer=pb.RelayedFetch.FromString,
    )
    self._deliver = self._channel.stream_unary(_DELIVER)
    self._closing = threading.Event()
    self._workers = concurrent.futures.ThreadPoolExecutor(
      _SERVED_AT_ONCE, thread_name_prefix="relayed"
    )
    self._thread = threading.Thread(
      target=self._keep_attending, name="relay", daemon=True
    )
    self._thread.start()

  def close(self) -> None:
    self._closing.set()
    self._channel.close()  # ends all its calls
    self._thread.join()
    self._workers.shutdown(cancel_futures=True)

  def _keep_attending(self) -> None:
    pause = _BACKOFF[0]
    while not self._closing.is_set():
      try:
        for wanted in self._attend(pb.RelayHello(island=self._island)):
          pause = _BACKOFF[0]
          self._workers.submit(self._answer, wanted)
      except (grpc.RpcError, ValueError) as error:  # ValueError: it is closed
        if not self._closing.is_set():
          logging.info("The relay %s does not answer: %s", self._relay, error)
      self._closing.wait(pause * random.uniform(0.5, 1.0))
      pause = min(2 * pause, _BACKOFF[1])

  def _answer(self, wanted: pb.RelayedFetch) -> None:
    frames = self._store.frames(wanted.request, relayed=True)
    # An error says that the relay has gone; the reader asks again.
    with contextlib.suppress(grpc.RpcError, ValueError):
      self._deliver(frames, metadata=((_TICKET, wanted.ticket),))
