"""What a round's mean is made of, where it has come.

Of most codecs it is encoded once more, in shares one behind the other. With a
sparse codec it is the codes of all members, whole, one behind the other in
member order, and decoded it is their weighted mean (docs/protocol.md, 8). These
too are called shares: the owner of each has it reduced at once.
"""

from collections.abc import Sequence

import numpy as np

from intellect_jax.elastic import blobs
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.codec import Codec


def average(
  codec: Codec,
  members: Sequence[pb.Member],
  codes: Sequence[np.ndarray],
  out: np.ndarray,
) -> None:
  """out = sum(w c d) / sum(w) over the members in order, in float32.

  w is the weight, c the clip factor, d the decoded delta.

  Args:
    codec: of the codes.
    members: of an attempt or a record.
    codes: uint8, of the same blocks of each member's delta.
    out: float32, overwritten.
  """
  out.fill(0)
  for member, part in zip(members, codes, strict=True):
    codec.accumulate(out, part, member.weight * member.clip)
  out /= np.float32(sum(member.weight for member in members))


def length(shares: Sequence[pb.Share]) -> int:
  """Bytes of a mean that is fixed."""
  return sum(share.mean.length for share in shares)


def chunk_bytes(shares: Sequence[pb.Share], codec: Codec) -> int:
  """Bytes a chunk, of a fixed mean and of all its shares."""
  whole = shares[0].mean.length if codec.sparse else length(shares)
  return blobs.chunk_bytes(whole, codec.block_bytes)


class Mean:
  """The mean of a record, to be decoded piece by piece."""

  def __init__(self, step: pb.OuterStep, data: np.ndarray, codec: Codec):
    """`data`: uint8, all shares of it."""
    self._codec = codec
    self._members = step.members
    count = len(step.members) if codec.sparse else 1
    self._vectors = np.split(data, count)

  def decode(self, codes: slice, out: np.ndarray) -> None:
    """Writes the values at bytes `codes` of an encoded vector to `out`."""
    parts = [vector[codes] for vector in self._vectors]
    if self._codec.sparse:
      average(self._codec, self._members, parts, out)
    else:
      self._codec.decode(parts[0], out)
