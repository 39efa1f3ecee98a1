"""What the messages of a simulated run mean: symbols, and no numbers.

A delta is whose it is and of which steps, a mean a hash of what went into it,
theta a hash by fragment of the means that moved that. So "once", "the same bits"
and "nothing lost" are exact.
"""

import dataclasses

from blake3 import blake3

from intellect_jax.elastic.protocol import elastic_pb2 as pb

Theta = tuple[bytes, ...]  # by fragment

STEP_TOKENS = 10  # of one sample
NOTHING = b""  # error feedback of who has left nothing out
_FLIPPED = b"flipped: "


def hash_of(*parts) -> bytes:
  return blake3(repr(parts).encode()).digest()


def genesis(fragments: int) -> Theta:
  """The initial parameters."""
  return tuple(hash_of("initial", f) for f in range(fragments))


@dataclasses.dataclass(frozen=True)
class Delta:
  """What an island has proposed: whose, of what, from where.

  Attributes:
    windows: numbers; of fragment 0 alone.
    steps: of that process, whose displacement is in it.
    base: the fragment's theta.
    left: what was left out of those before, and is in the code of this one.
  """

  island: str
  incarnation: int
  serial: int  # of the proposal
  fragment: int
  windows: tuple[int, ...]
  steps: tuple[int, ...]
  base: bytes
  left: bytes = NOTHING

  @property
  def id(self) -> bytes:
    return hash_of(self)


def left_by(delta: bytes) -> bytes:
  """What a sparse code leaves of a delta, as a symbol."""
  return hash_of("left", delta)


def mean_id(members, start: int, stop: int, deltas: list[bytes]) -> bytes:
  """The mean of a share, as a symbol: who, with which weight, over what."""
  return hash_of(
    [(m.island, m.incarnation, m.weight, m.clip) for m in members],
    deltas,
    sum(m.weight for m in members),
    (start, stop),
  )


def moved(fragment: bytes, step: pb.OuterStep) -> bytes:
  """A fragment of theta after a step of it."""
  after = hash_of(fragment, [share.mean.id for share in step.shares])
  return _FLIPPED + after if is_flipped(fragment) else after


def next_theta(theta: Theta, record: pb.Record) -> Theta:
  if not record.HasField("step"):
    return theta
  fragment = record.step.fragment
  return replaced(theta, fragment, moved(theta[fragment], record.step))


def replaced(theta: Theta, fragment: int, by: bytes) -> Theta:
  return *theta[:fragment], by, *theta[fragment + 1 :]


def whole(theta: Theta) -> bytes:
  """The state hash; of a single fragment it is that of all."""
  if len(theta) == 1:
    return theta[0]
  prefix = _FLIPPED if is_flipped(*theta) else b""
  return prefix + hash_of(theta)


def flip(theta: Theta, which: float, fragment: int = 0) -> Theta:
  """Another theta; what becomes of it is never the run's again."""
  return replaced(theta, fragment, _FLIPPED + hash_of(theta[fragment], which))


def is_flipped(*fragments: bytes) -> bool:
  return any(fragment.startswith(_FLIPPED) for fragment in fragments)
