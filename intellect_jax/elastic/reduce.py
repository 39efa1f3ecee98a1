"""The all-reduce over blobs: reduce one share for everybody, gather the rest.

A member reduces its share of the vector from everybody's deltas, in member
order, and encodes it once; all fetch all shares, so all decode the same bytes:
two roundings whatever the number of members, and two latencies. With a sparse
codec all fetch all deltas, and nothing is encoded again.

Values go through in pieces that stay in a core's cache from the first touch to
the last: memory, not arithmetic, is what limits a core here.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import threading

import numpy as np

from intellect_jax.elastic import blobs, fetching, means
from intellect_jax.elastic.actions import Gather
from intellect_jax.elastic.ahead import Ahead
from intellect_jax.elastic.growing import Growing, name_of
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer import kernels
from intellect_jax.outer.codec import Codec, NotFiniteError

PIECE = 1 << 18  # values at a time: 1 MiB of float32


class MemberError(Exception):
  """A member did not deliver what an attempt needs."""

  def __init__(self, island: str, reason: str):
    super().__init__(f"{island}: {reason}")
    self.island = island
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Encoded:
  """What came of encoding: a blob's bytes, whole chunks of it."""

  codes: np.ndarray  # uint8
  hashes: bytes  # of the chunks, in order
  squares: list[float]  # sums of squares: of the values, or of each delta

  @classmethod
  def of(cls, codec: Codec, codes: np.ndarray, chunk: int) -> "Encoded":
    """Of what was encoded elsewhere, in whole chunks or to the end."""
    hashes = blobs.Manifest.of(codes, chunk).hashes
    return cls(codes, hashes, [codec.squared_norm(codes)])

  def manifest(self, chunk: int) -> blobs.Manifest:
    """Of the blob, if this is all of it."""
    return blobs.Manifest(len(self.codes), chunk, self.hashes)


