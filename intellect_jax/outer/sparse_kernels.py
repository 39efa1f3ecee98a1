"""The loops of `sparse2`: the 64 largest of 4096 values, in 84 bytes.

What makes kernels fast, and the same on every CPU, stands in kernels.py.

Where the kept values lie is coded as Elias and Fano did (a monotone sequence of
64 numbers below 4096): the low six bits of each as they are, and the high six
as a row of bits in which item j of bucket h is the one at h + j. That is 8 bits
a place, where the entropy of a set of places is 7.4 and plain numbers take 12.
Six bits of a place leave two of a byte: one for the sign, one for which of two
magnitudes the value has.
"""

import numba
from numba import types
import numpy as np

from intellect_jax.outer.kernels import Loops, kernel, reads, writes

BLOCK = 4096  # values
KEPT = 64  # of them, at most
BUCKET = 64  # neighbours whose places have the same high bits
SPARSE2_BLOCK = np.dtype(
  [
    ("buckets", "u1", 16),  # bit h + j: item j lies in bucket h
    ("codes", "u1", KEPT),  # low 6 bits of the place, magnitude, sign
    ("magnitudes", "<u2", 2),  # bfloat16: the lower and the upper
  ]
)
_BLOCKS = numba.from_dtype(SPARSE2_BLOCK)
_BITS = 8 * 16  # of a row of buckets
_MAGNITUDE = 0x7FFFFFFF  # of a float32's bits: without its sign
_INFINITY = 0x7F800000
_SMALLEST = np.finfo(np.float32).tiny  # magnitudes are normal numbers, or 0
_SPREAD = np.float32(1 << 16)  # of values that share a magnitude; see `_level`


@numba.njit
def _count(bits, least):
  """How many values are at least as large, by their bits without the sign.

  Unsigned integers order as the magnitudes they stand for.
  """
  count = np.int32(0)
  for i in range(BLOCK):
    count += np.int32((bits[i] & np.uint32(_MAGNITUDE)) >= least)
  return count


@numba.njit
def _threshold(bits):
  """The largest that KEPT values or more reach, found bit by bit.

  1, the smallest magnitude above 0, if no KEPT values are other than 0.
  """
  threshold = np.uint32(0)
  for bit in range(30, -1, -1):
    higher = np.uint32(threshold | np.uint32(1 << bit))
    count = _count(bits, higher)
    if count >= KEPT:
      threshold = higher
    if count == KEPT:
      break
  return np.uint32(max(threshold, np.uint32(1)))


@numba.njit
def _take(bits, places):
  """Writes the places of the largest values, in order; returns how many.

  Of those that are equally large the first are taken; 0 is never.
  """
  threshold = _threshold(bits)
  equals = KEPT - _count(bits, np.uint32(threshold + np.uint32(1)))
  count = 0
  for i in range(BLOCK):
    magnitude = bits[i] & np.uint32(_MAGNITUDE)
    if magnitude < threshold:
      continue
    if magnitude == threshold:
      if equals == 0:
        continue
      equals -= 1
    places[count] = i
    count += 1
  return count


@numba.njit(error_model="numpy")
def _level(total, count, smallest, largest):
  """The magnitude, as bfloat16, of `count` values with that sum.

  Their mean, cut to 8 binary digits; but such that what is left of each value
  x, |x| - magnitude, is a float32 without rounding. For that it is at most
  twice the smallest of them, and a multiple of the last digit of the largest.
  """
  if count == 0:
    return np.uint16(0)
  mean = np.float32(min(total / count, np.float64(2) * smallest))
  cut = np.uint32(mean.view(np.uint32) >> np.uint32(16))
  level = np.uint32(cut << np.uint32(16)).view(np.float32)
  if level < _SMALLEST or level * _SPREAD < largest:
    return np.uint16(0)
  return np.uint16(cut)


