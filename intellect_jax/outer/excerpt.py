"""A fragment of a tree of parameters on the devices: how it is read and moved.

It is a list of arrays, one for each leaf that the fragment has tensors of: the
leaf, or those rows of a stacked one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from intellect_jax.outer import overlap
from intellect_jax.outer.fragments import Fragment
from intellect_jax.outer.layout import Params, Tensor

Arrays = list[jax.Array]


class Excerpt:
  """Reads and moves a fragment of x, and leaves the rest of x as it is."""

  def __init__(self, fragment: Fragment, shardings: Params):
    """`shardings`: of the whole tree, stacked leaves not over layers."""
    self._tensors: dict[tuple[str, ...], list[Tensor]] = {}  # by leaf
    for tensor in fragment.tensors:
      self._tensors.setdefault(tensor.path, []).append(tensor)
    self._shardings = [
      tensors[0].leaf(shardings) for tensors in self._tensors.values()
    ]
    self.copy = jax.jit(
      lambda x: jax.tree.map(jnp.copy, self._of(x)),
      out_shardings=self._shardings,
    )
    self.set, self.blend, self.rebase = (
      jax.jit(move, donate_argnums=0, out_shardings=shardings)
      for move in (self._set, self._blend, self._rebase)
    )

  def place(self, vector: np.ndarray) -> Arrays:
    """The fragment's values in a canonical vector, on the devices."""
    arrays = [
      tensors[0].of(vector).copy()
      if tensors[0].layer is None
      else np.stack([tensor.of(vector) for tensor in tensors])
      for tensors in self._tensors.values()
    ]
    return [
      jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
      for x, sharding in zip(arrays, self._shardings, strict=True)
    ]

  def _of(self, x: Params) -> Arrays:
    """The fragment of x."""
    return [
      leaf if rows is None else leaf[rows]
      for leaf, rows in (
        (tensors[0].leaf(x), self._rows(tensors, x))
        for tensors in self._tensors.values()
      )
    ]

  def _rows(self, tensors: list[Tensor], x: Params) -> np.ndarray | None:
    """Those of a stacked leaf; None: the leaf is whole."""
    layers = [tensor.layer for tensor in tensors]
    if layers == [None] or layers == [*range(len(tensors[0].leaf(x)))]:
      return None
    return np.array(layers)

  def _set(self, x: Params, values: Arrays) -> Params:
    """x with these values of the fragment."""
    moved = jax.tree.map(lambda leaf: leaf, x)  # its dicts are copied
    for (path, tensors), new in zip(self._tensors.items(), values, strict=True):
      rows, leaf = self._rows(tensors, x), tensors[0].leaf(x)
      node = functools.reduce(lambda tree, key: tree[key], path[:-1], moved)
      node[path[-1]] = jnp.copy(new) if rows is None else leaf.at[rows].set(new)
    return moved

  def _blend(self, x: Params, theta: Arrays, alpha: float) -> Params:
    """See `overlap.blend`."""
    return self._set(x, overlap.blend(self._of(x), theta, alpha))

  def _rebase(self, x: Params, anchor: Arrays, theta: Arrays) -> Params:
    """See `overlap.rebase`."""
    return self._set(x, overlap.rebase(self._of(x), anchor, theta))
