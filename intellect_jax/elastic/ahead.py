"""Shares of a mean that are read along with their reduction.

The gathering of a mean begins with the first chunk that an owner has reduced,
and not when all have reduced everything: links that are slow one way, or far,
are used both ways at a time. Nothing is believed: when the coordinator has
fixed the ids of the shares, what came is compared with them, and what differs,
or did not come, is fetched as any blob is (docs/protocol.md, 3).

Shares can only grow as fast as deltas come. So where a peer is read on several
connections, its share has one of them until all deltas are here: a share that
took half the link would have nothing more to carry before its end.
"""

import threading

import numpy as np

from intellect_jax.elastic import blobs, fetching
from intellect_jax.elastic.growing import name_of
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.shares import addresses

_RETRY = 0.001, 0.05  # seconds until an owner that has not begun is asked again


class Ahead:
  """The others' shares of a plan, read along with their reduction.

  Attributes:
    attempt: of the plan.
    data: where they come to.
  """

  def __init__(
    self,
    fetcher: fetching.Fetcher,
    plan: pb.Plan,
    own: int,
    block_bytes: int,
    into: np.ndarray,
    cancelled: threading.Event,
  ):
    """Starts to read.

    Args:
      fetcher: of this island.
      plan: whose shares they are.
      own: index of the share that is not read.
      block_bytes: of an encoded codec block.
      into: the whole encoded mean, uint8; each share comes to its place.
      cancelled: set when the attempt is over.
    """
    self.attempt = plan.attempt
    self.data = into
    self._fetcher = fetcher
    self._cancelled = cancelled
    self._fixed = threading.Event()  # owners that are not there are not awaited
    self._alone = threading.Event()  # no deltas are on the way any more
    self._came: dict[int, blobs.Manifest] = {}
    self._chunk = blobs.chunk_bytes(len(into), block_bytes)
    self._threads: dict[int, threading.Thread] = {}
    for index, (share, member) in enumerate(
      zip(plan.shares, plan.members, strict=True)
    ):
      # Of an island of several processes, each has a part of the share; and
      # what goes through a relay goes through it once.
      direct = [a for a in addresses(member.delta) if not blobs.is_relayed(a)]
      if index == own or len(member.delta.parts) != 1 or not direct:
        continue
      part = into[share.start * block_bytes : share.stop * block_bytes]
      name = name_of(plan.attempt, index)
      thread = threading.Thread(
        target=self._read, args=(index, direct[0], name, part), daemon=True
      )
      self._threads[index] = thread
      thread.start()

  def deltas_came(self) -> None:
    """What this island reduces is here: its link is free for the shares."""
    self._alone.set()

  def take(self, index: int) -> blobs.Manifest | None:
    """What came of a share once it is fixed; None if that is not all of it."""
    self._fixed.set()
    self._alone.set()
    if index not in self._threads:
      return None
    self._threads[index].join()
    return self._came.get(index)

  def _read(
    self, index: int, address: str, name: bytes, part: np.ndarray
  ) -> None:
    hashes: list[bytes] = []
    done, pause = 0, _RETRY[0]
    while done < len(part):
      try:
        for chunk in self._fetcher.follow(
          address,
          name,
          done,
          len(part),
          self._chunk,
          self._cancelled,
          self._alone,
        ):
          part[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
          hashes.append(blobs.chunk_hash(chunk))
          done, pause = done + len(chunk), _RETRY[0]
      except fetching.Cancelled:
        return
      except fetching.FetchError:
        if self._fixed.is_set() or self._cancelled.wait(pause):
          return
        pause = min(2 * pause, _RETRY[1])
    self._came[index] = blobs.Manifest.joined(len(part), self._chunk, hashes)
