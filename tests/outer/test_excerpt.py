"""A fragment of x on the devices: read and moved, and the rest left alone."""

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from stacked import Name, of_layer

from intellect_jax.outer import overlap
from intellect_jax.outer.excerpt import Excerpt
from intellect_jax.outer.fragments import partition
from intellect_jax.outer.layout import Layout

LAYERS = 7


def stacked_names():
  for layer in range(LAYERS):
    yield from of_layer(layer)
  yield Name("model.embed_tokens.weight", ("embed",), None)


def stacked_params():
  """On two devices."""
  rng = np.random.default_rng(0)
  mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2])

  def draw(shape, spec):
    values = rng.standard_normal(shape, dtype=np.float32)
    return jax.device_put(values, NamedSharding(mesh, spec))

  blocks = {
    "q": draw((LAYERS, 8, 48), P(None, "fsdp")),
    "norm": draw((LAYERS, 8), P()),
  }
  return {"embed": draw((16, 8), P("fsdp")), "blocks": blocks}


@pytest.fixture(params=[1, 3])
def case(request):
  """A fragment, its excerpt, and two canonical vectors with their trees."""
  x = stacked_params()
  layout = Layout.of(x, stacked_names())
  fragment = partition(layout, request.param)[-1]
  shardings = jax.tree.map(lambda leaf: leaf.sharding, x)
  vector = layout.flatten(x)
  theta = 2 * vector + 1
  return layout, fragment, Excerpt(fragment, shardings), x, vector, theta


def places(fragment) -> np.ndarray:
  """Indices of its values, without padding."""
  return np.concatenate(
    [np.arange(t.start, t.start + t.size) for t in fragment.tensors]
  )


def test_a_fragment_has_some_of_the_layers(case):
  layout, fragment, *_ = case
  layers = {t.layer for t in fragment.tensors if t.layer is not None}
  few = len(fragment.tensors) < len(layout.tensors)
  assert few == (0 < len(layers) < LAYERS)


@pytest.mark.parametrize("move", ["set", "blend", "rebase", "eager"])
def test_a_move_is_of_the_fragment_alone(case, move):
  layout, fragment, excerpt, x, vector, theta = case
  index = places(fragment)
  before = jax.tree.map(lambda leaf: leaf.sharding, x)
  new, expected = excerpt.place(theta), vector.copy()
  match move:
    case "set":
      x, expected[index] = excerpt.set(x, new), theta[index]
    case "blend":
      x = excerpt.blend(x, new, 0.25)
      expected[index] = 0.25 * vector[index] + 0.75 * theta[index]
    case "rebase":
      anchor = excerpt.copy(x)
      x = excerpt.displacement(x, anchor)  # nothing was done since
      x = excerpt.rebase(x, new)
      expected[index] = theta[index]
    case "eager":
      rule = 0.5, 0.75, 0.5
      x = excerpt.eager(x, new, excerpt.place(-vector), *rule)
      expected[index] = overlap.eager(vector, theta, -vector, *rule)[index]
  np.testing.assert_allclose(layout.flatten(x), expected, rtol=1e-6, atol=1e-6)
  still = np.delete(np.arange(layout.size), index)
  np.testing.assert_array_equal(layout.flatten(x)[still], vector[still])
  assert jax.tree.map(lambda leaf: leaf.sharding, x) == before


def test_a_copy_outlives_what_it_was_taken_from(case):
  _, _, excerpt, x, vector, theta = case
  copy, expected = excerpt.copy(x), list(excerpt.place(vector))
  moved = excerpt.set(x, excerpt.place(theta))  # donates x
  jax.block_until_ready(moved)
  for kept, values in zip(copy, expected, strict=True):
    np.testing.assert_array_equal(kept, values)
