"""A fragment of a tree of parameters on the devices: how it is read and moved.

It is moved a tensor at a time, so that of the values by which it is moved there
is never more than one tensor, neither on the host nor on the devices.
"""

from collections.abc import Callable, Iterable, Iterator
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from intellect_jax.outer import overlap
from intellect_jax.outer.fragments import Fragment
from intellect_jax.outer.layout import Params, Tensor

Arrays = Iterable[jax.Array]  # of each tensor, in the fragment's order


class Excerpt:
  """Reads and moves a fragment of x, and leaves the rest of x as it is.

  What is moved donates the arrays of x.
  """

  def __init__(self, fragment: Fragment, shardings: Params):
    """`shardings`: of the whole tree, stacked leaves not over layers."""
    self._tensors = fragment.tensors
    self._shardings = [_sharding(t, shardings) for t in self._tensors]
    self.copy: Callable[[Params], list[jax.Array]] = jax.jit(
      lambda x: [jnp.copy(_of(tensor, x)) for tensor in self._tensors],
      out_shardings=self._shardings,
    )

  def place(self, vector: np.ndarray) -> Iterator[jax.Array]:
    """The fragment's values in a canonical vector, each in its turn.

    They may share its memory, so they are for `set` and so on, not to be kept.
    """
    for tensor, sharding in zip(self._tensors, self._shardings, strict=True):
      values = tensor.of(vector)
      yield jax.make_array_from_callback(
        values.shape, sharding, values.__getitem__
      )

  def set(self, x: Params, values: Arrays) -> Params:
    """x with these values of the fragment."""
    return self._move(_set, x, values)

  def blend(self, x: Params, theta: Arrays, alpha: float) -> Params:
    """See `overlap.blend`."""
    return self._move(overlap.blend, x, theta, numbers=(alpha,))

  def displacement(self, x: Params, anchor: Arrays) -> Params:
    """See `overlap.displacement`."""
    return self._move(overlap.displacement, x, anchor)

  def rebase(self, x: Params, theta: Arrays) -> Params:
    """See `overlap.rebase`."""
    return self._move(overlap.rebase, x, theta)

  def eager(
    self,
    x: Params,
    theta: Arrays,
    momentum: Arrays,
    part: float,
    learning_rate: float,
    mu: float,
  ) -> Params:
    """See `overlap.eager`."""
    numbers = part, learning_rate, mu
    return self._move(overlap.eager, x, theta, momentum, numbers=numbers)

  def _move(
    self,
    rule: Callable[..., Any],
    x: Params,
    *values: Arrays,
    numbers: tuple[float, ...] = (),
  ) -> Params:
    """x with rule(values in x, *values, *numbers) in the fragment."""
    moved = jax.tree.map(lambda leaf: leaf, x)  # its dicts are copied
    sources = [iter(arrays) for arrays in values]
    for tensor in self._tensors:
      own = [next(source) for source in sources]
      node = functools.reduce(operator.getitem, tensor.path[:-1], moved)
      leaf = node[tensor.path[-1]]
      move = _mover(rule, leaf.sharding)
      leaf = move(leaf, tensor.layer, own, numbers)
      node[tensor.path[-1]] = jax.block_until_ready(leaf)
      del own  # before the next ones are placed
    return moved


@functools.cache
def _mover(rule: Callable[..., Any], sharding: NamedSharding) -> Callable:
  """Moves a leaf, or one layer of it."""

  def move(leaf, layer, values, numbers):
    if layer is None:
      return rule(leaf, *values, *numbers)
    row = jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    row = rule(row, *values, *numbers)
    return jax.lax.dynamic_update_index_in_dim(leaf, row, layer, 0)

  # A rule that does not look at the leaf takes its memory all the same.
  return jax.jit(
    move, donate_argnums=0, out_shardings=sharding, keep_unused=True
  )


def _set(x: jax.Array, value: jax.Array) -> jax.Array:
  del x
  return jnp.copy(value)


def _of(tensor: Tensor, x: Params) -> jax.Array:
  leaf = tensor.leaf(x)
  return leaf if tensor.layer is None else leaf[tensor.layer]


def _sharding(tensor: Tensor, shardings: Params) -> NamedSharding:
  whole = tensor.leaf(shardings)
  if tensor.layer is None:
    return whole
  return NamedSharding(whole.mesh, PartitionSpec(*whole.spec[1:]))
