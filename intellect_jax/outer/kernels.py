"""The loops over every value of the model, in numba.

Decode, accumulate and Nesterov must give the same bits on every CPU, so they
are not left to XLA, which contracts multiply-add where it likes. numba without
fast-math keeps the order and the rounding that is written here.

Three habits make them fast on one core: inner loops count through slices,
since numba vectorizes neither computed indices nor iteration; division follows
numpy's error model, since a test for zero stops the vectorizer too; and the GIL
is released, so that threads can work on disjoint ranges.
"""

from collections.abc import Callable
import functools
from typing import Any

import numba
from numba import types
import numpy as np

BLOCK = 256  # values that share one scale
INT8_BLOCK = np.dtype([("scale", "<f4"), ("codes", "i1", BLOCK)])

# Scales stay normal numbers: a subnormal one has too few digits to keep
# 127 * scale >= absmax, and some CPUs flush it to zero. And 127 * scale stays
# finite, which absmax / 127 rounded up would not for the largest float32.
SMALLEST_SCALE = np.finfo(np.float32).tiny
LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), 0)

_SIGNATURES: dict[Any, tuple[types.Type, ...]] = {}
_CODES = numba.from_dtype(INT8_BLOCK)


def _reads(dtype: types.Type) -> types.Array:
  """A flat array that may be read-only, as received bytes are."""
  return types.Array(dtype, 1, "C", readonly=True)


def _writes(dtype: types.Type) -> types.Array:
  return types.Array(dtype, 1, "C")


def _kernel(*arguments: types.Type) -> Callable[[Callable], Any]:
  """Decorates a loop that is compiled for exactly these argument types."""

  def decorate(loop: Callable) -> Any:
    kernel = numba.njit(loop, nogil=True, cache=True, error_model="numpy")
    _SIGNATURES[kernel] = arguments
    return kernel

  return decorate


@functools.cache
def compile_all() -> None:
  """Compiles every kernel, or loads it from numba's cache on disk.

  A process calls this before it joins a run, so that nothing compiles inside
  a round: from here on other argument types are a TypeError. Takes seconds the
  first time on a machine, milliseconds later.
  """
  for kernel, arguments in _SIGNATURES.items():
    kernel.compile(arguments)
    kernel.disable_compile()


@_kernel(_reads(types.float32), _writes(_CODES))
def encode_int8(values, blocks):
  """Writes the codes of `values`; returns the first block with NaN or inf.

  The largest magnitude is found on the bits: unsigned integers order as the
  magnitudes they stand for, NaN and inf above all, and their maximum is a
  vector instruction where that of floats is not. Returns -1 if all is finite.
  """
  bits = values.view(np.uint32)
  largest_bits = np.empty(1, np.uint32)
  largest = largest_bits.view(np.float32)
  for n in range(blocks.size):
    x = values[n * BLOCK : (n + 1) * BLOCK]
    b = bits[n * BLOCK : (n + 1) * BLOCK]
    top = np.uint32(0)
    for i in range(BLOCK):
      top = max(top, b[i] & np.uint32(0x7FFFFFFF))
    if top >= np.uint32(0x7F800000):
      return n
    largest_bits[0] = top
    scale = largest[0] / np.float32(127)
    scale = min(max(scale, SMALLEST_SCALE), LARGEST_SCALE)
    codes = blocks[n].codes
    for i in range(BLOCK):
      codes[i] = np.int32(np.rint(x[i] / scale))
    blocks[n].scale = scale if top > 0 else np.float32(0)
  return -1


@_kernel(_reads(_CODES), _writes(types.float32))
def decode_int8(blocks, out):
  """out = scale * code."""
  for n in range(blocks.size):
    scale, codes = blocks[n].scale, blocks[n].codes
    y = out[n * BLOCK : (n + 1) * BLOCK]
    for i in range(BLOCK):
      y[i] = scale * np.float32(codes[i])


@_kernel(_writes(types.float32), _reads(_CODES), types.float32)
def accumulate_int8(total, blocks, weight):
  """total += weight * (scale * code)."""
  for n in range(blocks.size):
    scale, codes = blocks[n].scale, blocks[n].codes
    t = total[n * BLOCK : (n + 1) * BLOCK]
    for i in range(BLOCK):
      t[i] += weight * (scale * np.float32(codes[i]))


@_kernel(_reads(_CODES))
def squared_norm_int8(blocks):
  """Sum over blocks of scale^2 * sum of code^2, the inner sum exact."""
  total = 0.0
  for n in range(blocks.size):
    scale, codes = np.float64(blocks[n].scale), blocks[n].codes
    squares = np.int32(0)  # at most 256 * 127^2
    for i in range(BLOCK):
      squares += np.int32(codes[i]) * np.int32(codes[i])
    total += scale * scale * np.float64(squares)
  return total


@_kernel(
  _writes(types.float32),
  _writes(types.float32),
  _reads(types.float32),
  types.float32,
  types.float32,
  types.float32,
)
def nesterov(theta, momentum, mean, scale, learning_rate, mu):
  """momentum = mu momentum + d; theta -= rate (d + mu momentum).

  d is scale * mean.
  """
  for i in range(theta.size):
    d = scale * mean[i]
    momentum[i] = mu * momentum[i] + d
    theta[i] -= learning_rate * (d + mu * momentum[i])


@_kernel(_reads(types.float32), _reads(types.float32))
def dot(a, b):
  """Sum of a * b over whole blocks, in float64: a sum for each place in one.

  As many sums side by side are vector instructions, where one is not.
  """
  sums = np.zeros(BLOCK)
  for n in range(a.size // BLOCK):
    x = a[n * BLOCK : (n + 1) * BLOCK]
    y = b[n * BLOCK : (n + 1) * BLOCK]
    for i in range(BLOCK):
      sums[i] += np.float64(x[i]) * np.float64(y[i])
  return sums.sum()
