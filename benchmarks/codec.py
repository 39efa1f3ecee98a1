"""How fast codecs are on a core, beside how fast it reads and writes memory.

  python -m benchmarks.codec --json=benchmarks/results/codec.json   # 2 minutes
  python -m benchmarks.codec --quick                                # seconds

Rates are of float32, 4 bytes a value. In pieces: of the exchange's size, the
same ones again, so that they stay in cache. In arrays: every value comes from
memory and goes there, by one thread, and by one on each core at the same time.
What memory gives is what so many threads move in a copy or in STREAM's triad
a = b + s * c, whichever is more; bytes are those that a loop reads and writes.
The machine's limit is that of all cores: a core alone may reach more than its part.
"""

from collections.abc import Callable
import concurrent.futures
import itertools
import json
import os
import pathlib
import time

from absl import app, flags
import numba
import numpy as np

from benchmarks import machine
from intellect_jax.elastic.reduce import PIECE
from intellect_jax.outer import kernels, nesterov, sparse_kernels
from intellect_jax.outer.codec import Codec, make_codec

_QUICK = flags.DEFINE_bool(
  "quick", False, "Arrays of a tenth, which a large cache may hold."
)
_JSON = flags.DEFINE_string("json", None, "File for every figure.")

CODECS = ("int8", "int4", "e3m0", "sparse2", "float32")
BAR_RATE = 6e9  # bytes of float32 a second and core, in pieces
BAR_SHARE = 0.5  # of what memory gives, in arrays, all cores
BARRED = ("int8", "int4")
_BLOCK = sparse_kernels.BLOCK  # values: whole blocks of every codec
_BLOCKS = 24_414  # 100M values
_TIMES = 5
_PIECE_SECONDS = 0.3

Loop = Callable[[slice], None]  # over some blocks
Loops = dict[str, tuple[float, Loop]]  # with bytes it moves a value


@numba.njit(nogil=True)
def triad(a, b, c):
  for i in range(a.size):
    a[i] = b[i] + np.float32(3) * c[i]


class Arrays:
  """Values and codes, and the loops over any of their blocks."""

  def __init__(self, blocks: int):
    self.blocks = blocks
    rng = np.random.default_rng(0)
    block = rng.standard_normal(_BLOCK, dtype=np.float32)
    self.a = np.tile(block, blocks)
    self.b = self.a.copy()
    self.c = self.a.copy()

  def _of(self, array: np.ndarray, blocks: slice) -> np.ndarray:
    return array[blocks.start * _BLOCK : blocks.stop * _BLOCK]

  def memory(self) -> Loops:
    def copy(at: slice) -> None:
      np.copyto(self._of(self.a, at), self._of(self.b, at))

    def add(at: slice) -> None:
      triad(self._of(self.a, at), self._of(self.b, at), self._of(self.c, at))

    def step(at: slice) -> None:
      theta, b, mean = (self._of(x, at) for x in (self.a, self.b, self.c))
      nesterov.apply(theta, b, mean, 1e-3, 0.9)

    return dict(copy=(8, copy), triad=(12, add), nesterov=(20, step))

  def codec(self, codec: Codec) -> Loops:
    size = _BLOCK // codec.block * codec.block_bytes
    coded = np.zeros(self.blocks * size, np.uint8)
    codec.encode(self.b, coded)

    def codes(at: slice) -> np.ndarray:
      return coded[at.start * size : at.stop * size]

    def squares(at: slice) -> None:
      codec.squared_norm(codes(at))

    code = size / _BLOCK
    return dict(
      encode=(
        4 + code,
        lambda at: codec.encode(self._of(self.b, at), codes(at)),
      ),
      accumulate=(
        8 + code,
        lambda at: codec.accumulate(self._of(self.a, at), codes(at), 1e-3),
      ),
      decode=(
        4 + code,
        lambda at: codec.decode(codes(at), self._of(self.a, at)),
      ),
      squared_norm=(code, squares),
    )


def in_arrays(loop: Loop, blocks: int, threads: int) -> float:
  """Bytes of float32 a second and thread over all blocks, the best time."""
  cuts = np.linspace(0, blocks, threads + 1).astype(int)
  parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
  best = float("inf")
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for _ in range(_TIMES):
      began = time.perf_counter()
      list(pool.map(loop, parts))
      best = min(best, time.perf_counter() - began)
  return blocks * _BLOCK * 4 / best / threads


def in_pieces(loop: Loop) -> float:
  """The same of one thread and one piece, the best of many times."""
  piece, best = slice(0, PIECE // _BLOCK), float("inf")
  ends = time.perf_counter() + _PIECE_SECONDS
  while (began := time.perf_counter()) < ends:
    loop(piece)
    best = min(best, time.perf_counter() - began)
  return PIECE * 4 / best


def measure(loops: Loops, blocks: int, cores: int) -> dict[str, dict]:
  """Rates of each loop, and bytes/s that it moves in arrays."""
  figures = {}
  for name, (moved, loop) in loops.items():
    loop(slice(0, PIECE // _BLOCK))  # compiles what is not yet
    pieces = in_pieces(loop)
    one, each = (in_arrays(loop, blocks, n) for n in (1, cores))
    figures[name] = dict(
      pieces=pieces,
      arrays=one,
      arrays_all_cores=each,
      moved=one / 4 * moved,
      moved_all_cores=each / 4 * moved,
    )
  return figures


def main(_) -> None:
  found = machine.describe()
  kernels.compile_all()
  blocks = _BLOCKS // 10 if _QUICK.value else _BLOCKS
  cores = len(os.sched_getaffinity(0))
  arrays = Arrays(blocks)
  figures = dict(memory=measure(arrays.memory(), blocks, cores))
  for name in CODECS:
    loops = arrays.codec(make_codec(name))
    figures[name] = measure(loops, blocks, cores)
  found["load_after"] = machine.load()

  print(found)
  print(f"GB/s of float32 a core; in arrays of {blocks * _BLOCK:,} values")
  print(f"{'':22}pieces  arrays  of memory  {cores} cores  of memory")
  for name, loops in figures.items():
    for loop, of in loops.items():
      for cores_used in ("moved", "moved_all_cores"):
        limit = max(figures["memory"][n][cores_used] for n in ("copy", "triad"))
        of[f"{cores_used}_share"] = of[cores_used] / limit
      print(
        f"{name + ' ' + loop:20} {of['pieces'] / 1e9:7.1f}"
        f" {of['arrays'] / 1e9:7.1f} {of['moved_share']:10.0%}"
        f" {of['arrays_all_cores'] / 1e9:8.1f}"
        f" {of['moved_all_cores_share']:10.0%}"
      )
  met = all(
    figures[name][loop]["pieces"] >= BAR_RATE
    and figures[name][loop]["moved_all_cores_share"] >= BAR_SHARE
    for name in BARRED
    for loop in ("encode", "accumulate")
  )
  print(
    f"Bar for {' and '.join(BARRED)}, encode and accumulate:"
    f" {BAR_RATE / 1e9:g} GB/s in pieces, {BAR_SHARE:.0%} of memory in"
    f" arrays on all cores: {'met' if met else 'missed'}"
  )
  if _JSON.value:
    result = dict(
      machine=found,
      values=blocks * _BLOCK,
      piece=PIECE,
      bars=dict(rate=BAR_RATE, share=BAR_SHARE, met=met),
      figures=figures,
    )
    pathlib.Path(_JSON.value).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  app.run(main)
