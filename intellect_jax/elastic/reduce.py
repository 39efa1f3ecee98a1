"""The all-reduce over blobs: reduce one share for everybody, gather the rest.

A member reduces its share of the vector from everybody's deltas, in member
order, and encodes it once; all fetch all shares, so all decode the same bytes:
two roundings whatever the number of members, and two latencies.
"""

from collections.abc import Callable, Generator, Iterator
import contextlib
import threading

import numpy as np

from intellect_jax.elastic import blobs
from intellect_jax.elastic.actions import Gather
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.codec import Codec


class MemberError(Exception):
  """A member did not deliver what an attempt needs."""

  def __init__(self, island: str, reason: str):
    super().__init__(f"{island}: {reason}")
    self.island = island
    self.reason = reason


class Exchange:
  """Reduces and gathers with what this island serves and can fetch."""

  def __init__(
    self, codec: Codec, store: blobs.BlobStore, fetcher: blobs.Fetcher
  ):
    self.codec = codec
    self.store = store
    self.fetcher = fetcher

  def reduce_share(
    self,
    plan: pb.Plan,
    index: int,
    cancelled: threading.Event,
    part: tuple[int, int] | None = None,
  ) -> tuple[np.ndarray, list[float]]:
    """Returns the encoded weighted mean of a share, and squared norms.

    Or of a part of the share, [start, stop) in its bytes, both between chunks.

    The mean is sum(w c d) / sum(w) over the members in order, accumulated in
    float32; w is the weight, c the clip factor, d the decoded delta.

    Returns:
      The codes, uint8, and each member's sum of squares in this range.

    Raises:
      MemberError: if a delta cannot be had.
      blobs.Cancelled: once `cancelled` is set.
    """
    codec, share = self.codec, plan.shares[index]
    start = share.start * codec.block_bytes
    stop = share.stop * codec.block_bytes
    if part is not None:
      start, stop = start + part[0], start + part[1]
    mean = np.empty(stop - start, np.uint8)
    squares = [0.0] * len(plan.members)
    divisor = np.float32(sum(member.weight for member in plan.members))
    with contextlib.ExitStack() as stack:
      streams = [
        stack.enter_context(
          contextlib.closing(self._delta(member, start, stop, cancelled))
        )
        for member in plan.members
      ]
      # Chunk by chunk: all members' chunks at one place, then the next place.
      size = blobs.chunk_bytes(plan.members[0].delta.length, codec.block_bytes)
      for offset in range(start, stop, size):
        length = min(size, stop - offset)
        total = np.zeros(length // codec.block_bytes * codec.block, np.float32)
        for i, (member, stream) in enumerate(
          zip(plan.members, streams, strict=True)
        ):
          place, chunk = next(stream, (-1, b""))
          if place != offset or len(chunk) != length:
            raise MemberError(member.island, "its delta has other chunks")
          codes = np.frombuffer(chunk, np.uint8)
          codec.accumulate(total, codes, member.weight * member.clip)
          squares[i] += codec.squared_norm(codes)
        total /= divisor
        codec.encode(total, mean[offset - start : offset - start + length])
    return mean, squares

  def _delta(
    self, member: pb.Member, start: int, stop: int, cancelled: threading.Event
  ) -> Generator[tuple[int, bytes | np.ndarray]]:
    try:
      yield from self._chunks(member.delta, start, stop, [], cancelled)
    except blobs.FetchError as error:
      raise MemberError(member.island, error.reason) from error

  def _chunks(
    self,
    blob: pb.Blob,
    start: int,
    stop: int,
    others: list[str],
    cancelled: threading.Event,
  ) -> Iterator[tuple[int, bytes | np.ndarray]]:
    """The chunks of a range, from here or from elsewhere.

    `others` may have it too, but are asked after those that the blob names.
    """
    chunk = blobs.chunk_bytes(blob.length, self.codec.block_bytes)
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
        )
        continue
      for offset in range(first, last, chunk):
        if cancelled.is_set():
          raise blobs.Cancelled
        yield offset, here[offset - first : min(offset + chunk, last) - first]

  def gather(
    self,
    action: Gather,
    into: np.ndarray,
    cancelled: threading.Event,
    submit: Callable,
    part: tuple[int, int] | None = None,
  ) -> None:
    """Brings all shares of a mean into uint8 `into`, verified, in parallel.

    Args:
      action: the shares, and who has them.
      into: the whole encoded mean.
      cancelled: ends the work when it is set.
      submit: starts a call in another thread and returns its future.
      part: [start, stop) in bytes, between chunks; None: all.

    Raises:
      MemberError: naming the owner of a share that nobody delivers.
      blobs.Cancelled: once `cancelled` is set.
    """
    part = (0, len(into)) if part is None else part
    futures = [
      submit(self._gather_share, share, action.holders, into, cancelled, part)
      for share in action.shares
    ]
    errors = [future.exception() for future in futures]
    for error in errors:
      if error is not None:
        raise error

  def _gather_share(
    self,
    share: pb.Share,
    holders: list[str],
    into: np.ndarray,
    cancelled: threading.Event,
    part: tuple[int, int],
  ) -> None:
    block_bytes = self.codec.block_bytes
    base, end = share.start * block_bytes, share.stop * block_bytes
    if share.mean.length != end - base:
      raise MemberError(share.owner, "its share has another length")
    start, stop = max(base, part[0]), min(end, part[1])
    if start >= stop:
      return
    try:
      for offset, chunk in self._chunks(
        share.mean, start - base, stop - base, holders, cancelled
      ):
        codes = np.frombuffer(chunk, np.uint8)
        into[base + offset : base + offset + len(codes)] = codes
    except blobs.FetchError as error:
      raise MemberError(share.owner, error.reason) from error
