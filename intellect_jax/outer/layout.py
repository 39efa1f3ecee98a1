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

  def pieces(
    self,
    params: Params,
    wanted: Iterable[Tensor] | None = None,
    together: Iterable[Tensor] | None = None,
  ) -> Iterator[tuple[Tensor, Any, np.ndarray]]:
    """Yields (tensor, index, values): each tensor in the parts devices hold.

    Parts of a sharded tensor come straight from their devices, a layer at a
    time: nothing is gathered on a device, and no leaf is copied whole. `values`
    belongs at `index` of the tensor; it may be a view of a device buffer, which
    cannot be donated while the view lives, so do not keep it.

    A leaf that spans processes is gathered, one layer at a time: all of them
    call this together, each with the tensors that it wants itself.

    Args:
      params: arrays of numpy or jax.
      wanted: by this process; None: all.
      together: wanted by any process; None: all.
    """
    wanted = self.tensors if wanted is None else wanted
    names = {tensor.name for tensor in wanted}
    for tensor in self.tensors if together is None else together:
      leaf = tensor.leaf(params)
      spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
      gathered = _gather(leaf, tensor.layer) if spread else None
      if tensor.name not in names:
        continue
      if gathered is not None:
        yield tensor, ..., np.asarray(gathered.addressable_data(0))
      elif isinstance(leaf, jax.Array):
        for shard in leaf.addressable_shards:
          piece = _of_layer(shard, tensor.layer)
          if shard.replica_id == 0 and piece is not None:
            yield tensor, *piece
      else:
        yield tensor, ..., leaf if tensor.layer is None else leaf[tensor.layer]

  def flatten(self, params: Params) -> np.ndarray:
    """Returns a new float32 [size] with the values of `params`."""
    vector = np.zeros(self.size, np.float32)
    for tensor, index, values in self.pieces(params):
      tensor.of(vector)[index] = values
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


def _of_layer(
  shard: jax.Shard, layer: int | None
) -> tuple[tuple[slice, ...], np.ndarray] | None:
  """What `shard` holds of one layer, and where in the layer it belongs."""
  data = shard.data
  assert data is not None  # it is addressable
  if layer is None:
    return shard.index, np.asarray(data)
  layers, *index = shard.index
  row = layer - (layers.start or 0)
  if not 0 <= row < data.shape[0]:
    return None
  row_data = jax.lax.dynamic_index_in_dim(data, row, keepdims=False)
  return tuple(index), np.asarray(row_data)


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
