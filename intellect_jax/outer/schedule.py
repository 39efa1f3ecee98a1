"""Figures that follow from counts: schedule position, payload reduction."""

from typing import NamedTuple


class Schedule(NamedTuple):
  """Where an inner step stands, for its learning rate."""

  position: float  # tokens of the swarm by then; see `position`
  total_tokens: float  # where the run ends and the rate reaches 0
  scale: float = 1.0  # factor on the rate, of a joiner that warms up


def warm_up(steps: int, warmup_steps: int) -> float:
  """The scale of a joiner's rate after `steps` of its own: linear, up to 1.

  Its first updates follow one gradient each: Adam's moments are new.
  """
  return min(1.0, (steps + 1) / warmup_steps) if warmup_steps else 1.0


def position(committed_tokens: int, own_tokens: int, members: int) -> int:
  """Where a run stands, in tokens, for schedules of the learning rate.

  Grows smoothly inside a window and is equal on islands of equal pace; at the
  next record the estimate is replaced by what was committed.

  Args:
    committed_tokens: of the swarm, at the base of the island's window.
    own_tokens: that this island has trained on since then.
    members: islands in the record of that base.
  """
  return committed_tokens + own_tokens * members


def payload_reduction(
  islands: int, values: int, inner_steps: int, codec_bytes_sent: float
) -> float:
  """How many times less an island sends than in data-parallel training.

  The measure is float32 ring data parallel, in which each of n islands sends
  2 (n - 1) / n * 4 bytes a value at every inner step.

  Args:
    islands: n.
    values: parameters of the model.
    inner_steps: H, inner steps a round.
    codec_bytes_sent: coded bytes that one island sends in a round.

  Returns:
    The ratio; 1 for a lone island, which sends nothing either way.
  """
  if islands == 1:
    return 1.0
  ring_bytes = 2 * (islands - 1) / islands * 4 * values * inner_steps
  return ring_bytes / codec_bytes_sent