def encode(
  codec: Codec, pieces: Iterable[np.ndarray], length: int, chunk: int
) -> Encoded:
  """Encodes a vector that comes in pieces, hashing and measuring on the way.

  Args:
    codec: of the exchange.
    pieces: consecutive float32 arrays of whole codec blocks. Each may be
      overwritten once the next one is asked for.
    length: bytes of all of them together, encoded.
    chunk: bytes of the blob's chunks.

  Raises:
    NotFiniteError: naming the index in the vector.
    ValueError: if the pieces are not as long as that.
  """
  codes = np.empty(length, np.uint8)
  hashes, squares, done, hashed = [], 0.0, 0, 0
  for piece in pieces:
    part = codes[done:][: piece.size // codec.block * codec.block_bytes]
    try:
      codec.encode(piece, part)
    except NotFiniteError as error:
      index = done // codec.block_bytes * codec.block + error.index
      raise NotFiniteError(index, error.value) from None
    squares += codec.squared_norm(part)
    done += len(part)
    while hashed < done and (hashed + chunk <= done or done == length):
      hashes.append(blobs.chunk_hash(codes[hashed : hashed + chunk]))
      hashed += chunk
  if done != length:
    raise ValueError(f"The pieces have {done} bytes, but must have {length}.")
  return Encoded(codes, b"".join(hashes), [squares])


@dataclasses.dataclass(frozen=True)
class Collected:
  """The codes of all members, here before they are fixed as the mean.

  Like `Ahead`, which reads along what others reduce.
  """

  attempt: bytes
  data: np.ndarray  # uint8, one behind the other
  manifests: list[blobs.Manifest]

  def take(self, index: int) -> blobs.Manifest:
    """Of a member's codes."""
    return self.manifests[index]


class Exchange:
  """Reduces and gathers with what this island serves and can fetch."""

  def __init__(
    self, codec: Codec, store: blobs.BlobStore, fetcher: fetching.Fetcher
  ):
    self.codec = codec
    self.store = store
    self.fetcher = fetcher
    # Name of the share that is reduced, or was last, by fragment.
    self._grows: dict[int, bytes] = {}

  def reduce_share(
    self,
    plan: pb.Plan,
    index: int,
    cancelled: threading.Event,
    part: tuple[int, int] | None = None,
  ) -> Encoded:
    """The encoded weighted mean of a share, and squared norms of the deltas.

    Or of a part of the share, [start, stop) in its bytes, both between chunks.

    The mean is sum(w c d) / sum(w) over the members in order, accumulated in
    float32; w is the weight, c the clip factor, d the decoded delta.

    Raises:
      MemberError: if a delta cannot be had.
      fetching.Cancelled: once `cancelled` is set.
    """
    codec, share = self.codec, plan.shares[index]
    start = share.start * codec.block_bytes
    stop = share.stop * codec.block_bytes
    if part is not None:
      start, stop = start + part[0], start + part[1]
    mean = np.empty(stop - start, np.uint8)
    self.store.cut(self._grows.get(plan.fragment, b""))
    self._grows[plan.fragment] = name = name_of(plan.attempt, index)
    size = blobs.chunk_bytes(plan.members[0].delta.length, codec.block_bytes)
    growing = self.store.grow(name, mean, size)
    try:
      return self._reduce(plan, start, mean, size, growing, cancelled)
    except BaseException:
      growing.end()
      raise

  def _reduce(
    self,
    plan: pb.Plan,
    start: int,
    mean: np.ndarray,
    size: int,
    growing: Growing,
    cancelled: threading.Event,
  ) -> Encoded:
    """Fills `mean`, which begins at byte `start`, by chunks of `size` bytes."""
    stop = start + len(mean)
    squares, hashes = np.zeros(len(plan.members)), []
    with contextlib.ExitStack() as stack:
      streams = [
        stack.enter_context(
          contextlib.closing(self._delta(member, start, stop, cancelled))
        )
        for member in plan.members
      ]
      # Chunk by chunk: all members' chunks at one place, then the next place.
      for offset in range(start, stop, size):
        length = min(size, stop - offset)
        deltas = []
        for member, stream in zip(plan.members, streams, strict=True):
          place, chunk = next(stream, (-1, b""))
          if place != offset or len(chunk) != length:
            raise MemberError(member.island, "its delta has other chunks")
          deltas.append(np.frombuffer(chunk, np.uint8))
        out = mean[offset - start :][:length]
        squares += self._mean(plan, deltas, out)
        growing.reach(offset - start + length)
        hashes.append(blobs.chunk_hash(out))
    return Encoded(mean, b"".join(hashes), squares.tolist())

  def _mean(
    self, plan: pb.Plan, deltas: list[np.ndarray], out: np.ndarray
  ) -> np.ndarray:
    """Encodes the mean of one chunk to `out`; returns the squared norms."""
    squares = np.zeros(len(deltas))
    for place, piece, norms in self._averages(plan, deltas, 0, len(out)):
      squares += norms
      self.codec.encode(piece, out[place])
    return squares

  def _averages(
    self,
    plan: pb.Plan,
    deltas: Sequence[np.ndarray],
    start: int,
    stop: int,
  ) -> Iterator[tuple[slice, np.ndarray, list[float]]]:
    """Pieces of the members' mean, in [start, stop) bytes of their codes.

    Yields where each is in bytes, its values, which the next piece overwrites,
    and the squared norms of the deltas there.
    """
    codec, total = self.codec, np.empty(PIECE, np.float32)
    size = PIECE // codec.block * codec.block_bytes
    for first in range(start, stop, size):
      place = slice(first, min(first + size, stop))
      parts = [delta[place] for delta in deltas]
      piece = total[: len(parts[0]) // codec.block_bytes * codec.block]
      means.average(codec, plan.members, parts, piece)
      yield place, piece, [codec.squared_norm(part) for part in parts]

  def collect(
    self,
    plan: pb.Plan,
    into: np.ndarray,
    cancelled: threading.Event,
    submit: Callable,
  ) -> Collected:
    """Brings the codes of all members here: with a sparse codec, the mean.

    Args:
      plan: whose shares lie one behind the other.
      into: uint8, as long as all of them.
      cancelled: ends the work when it is set.
      submit: starts a call in another thread and returns its future.

    Raises:
      MemberError: naming the member whose codes cannot be had.
      fetching.Cancelled: once `cancelled` is set.
    """
    shares = [
      pb.Share(start=s.start, stop=s.stop, owner=s.owner, mean=member.delta)
      for s, member in zip(plan.shares, plan.members, strict=True)
    ]
    wanted = Gather(plan.attempt, shares, [])
    came = self._bring(wanted, into, cancelled, submit, (0, len(into)))
    manifests = [came[share.mean.id] for share in shares]
    return Collected(plan.attempt, into, manifests)

  def measure(
    self, plan: pb.Plan, data: np.ndarray, start: int, stop: int
  ) -> tuple[list[float], float]:
    """Squared norms of the deltas, and of their mean, in a range of codes.

    Args:
      plan: whose members' codes they are.
      data: uint8, all codes of all members, one behind the other.
      start, stop: in bytes of each.
    """
    squares, mean_square = np.zeros(len(plan.members)), 0.0
    vectors = np.split(data, len(plan.members))
    for _, piece, norms in self._averages(plan, vectors, start, stop):
      squares += norms
      mean_square += kernels.dot(piece, piece)
    return squares.tolist(), mean_square

  def _delta(
    self, member: pb.Member, start: int, stop: int, cancelled: threading.Event
  ) -> Generator[tuple[int, bytes | np.ndarray]]:
    try:
      yield from self._chunks(member.delta, start, stop, [], cancelled)
    except fetching.FetchError as error:
      raise MemberError(member.island, error.reason) from error

  def _chunks(
    self,
    blob: pb.Blob,
    start: int,
    stop: int,
    others: list[str],
    cancelled: threading.Event,
    on_manifest: Callable[[blobs.Manifest], object] = lambda manifest: None,
  ) -> Iterator[tuple[int, bytes | np.ndarray]]:
    """The chunks of a range, from here or from elsewhere.

    `others` may have it too, but are asked after those that the blob names.
    `on_manifest` hears the manifest if it comes from elsewhere.
    """
    chunk = blobs.chunk_bytes(blob.length, self.codec.block_bytes)

    def heard(manifest: blobs.Manifest) -> None:
      manifest.check_length(blob.length)  # its last chunk ends where it ends
      on_manifest(manifest)

    for first, last, named in blobs.sources(blob, start, stop):
      here = self.store.get(blob.id, first, last)
      if here is None:
        known = named + [address for address in others if address not in named]
        own = self.store.addresses
        yield from self.fetcher.fetch(
          [a for a in known if a not in own] or named,
          blob.id,
          first,
          last,
          cancelled,
          heard,
        )
        continue
      for offset in range(first, last, chunk):
        if cancelled.is_set():
          raise fetching.Cancelled
        yield offset, here[offset - first : min(offset + chunk, last) - first]

  def gather(
    self,
    action: Gather,
    into: np.ndarray,
    cancelled: threading.Event,
    submit: Callable,
    part: tuple[int, int] | None = None,
    ahead: Ahead | Collected | None = None,
  ) -> dict[bytes, blobs.Manifest]:
    """Brings all shares of a mean into uint8 `into`, verified, in parallel.

    Args:
      action: the shares, and who has them.
      into: the whole encoded mean.
      cancelled: ends the work when it is set.
      submit: starts a call in another thread and returns its future.
      part: [start, stop) in bytes, between chunks; None: all.
      ahead: what has come to `into` before it was fixed.

    Returns:
      The manifest of each share that it brought, by the share's id.

    Raises:
      MemberError: naming the owner of a share that nobody delivers.
      fetching.Cancelled: once `cancelled` is set.
    """
    part = (0, len(into)) if part is None else part
    return self._bring(action, into, cancelled, submit, part, ahead)

  def _bring(
    self,
    action: Gather,
    into: np.ndarray,
    cancelled: threading.Event,
    submit: Callable,
    part: tuple[int, int],
    ahead: Ahead | Collected | None = None,
  ) -> dict[bytes, blobs.Manifest]:
    futures = [
      submit(self._gather_share, action, index, into, cancelled, part, ahead)
      for index in range(len(action.shares))
    ]
    errors = [future.exception() for future in futures]
    for error in errors:
      if error is not None:
        raise error
    return {
      share.mean.id: manifest
      for share, future in zip(action.shares, futures, strict=True)
      if (manifest := future.result()) is not None
    }

  def _gather_share(
    self,
    action: Gather,
    index: int,
    into: np.ndarray,
    cancelled: threading.Event,
    part: tuple[int, int],
    ahead: Ahead | Collected | None,
  ) -> blobs.Manifest | None:
    share, block_bytes = action.shares[index], self.codec.block_bytes
    base, end = share.start * block_bytes, share.stop * block_bytes
    if share.mean.length != end - base:
      raise MemberError(share.owner, "its share has another length")
    start, stop = max(base, part[0]), min(end, part[1])
    if start >= stop:
      return None
    came = None if ahead is None else ahead.take(index)
    if came is not None and came.id == share.mean.id:
      return came
    manifest = self.store.manifest(share.mean.id)
    heard = [] if manifest is None else [manifest]
    try:
      for offset, chunk in self._chunks(
        share.mean,
        start - base,
        stop - base,
        action.holders,
        cancelled,
        heard.append,
      ):
        codes = np.frombuffer(chunk, np.uint8)
        into[base + offset : base + offset + len(codes)] = codes
    except fetching.FetchError as error:
      raise MemberError(share.owner, error.reason) from error
    if heard:
      return heard[0]
    return self.store.manifest(share.mean.id)  # it came here meanwhile
