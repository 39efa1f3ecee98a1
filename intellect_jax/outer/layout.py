"""The canonical vector: a model's parameters as one float32 vector.

Tensors stand in the order of their Hugging Face names, each raveled and padded
with zeros to a multiple of 256. A stacked leaf [layers, ...] is as many tensors
as it has layers. So the vector is the same on every mesh, with layers stacked
or not, and a codec block of 256 never mixes two tensors. With a codec of larger
blocks, the last tensor is padded to a whole block, and the rest is the same.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import math
import operator
import re
import sys
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

_PADDED = 256  # floats; each tensor is, to a multiple of it

Params = dict[str, Any]  # nested, leaves are arrays or jax.ShapeDtypeStruct


class Named(Protocol):
  """What `model.huggingface.tensor_names` says about a tensor."""

  @property
  def name(self) -> str: ...
  @property
  def path(self) -> tuple[str, ...]: ...
  @property
  def layer(self) -> int | None: ...


class Tensor(NamedTuple):
  """A tensor's place in the model and in the vector."""

  name: str  # Hugging Face name, the layer in it
  path: tuple[str, ...]  # of its leaf in the tree of parameters
  layer: int | None  # index into the leaf's first axis; None: not stacked
  shape: tuple[int, ...]  # of one layer
  start: int  # in floats
  size: int  # in floats, without padding
  stop: int  # in floats, end of its padding

  def leaf(self, params: Params) -> Any:
    """The leaf of the tree that it is in, with all its layers."""
    return functools.reduce(operator.getitem, self.path, params)

  def of(self, vector: np.ndarray, origin: int = 0) -> np.ndarray:
    """The view of `vector`, which begins at float `origin`, on this tensor."""
    start = self.start - origin
    return vector[start : start + self.size].reshape(self.shape)


