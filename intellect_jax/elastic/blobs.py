"""Blobs: immutable, hashed bytes that an island serves, and how to fetch them.

Everything bulky is a blob: an encoded delta, a reduced share, a state for a
newcomer. A blob is cut into chunks; its id is the BLAKE3 hash of the list of
chunk hashes, so that any range of it can be verified (docs/protocol.md, 2).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import itertools
import queue
import struct
import threading
import time

from blake3 import blake3
import grpc
import numpy as np

from intellect_jax.elastic import rpc
from intellect_jax.elastic.growing import Growing
from intellect_jax.elastic.pace import Pace
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.rates import Rate

FETCH = "/intellect.v1.Blobs/Fetch"
_RELAY = "relay:"  # relay:host:port/island is behind the relay at host:port
_MAX_CHUNK = 1 << 20  # bytes; larger frames gain nothing, smaller cost CPU
_MANY = 64  # chunks of a blob, if it has so many blocks …
_SMALL_CHUNK = 1 << 16  # bytes; a smaller frame costs as much as this one …
_FEW = 16  # … and so many chunks are enough
_MAX_MANIFEST = 64 << 20  # bytes; a blob of 2 TB has this much
_HEADER = struct.Struct("<QI")  # length, chunk size
_HASH = 32
_AHEAD = 4  # chunks that a fetch may be ahead of its reader
_RETRY = 0.05  # seconds before the next address is asked
_SILENT = 0.5  # seconds to a failure after which an address is silent …
_AVOIDED = 60.0  # … and for so many seconds others are asked before it
_FAR = 0.01  # seconds to the first byte, from which on a peer is far
_NOTHING = object()  # no frame is this


def chunk_bytes(length: int, block_bytes: int) -> int:
  """Bytes a chunk: whole codec blocks, 1 MiB at most, but enough chunks."""
  blocks = -(-length // block_bytes)
  large, small = _MAX_CHUNK // block_bytes, _SMALL_CHUNK // block_bytes
  fine, coarse = blocks // _MANY, blocks // _FEW
  return block_bytes * max(1, min(large, max(fine, min(small, coarse))))


def chunk_hash(data: bytes | np.ndarray) -> bytes:
  """BLAKE3 of a chunk's bytes."""
  return blake3(data if isinstance(data, bytes) else data.data).digest()


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a blob must be: its length and the BLAKE3 hash of every chunk."""

  length: int
  chunk: int  # bytes; the last one may be shorter
  hashes: bytes  # 32 a chunk

  @classmethod
  def of(cls, data: np.ndarray, chunk: int) -> "Manifest":
    """Hashes uint8 `data`."""
    starts = range(0, len(data), chunk)
    hashes = (chunk_hash(data[i : i + chunk]) for i in starts)
    return cls.joined(len(data), chunk, hashes)

  @functools.cached_property
  def id(self) -> bytes:
    return blake3(self.pack()).digest()

  def pack(self) -> bytes:
    return _HEADER.pack(self.length, self.chunk) + self.hashes

  @classmethod
  def unpack(cls, frame: bytes, expected_id: bytes) -> "Manifest":
    """Raises ValueError unless `frame` is the manifest of that id."""
    if len(frame) > _MAX_MANIFEST or blake3(frame).digest() != expected_id:
      raise ValueError("the manifest is not that of the blob asked for")
    if len(frame) < _HEADER.size:
      raise ValueError("the manifest is cut short")
    length, chunk = _HEADER.unpack_from(frame)
    hashes = frame[_HEADER.size :]
    if chunk == 0 or len(hashes) != _HASH * -(-length // chunk):
      raise ValueError("the manifest has not one hash a chunk")
    return cls(length, chunk, hashes)

  @classmethod
  def joined(
    cls, length: int, chunk: int, hashes: Iterable[bytes]
  ) -> "Manifest":
    """Of a blob whose parts, each whole chunks, were hashed apart."""
    return cls(length, chunk, b"".join(hashes))

  def chunks(self, start: int, stop: int) -> range:
    """First bytes of the chunks that cover [start, stop)."""
    first = start - start % self.chunk
    return range(first, min(stop, self.length), self.chunk)

  def verify(self, offset: int, data: bytes) -> None:
    """Raises ValueError unless `data` is the chunk at `offset`."""
    index = _HASH * (offset // self.chunk)
    if chunk_hash(data) != self.hashes[index : index + _HASH]:
      raise ValueError(f"the chunk at byte {offset} has a wrong hash")


def cuts(length: int, chunk: int, parts: int) -> list[tuple[int, int]]:
  """[start, stop) of as many parts of a blob, each of whole chunks."""
  chunks = -(-length // chunk)
  bounds = [min(length, chunks * i // parts * chunk) for i in range(parts + 1)]
  return list(itertools.pairwise(bounds))


def sources(
  blob: pb.Blob, start: int, stop: int
) -> list[tuple[int, int, list[str]]]:
  """(start, stop, addresses) of each stretch of [start, stop) of a blob.

  An island of several processes serves a blob in parts, one from each.
  """
  bounds = {start, stop}
  bounds |= {
    b for p in blob.parts for b in (p.start, p.stop) if start < b < stop
  }
  return [
    (
      a,
      b,
      [
        x
        for p in blob.parts
        if p.start <= a and b <= p.stop
        for x in p.addresses
      ],
    )
    for a, b in itertools.pairwise(sorted(bounds))
  ]


def relayed(relay: str, island: str) -> str:
  """The address of an island's blobs behind the relay at host:port."""
  return f"{_RELAY}{relay}/{island}"


