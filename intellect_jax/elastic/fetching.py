"""How ranges of blobs are fetched from other islands, and verified."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import itertools
import queue
import threading
import time

import grpc

from intellect_jax.elastic import rpc
from intellect_jax.elastic.blobs import (
  FETCH,
  Manifest,
  is_relayed,
  split_relayed,
)
from intellect_jax.elastic.pace import Pace
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.rates import Rate

_AHEAD = 4  # chunks that a fetch may be ahead of its reader
_RETRY = 0.05  # seconds before the next address is asked
_SILENT = 0.5  # seconds to a failure after which an address is silent …
_AVOIDED = 60.0  # … and for so many seconds others are asked before it
_ON_THE_WAY = 1 << 18  # bytes that one connection easily has on its way
_NOTHING = object()  # no frame is this


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

  A far peer on a fast link is read on several connections, chunk by chunk in
  turn: together they are sooner at the link's rate, a lost packet halves the
  window of one alone, and what one has on the way is bounded by the hosts' TCP
  buffers, 4 MB or less. No more than it takes, for they do not share a link
  evenly, and the slowest is waited for. Many peers are many connections anyhow.
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
    with self._lanes(address, blob_id, start, stop, cancelled) as lanes:
      try:
        manifest = Manifest.unpack(next(lanes[0]), blob_id)
        self._distance[address] = time.monotonic() - asked
        if stop > manifest.length:
          raise ValueError(f"the blob has {manifest.length} bytes, not {stop}")
        on_manifest(manifest)
        turns = itertools.cycle(lanes)
        for offset in manifest.chunks(start, stop):
          chunk = next(next(turns))
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
  ) -> Iterator[bytes]:
    """Yields the chunks of [start, stop) of what grows, not verified.

    Raises:
      FetchError: if it does not come, or not in such chunks.
      Cancelled: once `cancelled` is set.
    """
    with self._lanes(address, name, start, stop, cancelled) as lanes:
      turns = itertools.cycle(lanes)
      for offset in range(start, stop, chunk):
        frame = next(next(turns))
        if len(frame) != min(chunk, stop - offset):
          raise FetchError(address, "it grows in other chunks")
        yield frame

  @contextlib.contextmanager
  def _lanes(
    self,
    address: str,
    blob_id: bytes,
    start: int,
    stop: int,
    cancelled: threading.Event,
  ) -> Iterator[list[Iterator[bytes]]]:
    """What an address sends, on as many connections as it takes."""
    on_the_way = self._distance.get(address, 0.0) * self.rate.bytes_a_second
    count = 1 + int(on_the_way / _ON_THE_WAY)
    most = self._connections // max(1, len(self._distance))
    count = 1 if is_relayed(address) else max(1, min(count, most))
    request = pb.FetchRequest(id=blob_id, start=start, stop=stop, lanes=count)
    with contextlib.ExitStack() as stack:
      yield [
        stack.enter_context(self._frames(address, request, lane, cancelled))
        for lane in range(count)
      ]

  @contextlib.contextmanager
  def _frames(
    self,
    address: str,
    request: pb.FetchRequest,
    lane: int,
    cancelled: threading.Event,
  ) -> Iterator[Iterator[bytes]]:
    """What comes on a lane; asking for more than comes is a FetchError."""
    host_port, request.island = split_relayed(address)
    request.lane = lane
    call = self._channels.to(host_port, lane).unary_stream(
      FETCH, request_serializer=pb.FetchRequest.SerializeToString
    )(request)
    frames: queue.Queue = queue.Queue(maxsize=_AHEAD)
    over = threading.Event()
    reader = threading.Thread(
      target=_read_frames, args=(call, frames, over), daemon=True
    )
    reader.start()
    self.rate.begin(time.monotonic())
    try:
      yield iter(lambda: self._next(frames, address, cancelled), _NOTHING)
    finally:
      self.rate.end()
      over.set()
      call.cancel()

  def _next(
    self, frames: queue.Queue, address: str, cancelled: threading.Event
  ) -> bytes:
    waited = 0.0
    while True:
      if cancelled.is_set():
        raise Cancelled
      try:
        frame = frames.get(timeout=0.1)
        break
      except queue.Empty:
        waited += 0.1
        if waited >= self.patience:
          raise FetchError(
            address, f"nothing came for {self.patience:g} s"
          ) from None
    if isinstance(frame, Exception):
      raise FetchError(address, _reason(frame)) from frame
    self._pace.take(len(frame))
    self.rate.count(len(frame), time.monotonic())
    self.bytes_received += len(frame)
    return frame

  def close(self) -> None:
    self._channels.close()


def _read_frames(call, frames: queue.Queue, over: threading.Event) -> None:
  """Moves frames from a call to a bounded queue; its end is an exception."""
  try:
    for frame in call:
      while not over.is_set():
        try:
          frames.put(frame, timeout=0.1)
          break
        except queue.Full:
          continue
      if over.is_set():
        return
    ending: Exception = EOFError("the stream ended early")
  except grpc.RpcError as error:
    ending = error
  while not over.is_set():
    try:
      frames.put(ending, timeout=0.1)
      return
    except queue.Full:
      continue


def _reason(error: Exception) -> str:
  if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
    return f"{error.code().name}: {error.details()}"
  return str(error)
