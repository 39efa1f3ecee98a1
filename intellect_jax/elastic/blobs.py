"""Blobs: immutable, hashed bytes, and how an island serves them.

Everything bulky is a blob: an encoded delta, a reduced share, a state for a
newcomer. A blob is cut into chunks; its id is the BLAKE3 hash of the list of
chunk hashes, so that any range of it can be verified (docs/protocol.md, 2).
`fetching.py` brings them here.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import itertools
import pathlib
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
NUMBER = 4  # bytes of a frame's number, where it has one
_FETCHES = 1024  # that may be under way on several connections
_MAX_MANIFEST = 64 << 20  # bytes; a blob of 2 TB has this much
_HEADER = struct.Struct("<QI")  # length, chunk size
_HASH = 32


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

  def check_length(self, length: int) -> None:
    """Raises ValueError unless the blob is as long as who named it has said."""
    if self.length != length:
      raise ValueError(f"the blob has {self.length} bytes, not {length}")

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


class GoneError(Exception):
  """A file with bytes of a blob is there no more."""


class OnDisk:
  """Bytes [start, stop) of a file that does not change, mapped as they are read.

  What stays mapped has an open file each, of which a process may not have many.
  """

  def __init__(self, path: pathlib.Path, start: int, stop: int):
    self._path, self._start, self._stop = path, start, stop

  def __len__(self) -> int:
    return self._stop - self._start

  def __getitem__(self, place: slice) -> np.ndarray:
    """uint8; raises GoneError if they are there no more."""
    start, stop, _ = place.indices(len(self))
    offset, shape = self._start + start, (stop - start,)
    try:
      return np.memmap(self._path, np.uint8, "r", offset, shape)
    except (OSError, ValueError) as error:  # it is shorter, as when it was torn
      raise GoneError(str(error)) from error


@dataclasses.dataclass
class _Served:
  """A blob, or the part of it that is here."""

  manifest: Manifest
  data: np.ndarray | OnDisk
  start: int  # of `data` in the blob
  times: int = 1  # that it was published

  def has(self, start: int, stop: int) -> bool:
    return self.start <= start and stop <= self.start + len(self.data)

  def frame(self, start: int, stop: int, number: int) -> np.ndarray | None:
    """0: the manifest; then the chunks that cover [start, stop) of the blob."""
    if number == 0:
      return np.frombuffer(self.manifest.pack(), np.uint8)
    chunks = self.manifest.chunks(start, stop)
    if number > len(chunks):
      return None
    here = chunks[number - 1] - self.start
    try:
      return self.data[here : here + self.manifest.chunk]
    except GoneError:
      return None


class BlobStore:
  """The blobs that this process serves, by id. Safe to use from any thread."""

  def __init__(self, upload_mbit: float = 0.0):
    """`upload_mbit`: cap on what is served, 10^6 bits/s; 0 is none."""
    self._blobs: dict[bytes, _Served] = {}
    self._growing: dict[bytes, Growing] = {}  # by name: they have no id yet
    self._fetches: dict[bytes, Iterator[int]] = {}  # frames that come next
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
    self, manifest: Manifest, data: np.ndarray | OnDisk, start: int = 0
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

  def moved(self, blob_id: bytes, data: OnDisk) -> None:
    """All of a blob that is served lies there now."""
    with self._lock:
      served = self._blobs.get(blob_id)
      if served is not None:
        here = dataclasses.replace(served, data=data, start=0)
        self._blobs[blob_id] = here  # who reads the other one goes on

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
    try:
      return served.data[start - served.start : stop - served.start]
    except GoneError:
      return None

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

    Of what grows, chunks alone: its manifest is not known yet. Of a fetch that
    comes on several connections, what is next whenever one of them can take it,
    each frame with its number in front.
    """
    frame, first = self._source(request)
    if frame is None:
      return
    self.rate.begin(time.monotonic())
    try:
      for number in self._numbers(request.fetch):
        data = frame(number)
        if data is None:
          return
        self._pace.take(len(data))
        size = len(data) if number >= first else 0  # manifests are not counted
        self.bytes_sent += size  # statistics: a lost update does no harm
        self.bytes_relayed += size if relayed else 0
        named = number.to_bytes(NUMBER) if request.fetch else b""
        yield b"".join((named, data.data))
        self.rate.count(len(data), time.monotonic())
    finally:
      self.rate.end()

  def _source(
    self, request: pb.FetchRequest
  ) -> tuple[Callable[[int], np.ndarray | None] | None, int]:
    """What gives frames by number, None after the last; the first chunk's.

    It is None itself if nothing of that is here.
    """
    growing = self._growing.get(request.id)
    if growing is not None:
      return functools.partial(growing.frame, request.start), 0
    served = self._find(request)
    if served is None:
      return None, 0
    return functools.partial(served.frame, request.start, request.stop), 1

  def _numbers(self, fetch: bytes) -> Iterator[int]:
    """Of frames, in order; all connections of a fetch take them from one."""
    if not fetch:
      return itertools.count()
    with self._lock:
      numbers = self._fetches.setdefault(fetch, itertools.count())
      if len(self._fetches) > _FETCHES:
        del self._fetches[next(iter(self._fetches))]  # the oldest
    return numbers

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