def is_relayed(address: str) -> bool:
  """Whether a relay passes on what is served there."""
  return address.startswith(_RELAY)


def split_relayed(address: str) -> tuple[str, str]:
  """Whom to call, and the island behind it; empty for a direct address."""
  if not is_relayed(address):
    return address, ""
  relay, _, island = address.removeprefix(_RELAY).partition("/")
  return relay, island


@dataclasses.dataclass
class _Served:
  """A blob, or the part of it that is here."""

  manifest: Manifest
  data: np.ndarray
  start: int  # of `data` in the blob
  times: int = 1  # that it was published

  def has(self, start: int, stop: int) -> bool:
    return self.start <= start and stop <= self.start + len(self.data)

  def frames(self, start: int, stop: int, every: slice) -> Iterator[bytes]:
    """Of the chunks that cover [start, stop) of the blob, these."""
    for offset in self.manifest.chunks(start, stop)[every]:
      here = offset - self.start
      yield self.data[here : here + self.manifest.chunk].tobytes()


class BlobStore:
  """The blobs that this process serves, by id. Safe to use from any thread."""

  def __init__(self, upload_mbit: float = 0.0):
    """`upload_mbit`: cap on what is served, 10^6 bits/s; 0 is none."""
    self._blobs: dict[bytes, _Served] = {}
    self._growing: dict[bytes, Growing] = {}  # by name: they have no id yet
    self._lock = threading.Lock()
    self._pace = Pace(upload_mbit)
    self.rate = Rate(upload_mbit)
    self.addresses: list[str] = []  # where they are served, best first
    self.bytes_sent = 0
    self.bytes_relayed = 0  # of those sent, through a relay

  def publish(self, data: np.ndarray, chunk: int) -> pb.Blob:
    """Serves uint8 `data`, which must not change until `withdraw`.

    Equal bytes published twice are one blob, to be withdrawn twice.
    """
    return self.publish_hashed(Manifest.of(data, chunk), data)

  def publish_hashed(
    self, manifest: Manifest, data: np.ndarray, start: int = 0
  ) -> pb.Blob:
    """Serves `data`, whole chunks from byte `start` of a blob on."""
    served = _Served(manifest, data, start)
    with self._lock:
      before = self._blobs.get(manifest.id)
      if before is not None:
        served.times += before.times
        if len(before.data) > len(data):
          served.data, served.start = before.data, before.start
      self._blobs[manifest.id] = served
    stop = start + len(data)
    part = pb.Part(start=start, stop=stop, addresses=self.addresses)
    return pb.Blob(id=manifest.id, length=manifest.length, parts=[part])

  def withdraw(self, blob_id: bytes) -> None:
    with self._lock:
      served = self._blobs.get(blob_id)
      if served is not None:
        served.times -= 1
        if not served.times:
          del self._blobs[blob_id]

  def grow(self, name: bytes, data: np.ndarray, chunk: int) -> Growing:
    """Serves uint8 `data` as far as it has come, until `cut` is called."""
    growing = Growing(data, chunk)
    with self._lock:
      self._growing[name] = growing
    return growing

  def cut(self, name: bytes) -> None:
    """Serves it no longer under that name; who waits for more goes."""
    with self._lock:
      growing = self._growing.pop(name, None)
    if growing is not None:
      growing.end()

  def get(self, blob_id: bytes, start: int, stop: int) -> np.ndarray | None:
    """Bytes [start, stop) of a blob, if they are here."""
    with self._lock:
      served = self._blobs.get(blob_id)
    if served is None or not served.has(start, stop):
      return None
    return served.data[start - served.start : stop - served.start]

  def manifest(self, blob_id: bytes) -> Manifest | None:
    """Of a blob that is here, at least in part."""
    with self._lock:
      served = self._blobs.get(blob_id)
    return served.manifest if served else None

  def serve(self, request: pb.FetchRequest, context) -> Iterator[bytes]:
    """The Fetch RPC; see `frames`."""
    if request.id not in self._growing and self._find(request) is None:
      context.abort(grpc.StatusCode.NOT_FOUND, "no such blob here")
    yield from self.frames(request)

  def frames(
    self, request: pb.FetchRequest, relayed: bool = False
  ) -> Iterator[bytes]:
    """The manifest, then the chunks that cover the range; none if not here.

    Of what grows, chunks alone: its manifest is not known yet. On a lane, those
    of that lane, and the manifest on the first one.
    """
    every = slice(request.lane, None, max(1, request.lanes))
    growing = self._growing.get(request.id)
    if growing is not None:
      frames = growing.frames(request.start, every)
    else:
      served = self._find(request)
      if served is None:
        return
      if request.lane == 0:
        yield served.manifest.pack()
      frames = served.frames(request.start, request.stop, every)
    self.rate.begin(time.monotonic())
    try:
      for frame in frames:
        self._pace.take(len(frame))
        self.bytes_sent += len(frame)  # statistics: a lost update does no harm
        self.bytes_relayed += len(frame) if relayed else 0
        yield frame
        self.rate.count(len(frame), time.monotonic())
    finally:
      self.rate.end()

  def _find(self, request: pb.FetchRequest) -> _Served | None:
    with self._lock:
      served = self._blobs.get(request.id)
    if served is None:
      return None
    stop = min(request.stop, served.manifest.length)
    return served if served.has(request.start, stop) else None

  def add_to(self, server: grpc.Server) -> None:
    method = grpc.unary_stream_rpc_method_handler(
      self.serve, request_deserializer=pb.FetchRequest.FromString
    )
    rpc.add_handler(server, FETCH, method)


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

  A far peer is read on several connections, chunk by chunk in turn: what one
  connection has on the way is bounded by the hosts' TCP buffers, 4 MB and less,
  and each begins slowly again after a pause. Many peers are many connections
  anyhow.
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
    """What an address sends, on as many connections as its distance asks."""
    far = not is_relayed(address) and self._distance.get(address, 0.0) > _FAR
    count = max(1, self._connections // len(self._distance)) if far else 1
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
