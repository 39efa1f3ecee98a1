"""The loops over every value of the model, in numba.

Decode, accumulate and Nesterov must give the same bits on every CPU, so they
are not left to XLA, which contracts multiply-add where it likes. numba without
fast-math keeps the order and the rounding that is written here.

Four habits make them fast on one core: inner loops count through slices, since
numba vectorizes neither computed indices nor iteration; integers are cast back
to 32 bits, since numba widens what it computes to 64; division follows numpy's
error model, since a test for zero stops the vectorizer too; and the GIL is
released, so that threads can work on disjoint ranges.

What calls each other is in one file, since numba's cache on disk notices
changes of no other. The loops of `sparse2` are in sparse_kernels.py.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from llvmlite import ir
import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
import numpy as np

BLOCK = 256  # values that share one scale
HALF = BLOCK // 2
INT8_BLOCK = np.dtype([("scale", "<f4"), ("codes", "i1", BLOCK)])
# Two codes to a byte: byte i has those of value i, low, and of value i + HALF.
# Those of neighbours would keep the loops from counting through slices.
NIBBLE_BLOCK = np.dtype([("scale", "<f4"), ("codes", "i1", HALF)])

# A block's scale is so much of its largest value, which is coded as 127, 7, 64.
INT8_SHARE = np.float32(1 / 127)
INT4_SHARE = np.float32(1 / 7)
E3M0_SHARE = np.float32(1 / 64)
# Scales stay normal numbers: a subnormal one has too few digits to keep
# 127 * scale near the largest value, and some CPUs flush it to zero. And
# 127 * scale stays finite: rounding could lift it above the largest float32.
SMALLEST_SCALE = np.finfo(np.float32).tiny
LARGEST_ABSMAX = np.float32(3.4028e38)

_AHEAD = 8  # blocks: time enough for memory to answer
_LINE = 16  # values of a cache line

_SIGNATURES: dict[Any, tuple[types.Type, ...]] = {}
_INT8 = numba.from_dtype(INT8_BLOCK)
_NIBBLES = numba.from_dtype(NIBBLE_BLOCK)


def reads(dtype: types.Type) -> types.Array:
  """A flat array that may be read-only, as received bytes are."""
  return types.Array(dtype, 1, "C", readonly=True)


def writes(dtype: types.Type) -> types.Array:
  return types.Array(dtype, 1, "C")


def kernel(*arguments: types.Type) -> Callable[[Callable], Any]:
  """Decorates a loop that is compiled for exactly these argument types."""

  def decorate(loop: Callable) -> Any:
    compiled = numba.njit(loop, nogil=True, cache=True, error_model="numpy")
    _SIGNATURES[compiled] = arguments
    return compiled

  return decorate


@functools.cache
def compile_all() -> None:
  """Compiles every kernel, or loads it from numba's cache on disk.

  A process calls this before it joins a run, so that nothing compiles inside
  a round: from here on other argument types are a TypeError. Takes seconds the
  first time on a machine, milliseconds later.
  """
  for loop, arguments in _SIGNATURES.items():
    loop.compile(arguments)
    loop.disable_compile()


class Loops(NamedTuple):
  """The kernels of one codec, and how its blocks are laid out."""

  values: int  # of a block
  block: np.dtype
  encode: Any
  decode: Any
  accumulate: Any
  squared_norm: Any


def _emit_prefetch(typing_context, values, index):
  """Asks for the cache line of values[index], which may be past the end."""

  def generate(context, builder, signature, arguments):
    array = context.make_array(values)(context, builder, arguments[0])
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    address = builder.gep(array.data, [arguments[1]])
    function = cgutils.get_or_insert_function(
      builder.module,
      ir.FunctionType(ir.VoidType(), [byte, number, number, number]),
      "llvm.prefetch.p0",
    )
    # To read, into every cache, data.
    flags = [number(0), number(3), number(1)]
    builder.call(function, [builder.bitcast(address, byte), *flags])
    return context.get_dummy_value()

  return types.void(values, types.intp), generate


_prefetch: Any = intrinsic(_emit_prefetch)


@numba.njit
def _fetch_ahead(values, block):
  """Lets memory work on blocks to come while this one is encoded.

  The processor sees by itself that values are read in order, but stops asking
  while it is at the second pass over a block, which finds all in cache. From
  memory, encoding is a quarter faster for it; from cache it is as before.
  """
  first = (block + _AHEAD) * BLOCK
  for line in range(BLOCK // _LINE):
    _prefetch(values, np.intp(first + line * _LINE))


@numba.njit(error_model="numpy")
def _scale(x, share):
  """share * max |x|; 0 of zeros alone, -1 if x has NaN or an infinity.

  The largest magnitude is found on the bits: unsigned integers order as the
  magnitudes they stand for, NaN and inf above all, and their maximum is a
  vector instruction where that of floats is not.
  """
  bits = x.view(np.uint32)
  largest = np.uint32(0)
  for i in range(BLOCK):
    largest = np.uint32(max(largest, bits[i] & np.uint32(0x7FFFFFFF)))
  if largest >= np.uint32(0x7F800000):
    return np.float32(-1)
  if largest == 0:
    return np.float32(0)
  absmax = min(np.uint32(largest).view(np.float32), LARGEST_ABSMAX)
  return max(share * absmax, SMALLEST_SCALE)


@numba.njit(error_model="numpy")
def _inverse(scale):
  """1 / scale, and a number where all values are 0."""
  return np.float32(1) / max(scale, SMALLEST_SCALE)


# ------------------------------------------------------------------------- int8


@kernel(reads(types.float32), writes(_INT8))
def encode_int8(values, blocks):
  """Writes the codes of `values`; returns the first block with NaN or inf.

  Returns -1 if all is finite.
  """
  for n in range(blocks.size):
    _fetch_ahead(values, n)
    x = values[n * BLOCK : (n + 1) * BLOCK]
    scale, codes = _scale(x, INT8_SHARE), blocks[n].codes
    if scale < 0:
      return n
    inverse = _inverse(scale)
    for i in range(BLOCK):
      codes[i] = np.int32(np.rint(x[i] * inverse))
    blocks[n].scale = scale
  return -1


@kernel(reads(_INT8), writes(types.float32))
def decode_int8(blocks, out):
  """out = scale * code."""
  for n in range(blocks.size):
    scale, codes = blocks[n].scale, blocks[n].codes
    y = out[n * BLOCK : (n + 1) * BLOCK]
    for i in range(BLOCK):
      y[i] = scale * np.float32(codes[i])


@kernel(writes(types.float32), reads(_INT8), types.float32)
def accumulate_int8(total, blocks, weight):
  """total += weight * (scale * code)."""
  for n in range(blocks.size):
    scale, codes = blocks[n].scale, blocks[n].codes
    t = total[n * BLOCK : (n + 1) * BLOCK]
    for i in range(BLOCK):
      t[i] += weight * (scale * np.float32(codes[i]))


@kernel(reads(_INT8))
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


INT8 = Loops(
  BLOCK,
  INT8_BLOCK,
  encode_int8,
  decode_int8,
  accumulate_int8,
  squared_norm_int8,
)


# ----------------------------------------------------------- two codes to a byte


@numba.njit
def _low(byte):
  """The code of value i, as a signed number."""
  return np.int32(np.int32(byte) << np.int32(28)) >> np.int32(28)


@numba.njit
def _high(byte):
  """The code of value i + HALF, as a signed number."""
  return np.int32(byte) >> np.int32(4)


@numba.njit
def _pair(low, high):
  return np.int8((low & np.int32(15)) | np.int32(high << np.int32(4)))


@numba.njit
def _round(r):
  return np.int32(np.rint(r))


@numba.njit
def _exponent(r):
  """The code of r in e3m0: its sign, times exponent + 1 of the power taken.

  Half a unit of the exponent is added to the bits of |r|: a mantissa of one
  half or more carries into the exponent. What stands there then is that of the
  nearest power, and of the larger one in a tie. Below 1 the other choice is 0.
  """
  bits = np.uint32(np.float32(r).view(np.uint32) & np.uint32(0x7FFFFFFF))
  exponent = np.int32(np.uint32(bits + np.uint32(0x00400000)) >> np.uint32(23))
  code = max(
    np.int32(exponent - np.int32(126)),
    np.int32(bits >= np.uint32(0x3F000000)),  # from 0.5 on
  )
  return np.int32(-code) if r < 0 else code


@numba.njit
def _power(code):
  """What a code of e3m0 stands for: 0, ±1, ±2, ±4 … ±64."""
  power = np.int32(np.int32(1) << np.int32(abs(code))) >> np.int32(1)
  return np.int32(-power) if code < 0 else power


@kernel(reads(types.float32), writes(_NIBBLES))
def encode_int4(values, blocks):
  """As `encode_int8`."""
  for n in range(blocks.size):
    _fetch_ahead(values, n)
    x = values[n * BLOCK : (n + 1) * BLOCK]
    scale, codes = _scale(x, INT4_SHARE), blocks[n].codes
    if scale < 0:
      return n
    inverse = _inverse(scale)
    low, high = x[:HALF], x[HALF:]
    for i in range(HALF):
      codes[i] = _pair(_round(low[i] * inverse), _round(high[i] * inverse))
    blocks[n].scale = scale
  return -1


@kernel(reads(_NIBBLES), writes(types.float32))
def decode_int4(blocks, out):
  """out = scale * code."""
  for n in range(blocks.size):
    scale, codes = blocks[n].scale, blocks[n].codes
    y = out[n * BLOCK : (n + 1) * BLOCK]
    low, high = y[:HALF], y[HALF:]
    for i in range(HALF):
      low[i] = scale * np.float32(_low(codes[i]))
      high[i] = scale * np.float32(_high(codes[i]))


@kernel(writes(types.float32), reads(_NIBBLES), types.float32)
def accumulate_int4(total, blocks, weight):
  """total += weight * (scale * code)."""
  for n in range(blocks.size):
    scale, codes = blocks[n].scale, blocks[n].codes
    t = total[n * BLOCK : (n + 1) * BLOCK]
    low, high = t[:HALF], t[HALF:]
    for i in range(HALF):
      low[i] += weight * (scale * np.float32(_low(codes[i])))
      high[i] += weight * (scale * np.float32(_high(codes[i])))


@kernel(reads(_NIBBLES))
def squared_norm_int4(blocks):
  """As `squared_norm_int8`."""
  total = 0.0
  for n in range(blocks.size):
    scale, codes = np.float64(blocks[n].scale), blocks[n].codes
    squares = np.int32(0)  # at most 256 * 7^2
    for i in range(HALF):
      low, high = _low(codes[i]), _high(codes[i])
      squares += np.int32(low * low) + np.int32(high * high)
    total += scale * scale * np.float64(squares)
  return total


INT4 = Loops(
  BLOCK,
  NIBBLE_BLOCK,
  encode_int4,
  decode_int4,
  accumulate_int4,
  squared_norm_int4,
)


@kernel(reads(types.float32), writes(_NIBBLES))
def encode_e3m0(values, blocks):
  """As `encode_int8`."""
  for n in range(blocks.size):
    _fetch_ahead(values, n)
    x = values[n * BLOCK : (n + 1) * BLOCK]
    scale, codes = _scale(x, E3M0_SHARE), blocks[n].codes
    if scale < 0:
      return n
    inverse = _inverse(scale)
    low, high = x[:HALF], x[HALF:]
    for i in range(HALF):
      codes[i] = _pair(
        _exponent(low[i] * inverse), _exponent(high[i] * inverse)
      )
    blocks[n].scale = scale
  return -1


@kernel(reads(_NIBBLES), writes(types.float32))
def decode_e3m0(blocks, out):
  """out = scale * power."""
  for n in range(blocks.size):
    scale, codes = blocks[n].scale, blocks[n].codes
    y = out[n * BLOCK : (n + 1) * BLOCK]
    low, high = y[:HALF], y[HALF:]
    for i in range(HALF):
      low[i] = scale * np.float32(_power(_low(codes[i])))
      high[i] = scale * np.float32(_power(_high(codes[i])))


@kernel(writes(types.float32), reads(_NIBBLES), types.float32)
def accumulate_e3m0(total, blocks, weight):
  """total += weight * (scale * power)."""
  for n in range(blocks.size):
    scale, codes = blocks[n].scale, blocks[n].codes
    t = total[n * BLOCK : (n + 1) * BLOCK]
    low, high = t[:HALF], t[HALF:]
    for i in range(HALF):
      low[i] += weight * (scale * np.float32(_power(_low(codes[i]))))
      high[i] += weight * (scale * np.float32(_power(_high(codes[i]))))


@kernel(reads(_NIBBLES))
def squared_norm_e3m0(blocks):
  """As `squared_norm_int8`."""
  total = 0.0
  for n in range(blocks.size):
    scale, codes = np.float64(blocks[n].scale), blocks[n].codes
    squares = np.int32(0)  # at most 256 * 64^2
    for i in range(HALF):
      low, high = _power(_low(codes[i])), _power(_high(codes[i]))
      squares += np.int32(low * low) + np.int32(high * high)
    total += scale * scale * np.float64(squares)
  return total


E3M0 = Loops(
  BLOCK,
  NIBBLE_BLOCK,
  encode_e3m0,
  decode_e3m0,
  accumulate_e3m0,
  squared_norm_e3m0,
)


# --------------------------------------------------------------------- Nesterov


@kernel(
  writes(types.float32),
  writes(types.float32),
  reads(types.float32),
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


@kernel(reads(types.float32), reads(types.float32))
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
