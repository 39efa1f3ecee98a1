"""Merging fine-tuned models by their weights: arithmetic on float32 arrays.

Of one tensor, or a piece of it, x_i are the models' values and x_0 those of the
base that they were all tuned from; d_i = x_i - x_0 is a task vector.

linear           sum of w_i x_i (model soups, arXiv 2203.05482)
slerp            along the arc between two models
task_arithmetic  x_0 + scale * sum of w_i d_i (arXiv 2212.04089)
ties             the same of the d_i, trimmed, where their signs agree
                 (arXiv 2306.01708)
dare             first drops values of the d_i at random, and rescales the
                 others (arXiv 2311.03099); then either of the last two

Weights count relative to each other: they are divided by their sum. So `scale`
is lambda of those papers, and n times it what they call a sum of n.
"""

from collections.abc import Callable, Iterable, Sequence

from blake3 import blake3
import numpy as np

NEARLY_ONE = 0.9995  # cosine beyond which slerp is linear, as in mergekit

Array = np.ndarray
_BITS = 16  # of a magnitude that are looked at in one pass


def linear(models: Sequence[Array], weights: Sequence[float]) -> Array:
  """The weighted mean, float32; `models` are equally shaped."""
  total = np.zeros_like(models[0], np.float32)
  for x, w in zip(models, normalized(weights), strict=True):
    total += w * x
  return total


def normalized(weights: Sequence[float]) -> list[np.float32]:
  """Divided by their sum."""
  return [np.float32(w / sum(weights)) for w in weights]


def slerp_factors(t: float, cosine: float) -> tuple[float, float]:
  """Factors (a, b) of two vectors on the arc between them.

  Where the vectors are nearly parallel, or opposite, the arc is no use and the
  way is straight: 1 - t and t.

  Args:
    t: 0 is the first vector, 1 the second.
    cosine: between them.
  """
  if abs(cosine) > NEARLY_ONE:
    return 1 - t, t
  angle = np.arccos(cosine)
  sine = np.sin(angle)
  return float(np.sin((1 - t) * angle) / sine), float(np.sin(t * angle) / sine)


def cosine(pieces: Iterable[tuple[Array, Array]]) -> float:
  """The cosine between two vectors, from their pieces; 1 if one is zero."""
  dots = np.zeros(3)
  for a, b in pieces:
    a64, b64 = np.asarray(a, np.float64), np.asarray(b, np.float64)
    dots += np.sum(a64 * b64), np.sum(a64 * a64), np.sum(b64 * b64)
  dot, a2, b2 = dots
  return float(dot / np.sqrt(a2 * b2)) if a2 and b2 else 1.0


def task_arithmetic(
  base: Array, deltas: Sequence[Array], weights: Sequence[float], scale: float
) -> Array:
  """x_0 + scale * sum of w_i d_i, float32."""
  return base + np.float32(scale) * linear(deltas, weights)


def elect(
  base: Array, deltas: Sequence[Array], weights: Sequence[float], scale: float
) -> Array:
  """Elects a sign for each value, and takes the mean of those that have it.

  The second and third step of TIES; the first is `trim`. The sign is that of
  the weighted sum, so the one with more mass. Where nothing is left of any
  model the base stays.
  """
  shares = normalized(weights)
  total = np.zeros_like(base, np.float32)
  for d, w in zip(deltas, shares, strict=True):
    total += w * d
  sign = np.where(total >= 0, np.float32(1), np.float32(-1))
  agreed, weight = np.zeros_like(total), np.zeros_like(total)
  for d, w in zip(deltas, shares, strict=True):
    agrees = d * sign > 0
    agreed += np.where(agrees, w * d, np.float32(0))
    weight += np.where(agrees, w, np.float32(0))
  mean = np.divide(agreed, weight, out=np.zeros_like(total), where=weight > 0)
  return base + np.float32(scale) * mean


def trim(delta: Array, threshold: float) -> Array:
  """The values of at least a magnitude; the others become 0."""
  return np.where(np.abs(delta) >= threshold, delta, np.float32(0))


def largest(
  pieces: Callable[[], Iterable[Array]], density: float, size: int
) -> float:
  """The magnitude that a part of all values reach: TIES trims below it.

  It is the k-th largest, k = density * size, exactly, though no more than a
  piece is held at a time: float32 magnitudes are ordered as their bits are, so
  one pass counts their upper halves, and a second one, among those whose upper
  half is that of the k-th, the lower ones.

  Args:
    pieces: yields all values, float32; called twice.
    density: the part to keep, above 0.
    size: values in all.
  """
  rank = max(1, int(density * size))
  if rank >= size:
    return 0.0
  upper = np.zeros(2**_BITS, np.int64)
  for piece in pieces():
    upper += np.bincount(_magnitude_bits(piece) >> _BITS, minlength=2**_BITS)
  high, above = _bin_of(upper, rank)
  lower = np.zeros(2**_BITS, np.int64)
  for piece in pieces():
    bits = _magnitude_bits(piece)
    inside = bits[bits >> _BITS == high] & (2**_BITS - 1)
    lower += np.bincount(inside, minlength=2**_BITS)
  low, _ = _bin_of(lower, rank - above)
  found = np.array([high << _BITS | low], np.uint32)
  return float(found.view(np.float32)[0])


def _magnitude_bits(values: Array) -> Array:
  return np.abs(values, dtype=np.float32).ravel().view(np.uint32)


def _bin_of(counts: Array, rank: int) -> tuple[int, int]:
  """The bin of the rank-th from above, and how many are in higher ones."""
  from_above = np.cumsum(counts[::-1])
  place = int(np.searchsorted(from_above, rank))
  before = int(from_above[place - 1]) if place else 0
  return len(counts) - 1 - place, before


def drop(delta: Array, density: float, generator: np.random.Generator) -> Array:
  """DARE: keeps each value with probability `density`, divided by it."""
  kept = generator.random(delta.shape, np.float32) < density
  return np.where(kept, delta / np.float32(density), np.float32(0))


def generator_of(seed: int, model: int, name: str) -> np.random.Generator:
  """Which values `drop` takes of a tensor: the same in any order of tensors."""
  digest = blake3(f"{seed}/{model}/{name}".encode()).digest()
  return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