@numba.njit(error_model="numpy")
def _encode_items(x, places, count, block):
  """Writes the kept values: those above the mean magnitude are the upper."""
  total = 0.0
  for j in range(count):
    total += abs(np.float64(x[places[j]]))
  middle = total / max(count, 1)
  for upper in range(2):
    total, members = 0.0, 0
    smallest, largest = np.float32(np.inf), np.float32(0)
    for j in range(count):
      size = abs(x[places[j]])
      if (size >= middle) == (upper == 1):
        total += np.float64(size)
        members += 1
        smallest, largest = min(smallest, size), max(largest, size)
    block.magnitudes[upper] = _level(total, members, smallest, largest)
  for j in range(count):
    value, place = x[places[j]], np.int32(places[j])
    upper, negative = np.int32(abs(value) >= middle), np.int32(value < 0)
    low = place % BUCKET
    block.codes[j] = np.uint8(low | (upper << 6) | (negative << 7))
    bit = place // BUCKET + j
    block.buckets[bit >> 3] |= np.uint8(1 << (bit & 7))


@numba.njit
def _items(block, places, values):
  """Writes where a block's values lie and what they are; returns how many.

  Whatever the bytes are, places lie in the block, and there are no more than
  KEPT.
  """
  lower = np.uint32(np.uint32(block.magnitudes[0]) << np.uint32(16))
  upper = np.uint32(np.uint32(block.magnitudes[1]) << np.uint32(16))
  lower, upper = lower.view(np.float32), upper.view(np.float32)
  count = 0
  for bit in range(_BITS):
    row = block.buckets[bit >> 3]
    if (row >> (bit & 7)) & 1 and count < KEPT:
      code = np.int32(block.codes[count])
      bucket = (bit - count) % (BLOCK // BUCKET)
      value = upper if code & 0x40 else lower
      places[count] = bucket * BUCKET + code % BUCKET
      values[count] = -value if code & 0x80 else value
      count += 1
  return count


@kernel(reads(types.float32), writes(_BLOCKS))
def encode_sparse2(values, blocks):
  """Writes the codes of `values`; returns the first block with NaN or inf.

  Returns -1 if all is finite.
  """
  places = np.empty(KEPT, np.uint16)
  for n in range(blocks.size):
    x = values[n * BLOCK : (n + 1) * BLOCK]
    bits = x.view(np.uint32)
    if _count(bits, np.uint32(_INFINITY)) > 0:
      return n
    block = blocks[n]
    block.buckets[:] = 0
    block.codes[:] = 0
    _encode_items(x, places, _take(bits, places), block)
  return -1


@kernel(reads(_BLOCKS), writes(types.float32))
def decode_sparse2(blocks, out):
  """out = ± one of two magnitudes where a value was kept, else 0."""
  places, values = np.empty(KEPT, np.uint16), np.empty(KEPT, np.float32)
  for n in range(blocks.size):
    y = out[n * BLOCK : (n + 1) * BLOCK]
    y[:] = 0
    for j in range(_items(blocks[n], places, values)):
      y[places[j]] = values[j]


@kernel(writes(types.float32), reads(_BLOCKS), types.float32)
def accumulate_sparse2(total, blocks, weight):
  """total += weight * value, where one was kept."""
  places, values = np.empty(KEPT, np.uint16), np.empty(KEPT, np.float32)
  for n in range(blocks.size):
    t = total[n * BLOCK : (n + 1) * BLOCK]
    for j in range(_items(blocks[n], places, values)):
      t[places[j]] += weight * values[j]


@kernel(reads(_BLOCKS))
def squared_norm_sparse2(blocks):
  """Sum of value^2."""
  places, values = np.empty(KEPT, np.uint16), np.empty(KEPT, np.float32)
  total = 0.0
  for n in range(blocks.size):
    for j in range(_items(blocks[n], places, values)):
      total += np.float64(values[j]) * np.float64(values[j])
  return total


SPARSE2 = Loops(
  BLOCK,
  SPARSE2_BLOCK,
  encode_sparse2,
  decode_sparse2,
  accumulate_sparse2,
  squared_norm_sparse2,
)
