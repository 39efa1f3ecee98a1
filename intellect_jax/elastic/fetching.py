"""How ranges of blobs are fetched from other islands, and verified."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import itertools
import secrets
import threading
import time

import grpc

from intellect_jax.elastic import rpc
from intellect_jax.elastic.blobs import (
  FETCH,
  NUMBER,
  Manifest,
  is_relayed,
  split_relayed,
)
from intellect_jax.elastic.pace import Pace
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.rates import Rate

_AHEAD = 4  # chunks a connection, that a fetch may be ahead of its reader
_RETRY = 0.05  # seconds before the next address is asked
_SILENT = 0.5  # seconds to a failure after which an address is silent …
_AVOIDED = 60.0  # … and for so many seconds others are asked before it
_ON_THE_WAY = 1 << 18  # bytes that one connection easily has on its way
_FETCH_BYTES = 8  # of what connections of one fetch have in common
_LOOK = 0.1  # seconds, to see whether it is cancelled


class FetchError(Exception):
  """A peer did not deliver. `peer` is its address."""

  def __init__(self, peer: str, reason: str):
    super().__init__(f"{peer}: {reason}")
    self.peer = peer
    self.reason = reason


class Cancelled(Exception):
  """The attempt that wanted these bytes is over."""


class Fetcher:
  """Fetches ranges of blobs from other islands, verified chunk by chunk.

  A far peer on a fast link is read on several connections, each of which brings
  the next chunk whenever it can take one: together they are sooner at the link's
  rate, a lost packet halves the window of one alone, and what one has on the way
  is bounded by the hosts' TCP buffers, 4 MB or less. Many peers are many
  connections anyhow.
  """

  def __init__(
    self,
    credentials: rpc.Credentials,
    patience: float,
    download_mbit: float = 0.0,
    connections: int = 8,
  ):
    """Prepares; connections are made when they are needed.

    Args:
      credentials: for channels.
      patience: seconds without a chunk before a fetch is given up.
      download_mbit: cap on what is fetched, 10^6 bits/s; 0 is none.
      connections: to far peers, all together.
    """
    self._channels = rpc.Channels(credentials)
    self.patience = patience
    self._pace = Pace(download_mbit)
    self.rate = Rate(download_mbit)
    self._connections = connections
    self._silent: dict[str, float] = {}  # address -> until when it is avoided
    self._distance: dict[
      str, float
    ] = {}  # address -> seconds to the last first byte
    self.bytes_received = 0

  def fetch(
    self,
    addresses: Sequence[str],
    blob_id: bytes,
    start: int,
    stop: int,
    cancelled: threading.Event,
    on_manifest: Callable[[Manifest], object] = lambda manifest: None,
  ) -> Iterator[tuple[int, bytes]]:
    """Yields (offset, bytes) of each chunk that covers [start, stop).

    Goes on from the next address where one fails, and around again: direct
    ones first, then those behind relays, last those that have lately been
    waited for in vain. `on_manifest` hears the
    verified manifest, from each that is asked, so that who goes on to serve
    the bytes need not hash them again.

    Raises:
      FetchError: no good chunk from anyone for `patience` seconds, each asked
        at least once.
      Cancelled: once `cancelled` is set.
    """
    if not addresses:
      raise FetchError("nobody", "no address is known that serves it")
    started = progress = time.monotonic()
    failures = 0

    def rank(address: str) -> tuple[bool, bool]:
      silent = self._silent.get(address, 0) > started
      return silent, is_relayed(address)

    for address in itertools.cycle(sorted(addresses, key=rank)):
      asked = time.monotonic()
      try:
        for offset, chunk in self._stream(
          address, blob_id, start, stop, cancelled, on_manifest
        ):
          start, progress, failures = offset + len(chunk), time.monotonic(), 0
          yield offset, chunk
        return
      except FetchError:
        failures += 1
        now = time.monotonic()
        if now - max(asked, progress) > _SILENT:
          self._silent[address] = now + _AVOIDED
        waited = now - progress
        if waited >= self.patience and failures >= len(addresses):
          raise
        cancelled.wait(_RETRY)

  def _stream(
    self,
    address: str,
    blob_id: bytes,
    start: int,
    stop: int,
    cancelled: threading.Event,
    on_manifest: Callable[[Manifest], object],
  ) -> Iterator[tuple[int, bytes]]:
    asked = time.monotonic()
    lanes = range(self._connections_to(address))
    with self._frames(
      lanes, address, blob_id, start, stop, cancelled
    ) as next_frame:
      try:
        manifest = Manifest.unpack(next_frame(), blob_id)
        self._distance[address] = time.monotonic() - asked
        if stop > manifest.length:
          raise ValueError(f"the blob has {manifest.length} bytes, not {stop}")
        on_manifest(manifest)
        for offset in manifest.chunks(start, stop):
          chunk = next_frame()
          manifest.verify(offset, chunk)
          yield offset, chunk
      except ValueError as error:
        raise FetchError(address, str(error)) from error

  def follow(
    self,
    address: str,
    name: bytes,
    start: int,
    stop: int,
    chunk: int,
    cancelled: threading.Event,
    alone: threading.Event,
  ) -> Iterator[bytes]:
    """Yields the chunks of [start, stop) of what grows, not verified.

    On one connection, its own, until `alone` is set, so that it takes little from
    what the link carries meanwhile; then on as many as it takes.

    Raises:
      FetchError: if it does not come, or not in such chunks.
      Cancelled: once `cancelled` is set.
    """
    while start < stop:
      count = self._connections_to(address)
      waits = count > 1 and not alone.is_set()
      lanes = range(count, count + 1) if waits else range(count)
      with self._frames(
        lanes, address, name, start, stop, cancelled
      ) as next_frame:
        while start < stop and not (waits and alone.is_set()):
          frame = next_frame()
          if len(frame) != min(chunk, stop - start):
            raise FetchError(address, "it grows in other chunks")
          start += len(frame)
          yield frame

  def _connections_to(self, address: str) -> int:
    """As many as it takes to keep a link full."""
    if is_relayed(address):
      return 1
    on_the_way = self._distance.get(address, 0.0) * self.rate.bytes_a_second
    most = self._connections // max(1, len(self._distance))
    return max(1, min(1 + int(on_the_way / _ON_THE_WAY), most))

  @contextlib.contextmanager
  def _frames(
    self,
    lanes: range,
    address: str,
    blob_id: bytes,
    start: int,
    stop: int,
    cancelled: threading.Event,
  ) -> Iterator[Callable[[], bytes]]:
    """What an address sends on these connections, frame by frame, in order.

    Asking for more than comes is a FetchError.
    """
    host_port, island = split_relayed(address)
    request = pb.FetchRequest(id=blob_id, start=start, stop=stop, island=island)
    if len(lanes) > 1:
      request.fetch = secrets.token_bytes(_FETCH_BYTES)
    arrivals = _Arrivals(len(lanes))
    calls = [
      self._channels.to(host_port, lane).unary_stream(
        FETCH, request_serializer=pb.FetchRequest.SerializeToString
      )(request)
      for lane in lanes
    ]
    for call in calls:
      threading.Thread(target=arrivals.read, args=(call,), daemon=True).start()
    self.rate.begin(time.monotonic())
    try:
      yield lambda: self._next(arrivals, address, cancelled)
    finally:
      self.rate.end()
      arrivals.end()
      for call in calls:
        call.cancel()

  def _next(
    self, arrivals: "_Arrivals", address: str, cancelled: threading.Event
  ) -> bytes:
    waited = 0.0
    while (frame := arrivals.take(_LOOK)) is None:
      if cancelled.is_set():
        raise Cancelled
      waited += _LOOK
      if waited >= self.patience:
        raise FetchError(address, f"nothing came for {self.patience:g} s")
    if cancelled.is_set():
      raise Cancelled
    if isinstance(frame, Exception):
      raise FetchError(address, _reason(frame)) from frame
    self._pace.take(len(frame))
    self.rate.count(len(frame), time.monotonic())
    self.bytes_received += len(frame)
    return frame

  def close(self) -> None:
    self._channels.close()


class _Arrivals:
  """Frames from connections that overtake each other, taken in their order."""

  def __init__(self, connections: int):
    self._numbered = connections > 1
    self._most = _AHEAD * connections  # frames that wait for those before them
    self._frames: dict[int, bytes] = {}
    self._next = 0
    self._open = connections
    self._ending: Exception | None = None
    self._over = False
    self._changed = threading.Condition()

  def read(self, call: Iterable[bytes]) -> None:
    """Puts what comes on one connection here, until it ends or `end`."""
    ending: Exception = EOFError("the stream ended early")
    try:
      for count, frame in enumerate(call):
        if not self._numbered:
          placed = self._put(count, frame)
        else:
          number = int.from_bytes(frame[:NUMBER])
          placed = self._put(number, frame[NUMBER:])
        if not placed:
          return
    except grpc.RpcError as error:
      ending = error
    with self._changed:
      self._open -= 1
      # That one has brought all it could is no failure before all have.
      if not self._open or isinstance(ending, grpc.RpcError):
        self._ending = self._ending or ending
      self._changed.notify_all()

  def _put(self, number: int, frame: bytes) -> bool:
    def may() -> bool:
      awaited = number == self._next  # whatever else is here
      return awaited or len(self._frames) < self._most or self._over

    with self._changed:
      self._changed.wait_for(may)
      self._frames[number] = frame
      self._changed.notify_all()
      return not self._over

  def take(self, seconds: float) -> bytes | Exception | None:
    """The next frame, or how it ended before that; None: neither came."""
    with self._changed:
      self._changed.wait_for(
        lambda: self._next in self._frames or self._ending is not None, seconds
      )
      frame = self._frames.pop(self._next, None)
      if frame is None:
        return self._ending
      self._next += 1
      self._changed.notify_all()
      return frame

  def end(self) -> None:
    """Nobody takes more: who reads goes."""
    with self._changed:
      self._over = True
      self._changed.notify_all()


def _reason(error: Exception) -> str:
  if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
    return f"{error.code().name}: {error.details()}"
  return str(error)