class Slab(NamedTuple):
  """Some rows of a tensor."""

  tensor: Tensor
  rows: slice  # of its first axis
  parts: list[tuple[Any, np.ndarray]]  # index in the slab, and values


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where each tensor stands in the canonical vector."""

  tensors: tuple[Tensor, ...]
  block: int  # floats that the codec treats as one
  size: int  # floats, padding included

  @property
  def blocks(self) -> int:
    return self.size // self.block

  @classmethod
  def of(
    cls, params: Params, names: Iterable[Named], block: int = 256
  ) -> "Layout":
    """Lays out `params`, arrays or abstract ones, all float32.

    Args:
      params: tree of arrays.
      names: of all its tensors.
      block: of the codec, a multiple of 256. Only the end of the vector depends
        on it: who reads theta of any run need not know its codec.

    Raises:
      ValueError: if a leaf is not float32 or `names` leave a value out.
    """
    tensors, start = [], 0
    for named in sorted(names, key=lambda named: _in_order(named.name)):
      place = named.name, named.path, named.layer
      leaf = functools.reduce(operator.getitem, named.path, params)
      if leaf.dtype != np.float32:
        raise ValueError(f"{named.name} is {leaf.dtype}, but must be float32.")
      shape = leaf.shape if named.layer is None else leaf.shape[1:]
      size = math.prod(shape)
      stop = start + math.ceil(size / _PADDED) * _PADDED
      tensors.append(Tensor(*place, shape, start, size, stop))
      start = stop
    named_values = sum(tensor.size for tensor in tensors)
    values = sum(leaf.size for leaf in jax.tree.leaves(params))
    if named_values != values:
      raise ValueError(f"Names cover {named_values} of {values} parameters.")
    end = math.ceil(start / block) * block
    tensors[-1:] = [tensor._replace(stop=end) for tensor in tensors[-1:]]
    return cls(tuple(tensors), block, end)

  def overlapping(self, start: int, stop: int) -> tuple[Tensor, ...]:
    """The tensors that have floats in [start, stop), those cut by it whole."""
    return tuple(
      t for t in self.tensors if max(t.start, start) < min(t.stop, stop)
    )

  def slabs(
    self,
    params: Params,
    wanted: Iterable[Tensor] | None = None,
    together: Iterable[Tensor] | None = None,
    most: int = sys.maxsize,
  ) -> Iterator[Slab]:
    """Yields each tensor in slabs of rows, as the devices hold them.

    Parts of a sharded tensor come straight from their devices: nothing is
    gathered on a device, and no more than a slab is copied. Values may be views
    of a device buffer, which cannot be donated while the view lives, so do not
    keep them.

    A leaf that spans processes is gathered, one layer at a time: all of them
    call this together, each with the tensors that it wants itself, and to the
    end.

    Args:
      params: arrays of numpy or jax.
      wanted: by this process; None: all.
      together: wanted by any process; None: all.
      most: values of a slab, if a row is not longer than that.
    """
    wanted = self.tensors if wanted is None else wanted
    names = {tensor.name for tensor in wanted}
    for tensor in self.tensors if together is None else together:
      leaf, layer = tensor.leaf(params), tensor.layer
      if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf, layer = _gather(leaf, layer), None
      if tensor.name not in names:
        continue
      count = tensor.shape[0]
      step = max(1, most * count // tensor.size)
      for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        yield Slab(tensor, rows, [*_parts(leaf, layer, rows)])

  def flatten(self, params: Params) -> np.ndarray:
    """Returns a new float32 [size] with the values of `params`."""
    vector = np.zeros(self.size, np.float32)
    for tensor, rows, parts in self.slabs(params):
      for index, values in parts:
        tensor.of(vector)[rows][index] = values
    return vector

  def unflatten(self, vector: np.ndarray) -> Params:
    """Returns a tree of new float32 arrays with the values of `vector`."""
    layers: dict[tuple[str, ...], list[np.ndarray]] = {}
    stacked = {tensor.path: tensor.layer is not None for tensor in self.tensors}
    for tensor in self.tensors:
      layers.setdefault(tensor.path, []).append(tensor.of(vector))
    params: Params = {}
    for path, arrays in layers.items():
      node = functools.reduce(
        lambda n, k: n.setdefault(k, {}), path[:-1], params
      )
      node[path[-1]] = np.stack(arrays) if stacked[path] else arrays[0].copy()
    return params


def _in_order(name: str) -> list[str | int]:
  """Sorts layers.2 before layers.10: text and numbers alternate."""
  return [
    int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)
  ]


def _parts(
  leaf: Any, layer: int | None, rows: slice
) -> Iterator[tuple[Any, np.ndarray]]:
  """What this process holds of some rows, and where among them it belongs."""
  if not isinstance(leaf, jax.Array):
    yield ..., (leaf if layer is None else leaf[layer])[rows]
    return
  # Of copies on several devices, any one.
  for shard in {str(s.index): s for s in leaf.addressable_shards}.values():
    row, index, shape = None, shard.index, shard.data.shape
    if layer is not None:
      (layers, *index), shape = index, shape[1:]
      row = layer - (layers.start or 0)
      if not 0 <= row < shard.data.shape[0]:
        continue
    first = index[0].start or 0
    start, stop = max(rows.start, first), min(rows.stop, first + shape[0])
    if start < stop:
      place = slice(start - rows.start, stop - rows.start), *index[1:]
      yield place, _rows(shard, row, start - first, stop - first)


def _rows(
  shard: jax.Shard, layer: int | None, start: int, stop: int
) -> np.ndarray:
  """Some rows of what a device holds, of one of its layers, on the host."""
  if shard.device.platform == "cpu":
    host = np.asarray(shard.data)  # a view
    return (host if layer is None else host[layer])[start:stop]
  return np.asarray(_cut(shard.data, layer, start, stop - start))


@functools.partial(jax.jit, static_argnums=3)
def _cut(
  data: jax.Array, layer: int | None, start: int, count: int
) -> jax.Array:
  if layer is not None:
    data = jax.lax.dynamic_index_in_dim(data, layer, keepdims=False)
  return jax.lax.dynamic_slice_in_dim(data, start, count)


def _gather(leaf: jax.Array, layer: int | None) -> jax.Array:
  """One layer of a leaf, whole on every device; all processes call this."""
  assert isinstance(leaf.sharding, NamedSharding)
  return _gatherer(leaf.sharding.mesh, layer is not None)(leaf, layer or 0)


@functools.cache
def _gatherer(mesh: Mesh, stacked: bool) -> Callable:
  def of_layer(leaf: jax.Array, layer: jax.Array) -> jax.Array:
    if not stacked:
      return leaf
    return jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)

  whole = NamedSharding(mesh, PartitionSpec())
  return jax.jit(of_layer, out_shardings=whole)
