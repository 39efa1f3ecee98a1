"""Fragments: the parts of the model that are synchronized one at a time.

Streaming DiLoCo, arXiv 2501.18512. A fragment is whole tensors: layers taken in
strides, so that each fragment has early and late ones, and the embedding, the
output projection and the last norm, which are counted where they lie. Its
vector is the blocks of its tensors in the order of the canonical vector; with
one fragment it is that vector.
"""

from collections.abc import Sequence
import dataclasses
import re

from intellect_jax.outer.layout import Layout, Tensor

_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Fragment:
  """Some tensors of a layout, and where they stand in their own vector."""

  index: int
  tensors: tuple[Tensor, ...]  # in canonical order, placed as in the layout
  block: int  # floats that the codec treats as one

  @property
  def size(self) -> int:
    """Floats of its vector, padding included."""
    return sum(tensor.stop - tensor.start for tensor in self.tensors)

  @property
  def blocks(self) -> int:
    return self.size // self.block

  @property
  def runs(self) -> list[tuple[int, int]]:
    """[start, stop) in blocks of the canonical vector, neighbours joined."""
    runs: list[tuple[int, int]] = []
    for tensor in self.tensors:
      start, stop = tensor.start // self.block, tensor.stop // self.block
      if runs and runs[-1][1] == start:
        start = runs.pop()[0]
      runs.append((start, stop))
    return runs

  def overlapping(
    self, start: int, stop: int
  ) -> tuple[tuple[Tensor, ...], int]:
    """The tensors with floats in [start, stop) of its vector, and their origin.

    The origin is the place of the first of them, which may be cut by `start`.
    """
    found, origin, at = [], 0, 0
    for tensor in self.tensors:
      end = at + tensor.stop - tensor.start
      if max(at, start) < min(end, stop):
        origin = origin if found else at
        found.append(tensor)
      at = end
    return tuple(found), origin


def partition(layout: Layout, count: int) -> list[Fragment]:
  """Cuts a layout into `count` fragments of about the same size.

  A layer stays whole. The largest of the other tensors go first to where there
  is least, then layers do, one at a time; which layers those are is chosen so
  that each fragment's are spread over the whole depth. Two fragments differ by
  no more than the largest of these pieces.

  Raises:
    ValueError: if a fragment would be empty.
  """
  layers: dict[int, list[Tensor]] = {}
  others: list[Tensor] = []
  for tensor in layout.tensors:
    if found := _LAYER.search(tensor.name):
      layers.setdefault(int(found[1]), []).append(tensor)
    else:
      others.append(tensor)
  filled, owner = [0] * count, {}
  for tensor in sorted(others, key=lambda t: (-_size([t]), t.start)):
    owner[tensor.name] = lightest = filled.index(min(filled))
    filled[lightest] += _size([tensor])
  depth = [0] * count  # layers of each fragment
  for layer in sorted(layers, key=lambda n: (-_size(layers[n]), n)):
    lightest = filled.index(min(filled))
    filled[lightest] += _size(layers[layer])
    depth[lightest] += 1
  if not all(filled):
    raise ValueError(f"{len(layers)} layers do not fill {count} fragments.")
  for layer, fragment in zip(sorted(layers), _strided(depth), strict=True):
    owner |= {tensor.name: fragment for tensor in layers[layer]}
  return [
    Fragment(
      index,
      tuple(t for t in layout.tensors if owner[t.name] == index),
      layout.block,
    )
    for index in range(count)
  ]


def _size(tensors: Sequence[Tensor]) -> int:
  return sum(tensor.stop - tensor.start for tensor in tensors)


def _strided(depth: list[int]) -> list[int]:
  """Whose each layer is, so that fragment i has depth[i] evenly spread ones."""
  places = [
    ((at + 0.5) / count, fragment)
    for fragment, count in enumerate(depth)
    for at in range(count)
  ]
  return [fragment for _, fragment in sorted(places)]
