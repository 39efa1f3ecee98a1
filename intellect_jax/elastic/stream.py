"""The control stream of an island, to whichever coordinator answers.

It breaks, it is opened again, at the next address in turn; what is said while
it is broken is not said at all, and who says it says it again in its hello.
"""

from collections.abc import Callable, Sequence
import itertools
import queue
import random
import threading

from absl import logging
import grpc

from intellect_jax.elastic import rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import elastic_pb2_grpc as pb_grpc

_BACKOFF = 0.2, 1.0  # seconds between tries to reach the coordinator
_READ_LOG = 60.0  # seconds
_END = None


class ControlStream:
  """An island's line to the coordinator. `send` is for the owner's thread."""

  def __init__(
    self,
    coordinators: Sequence[str],
    credentials: rpc.Credentials,
    post: Callable[[Callable[[], None]], None],
    opened: Callable[[], None],
    heard: Callable[[pb.ToIsland], None],
    broke: Callable[[], None],
  ):
    """Prepares; nothing is opened yet.

    Args:
      coordinators: host:port of each; the next is tried when one is gone.
      credentials: for channels.
      post: hands a call to the owner's thread, which calls in this order.
      opened: posted when a stream has been opened; says hello.
      heard: posted with each message.
      broke: posted when it has ended.
    """
    self.coordinator = coordinators[0]  # host:port of who is attended now
    self._channels = {a: rpc.channel(a, credentials) for a in coordinators}
    self._stub = pb_grpc.CoordinatorStub(self._channels[self.coordinator])
    self._post = post
    self._opened = opened
    self._heard = heard
    self._broke = broke
    self._outgoing: queue.Queue | None = None  # of the stream that is open
    self._closing = threading.Event()
    self._thread = threading.Thread(
      target=self._attend, name="attend", daemon=True
    )

  def start(self) -> None:
    self._thread.start()

  def close(self) -> None:
    """Ends the stream, after what was said on it."""
    self._closing.set()
    outgoing = self._outgoing
    if outgoing is not None:
      outgoing.put(_END)
    self._thread.join(timeout=5)
    for channel in self._channels.values():
      channel.close()

  def send(self, message: pb.FromIsland) -> None:
    """Says something, if the stream is open."""
    if self._outgoing is not None:
      self._outgoing.put(message)

  def read_log(self, start: int) -> list[pb.SealedRecord]:
    """All committed records from `start` on, in any thread.

    Raises:
      grpc.RpcError: if the coordinator does not answer.
    """
    request = pb.ReadLogRequest(start=start)
    return list(self._stub.ReadLog(request, timeout=_READ_LOG))

  def _attend(self) -> None:
    """Keeps the stream open; each break is told to the owner."""
    pause = _BACKOFF[0]
    for address, channel in itertools.cycle(self._channels.items()):
      if self._closing.is_set():
        return
      self.coordinator = address
      self._stub = pb_grpc.CoordinatorStub(channel)
      outgoing: queue.Queue = queue.Queue()
      self._post(lambda q=outgoing: self._open(q))
      try:
        for message in self._stub.Attend(iter(outgoing.get, _END)):
          pause = _BACKOFF[0]
          self._post(lambda m=message: self._heard(m))
      except grpc.RpcError as error:
        if not self._closing.is_set():
          logging.info("The control stream broke: %s", error)
      outgoing.put(_END)
      self._post(self._end)
      if not self._closing.is_set():
        self._closing.wait(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _BACKOFF[1])

  def _open(self, outgoing: queue.Queue) -> None:
    self._outgoing = outgoing
    self._opened()

  def _end(self) -> None:
    self._outgoing = None
    self._broke()
