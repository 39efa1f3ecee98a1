"""Codecs: float32 values to the bytes that travel, and back.

A codec works on blocks, each on its own: any range of whole blocks is encoded
and decoded as in the whole, so threads and islands can share a vector. What an
island encoded is the wire value; everyone decodes the same bytes to the same
bits. All calls release the GIL.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from intellect_jax.errors import UserError
from intellect_jax.outer import kernels, sparse_kernels


class NotFiniteError(ValueError):
  """A value to encode is NaN or infinite.

  Attributes:
    index: its position in the encoded range.
    value: NaN or an infinity.
  """

  def __init__(self, index: int, value: float):
    super().__init__(
      f"Value {index} is {value}, and what is not finite has no code. It never"
      " enters a mean: look at the losses and gradient norms before it."
    )
    self.index, self.value = index, value


class Codec(Protocol):
  """What the exchange asks of a codec.

  Values are float32 [n * block], codes uint8 [n * block_bytes], contiguous.
  """

  name: str
  block: int  # values
  block_bytes: int
  # Leaves most values out, for `feedback.py` to make up for. Then a mean is not
  # encoded again, and is its members' codes: docs/protocol.md, 8.
  sparse: bool

  def encode(self, values: np.ndarray, out: np.ndarray) -> None:
    """Writes the codes of `values` to `out`; raises NotFiniteError."""
    ...

  def decode(self, codes: np.ndarray, out: np.ndarray) -> None:
    """Writes the decoded values to `out`."""
    ...

  def accumulate(
    self, total: np.ndarray, codes: np.ndarray, weight: float
  ) -> None:
    """total += weight * decoded, every operation rounded to float32."""
    ...

  def squared_norm(self, codes: np.ndarray) -> float:
    """Sum of the squares of the decoded values, in float64."""
    ...


def make_codec(name: str) -> Codec:
  """Returns the codec called `name`; raises UserError if there is none."""
  codecs: dict[str, Callable[[], Codec]] = {
    "int8": int8,
    "int4": int4,
    "e3m0": e3m0,
    "float32": Float32,
    "sparse2": sparse2,
  }
  if name not in codecs:
    raise UserError(
      f"run.outer.codec is {name!r}, but must be one of"
      f" {', '.join(codecs)}. Change it with --config.run.outer.codec=…"
    )
  return codecs[name]()


class Blockwise:
  """Blocks of values, each a record of numpy, by loops of numba.

  All of x has a code, whatever its size, and 0 is decoded as 0. What a block's
  values share is a normal number, since some CPUs flush others to zero, or 0.
  """

  def __init__(self, name: str, loops: kernels.Loops, sparse: bool = False):
    self.name = name
    self.block = loops.values
    self.block_bytes = loops.block.itemsize
    self.sparse = sparse
    self._loops = loops

  def encode(self, values: np.ndarray, out: np.ndarray) -> None:
    _check(self, values, out)
    bad = self._loops.encode(values, out.view(self._loops.block))
    if bad >= 0:
      start = bad * self.block
      _refuse_not_finite(values[start : start + self.block], start)

  def decode(self, codes: np.ndarray, out: np.ndarray) -> None:
    _check(self, out, codes)
    self._loops.decode(codes.view(self._loops.block), out)

  def accumulate(
    self, total: np.ndarray, codes: np.ndarray, weight: float
  ) -> None:
    _check(self, total, codes)
    self._loops.accumulate(
      total, codes.view(self._loops.block), np.float32(weight)
    )

  def squared_norm(self, codes: np.ndarray) -> float:
    return self._loops.squared_norm(codes.view(self._loops.block))


# int8, int4 and e3m0 have blocks of 256 values: a float32 scale (little-endian),
# that of zeros alone 0, then the codes. A value is decoded as
# scale * float32(number), where the number is what its code stands for.


def int8() -> Blockwise:
  """8 bits a value: a byte each, in [-127, 127].

    scale = max |x| * (1 / 127),  code = round_half_even(x * (1 / scale))

  so that |x - scale * code| <= scale / 2, up to float32's rounding.
  """
  return Blockwise("int8", kernels.INT8)


def int4() -> Blockwise:
  """4 bits a value, two to a byte, in [-7, 7].

    scale = max |x| * (1 / 7),  code = round_half_even(x * (1 / scale))

  so that |x - scale * code| <= scale / 2, up to float32's rounding. Byte i of a
  block has the codes of value i, in its low bits, and of value i + 128, both in
  two's complement.
  """
  return Blockwise("int4", kernels.INT4)


def e3m0() -> Blockwise:
  """4 bits a value: a sign and three bits of exponent, no mantissa.

  The number format of Streaming DiLoCo, arXiv 2501.18512, with a scale a block:

    scale = max |x| / 64,  number = 0, ±1, ±2, ±4 … ±64: nearest to x / scale

  where of two that are equally near the larger magnitude is taken. So
  |x - scale * number| <= max(|x| / 3, scale / 2), up to float32's rounding:
  worse than `int4` at the largest values, better at small ones. The code of
  ±2^k is ±(k + 1), and codes lie in a block as those of `int4`.
  """
  return Blockwise("e3m0", kernels.E3M0)


def sparse2() -> Blockwise:
  """0.16 bits a value: of each 4096 the 64 largest, by 2 bits and their place.

  TopK and quantization of SparseLoCo, arXiv 2508.15706: a sign, and which of
  two magnitudes, about the means of the kept values below and above the mean of
  all. What is left of a value, x minus what it is decoded as, is exact in
  float32, so that with error feedback nothing is lost: see `feedback.py`. A
  block is 84 bytes: the format stands in sparse_kernels.py.
  """
  return Blockwise("sparse2", sparse_kernels.SPARSE2, sparse=True)


class Float32:
  """The values themselves, little-endian: exact, for tests of the rest."""

  name = "float32"
  block = kernels.BLOCK
  block_bytes = 4 * kernels.BLOCK
  sparse = False

  def encode(self, values: np.ndarray, out: np.ndarray) -> None:
    _check(self, values, out)
    _refuse_not_finite(values, 0)
    out.view("<f4")[:] = values

  def decode(self, codes: np.ndarray, out: np.ndarray) -> None:
    _check(self, out, codes)
    out[:] = codes.view("<f4")

  def accumulate(
    self, total: np.ndarray, codes: np.ndarray, weight: float
  ) -> None:
    _check(self, total, codes)
    total += np.float32(weight) * codes.view("<f4")

  def squared_norm(self, codes: np.ndarray) -> float:
    return float(np.square(codes.view("<f4"), dtype=np.float64).sum())


def _check(codec: Codec, values: np.ndarray, codes: np.ndarray) -> None:
  """As chex would, in a microsecond: the exchange encodes in small pieces."""
  blocks = values.size // codec.block
  assert values.shape == (blocks * codec.block,), values.shape
  assert codes.shape == (blocks * codec.block_bytes,), codes.shape
  assert values.dtype == np.float32, values.dtype
  assert codes.dtype == np.uint8, codes.dtype


def _refuse_not_finite(values: np.ndarray, start: int) -> None:
  finite = np.isfinite(values)
  if not finite.all():
    index = int(finite.argmin())
    raise NotFiniteError(start + index, float(values[index]))
