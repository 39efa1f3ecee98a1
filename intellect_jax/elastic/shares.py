"""Who reduces which range for everybody, and who can reach whom.

Pure functions of a round's proposals.
"""

from collections.abc import Sequence
import itertools

from intellect_jax.elastic import blobs
from intellect_jax.elastic.protocol import elastic_pb2 as pb

_MAX_EXACT_COVER = 12  # members; beyond it the cover is greedy
_DIRECT_CAPACITY = 8  # of an island behind a relay: 1


def addresses(blob: pb.Blob) -> list[str]:
  """Where a blob, or some part of it, is served."""
  found = [address for part in blob.parts for address in part.addresses]
  return list(dict.fromkeys(found))


def relayed_only(delta: pb.Blob) -> bool:
  """Whether a relay is the only way to its bytes."""
  return all(map(blobs.is_relayed, addresses(delta)))


def capacity(delta: pb.Blob) -> int:
  """How large a share suits an island that serves its blobs in these ways.

  A share is fetched by everybody; behind a relay that costs two links. Each
  host of an island reduces and serves a part of it.
  """
  hosts = max(1, len(delta.parts))
  return hosts * (1 if relayed_only(delta) else _DIRECT_CAPACITY)


def share_bounds(
  length: int, block_bytes: int, capacities: Sequence[int]
) -> list[tuple[int, int]]:
  """Shares of a blob of `length` bytes: [start, stop) in codec blocks.

  They are in proportion to the capacities of their owners. Bounds lie between
  chunks, so that every fetched byte can be verified and none is fetched twice.
  """
  chunk = blobs.chunk_bytes(length, block_bytes)
  chunks, total = -(-length // chunk), sum(capacities)
  bounds = [
    min(length, chunks * part // total * chunk) // block_bytes
    for part in itertools.accumulate(capacities, initial=0)
  ]
  return list(itertools.pairwise(bounds))


def whole_bounds(blocks: int, members: int) -> list[tuple[int, int]]:
  """Where each member's codes lie, of a mean that is all members' codes."""
  return [(blocks * i, blocks * (i + 1)) for i in range(members)]


def cover(
  broken: list[tuple[str, str]], proposals: dict[str, pb.Proposal]
) -> set[str]:
  """The fewest members without which no broken pair is left.

  Among equals, those that others could not read, then those with least work.
  """
  pairs = [p for p in broken if p[0] in proposals and p[1] in proposals]
  names = sorted({name for pair in pairs for name in pair})

  def cost(name: str) -> tuple[int, int]:
    blamed = sum(peer == name for _, peer in pairs)
    return -blamed, sum(w.tokens for w in proposals[name].windows)

  names.sort(key=cost)
  if len(names) <= _MAX_EXACT_COVER:
    for size in range(len(names) + 1):
      for chosen in itertools.combinations(names, size):
        if all(a in chosen or b in chosen for a, b in pairs):
          return set(chosen)
  chosen = set()
  for reader, peer in pairs:
    if reader not in chosen and peer not in chosen:
      chosen.add(peer)
  return chosen
