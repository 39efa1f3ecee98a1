import itertools

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from stacked import Name, of_layer

from intellect_jax.outer.delta import delta
from intellect_jax.outer.layout import Layout

PIECE = 512  # values, less than some tensors have
LAYERS = 12  # so that layer 10 must come after layer 2


def stacked_names():
  yield Name("model.norm.weight", ("norm",), None)
  for layer in reversed(range(LAYERS)):
    yield from of_layer(layer)
  yield Name("model.embed_tokens.weight", ("embed",), None)


def stacked_params():
  rng = np.random.default_rng(0)
  shapes = {"embed": (16, 8), "norm": (8,)}
  blocks = {"q": (LAYERS, 8, 4, 12), "norm": (LAYERS, 8)}

  def draw(shape):
    return rng.standard_normal(shape, dtype=np.float32)

  params = {name: draw(shape) for name, shape in shapes.items()}
  return params | {"blocks": {k: draw(s) for k, s in blocks.items()}}


def whole_delta(theta, params, layout, tensors=None):
  """Whatever the size of the pieces is."""
  once, apart = (
    np.concatenate(
      [p.copy() for p in delta(theta, params, layout, size, tensors)]
    )
    for size in (layout.size, PIECE)
  )
  np.testing.assert_array_equal(once, apart)
  return apart


def put(params, fsdp, tensor):
  devices = jax.devices()[: fsdp * tensor]
  mesh = jax.make_mesh(
    (fsdp, tensor),
    ("fsdp", "tensor"),
    axis_types=(AxisType.Auto,) * 2,
    devices=devices,
  )
  specs = {
    "embed": P("tensor", "fsdp"),
    "norm": P(),
    "blocks": {"q": P(None, "fsdp", "tensor"), "norm": P("fsdp")},
  }
  return jax.tree.map(
    lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), params, specs
  )


@pytest.fixture
def params():
  return stacked_params()


@pytest.fixture
def layout(params):
  return Layout.of(params, list(stacked_names()))


def test_tensors_stand_in_the_order_of_names_with_numbers_as_numbers(layout):
  names = [tensor.name for tensor in layout.tensors]
  assert names[0] == "model.embed_tokens.weight"
  assert names[-1] == "model.norm.weight"
  layers = [t.layer for t in layout.tensors if t.path == ("blocks", "q")]
  assert layers == list(range(LAYERS))


def test_each_tensor_is_padded_to_whole_blocks(layout):
  start = 0
  for tensor in layout.tensors:
    assert tensor.start == start and tensor.start % 256 == 0
    assert 0 <= tensor.stop - tensor.start - tensor.size < 256
    start = tensor.stop
  assert layout.size == start == layout.blocks * 256


def test_flatten_puts_raveled_layers_in_place_and_zeros_between(params, layout):
  vector = layout.flatten(params)
  assert vector.dtype == np.float32
  values = 0
  for tensor in layout.tensors:
    leaf = params
    for key in tensor.path:
      leaf = leaf[key]
    expected = leaf if tensor.layer is None else leaf[tensor.layer]
    end = tensor.start + tensor.size
    np.testing.assert_array_equal(vector[tensor.start : end], expected.ravel())
    assert not vector[end : tensor.stop].any()
    values += tensor.size
  assert values == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_unflatten_inverts_flatten_with_arrays_of_its_own(params, layout):
  vector = layout.flatten(params)
  restored = layout.unflatten(vector)
  jax.tree.map(np.testing.assert_array_equal, restored, params)
  vector[:] = np.nan
  jax.tree.map(np.testing.assert_array_equal, restored, params)


@pytest.mark.parametrize("mesh", [(1, 1), (4, 1), (2, 2), (1, 4)])
def test_the_vector_is_the_same_on_every_mesh(params, layout, mesh):
  sharded = put(params, *mesh)
  assert Layout.of(sharded, list(stacked_names())) == layout
  np.testing.assert_array_equal(layout.flatten(sharded), layout.flatten(params))


def test_the_vector_is_the_same_with_layers_apart(params, layout):
  names, apart = [], {"embed": params["embed"], "norm": params["norm"]}
  for name, path, layer in stacked_names():
    if layer is None:
      names.append(Name(name, path, None))
    else:
      key = f"layer_{layer}"
      apart.setdefault(key, {})[path[1]] = params["blocks"][path[1]][layer]
      names.append(Name(name, (key, path[1]), None))
  unstacked = Layout.of(apart, names)
  np.testing.assert_array_equal(
    unstacked.flatten(apart), layout.flatten(params)
  )


def test_shapes_are_enough_for_a_layout(params, layout):
  abstract = jax.eval_shape(lambda: params)
  assert Layout.of(abstract, list(stacked_names())) == layout


@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)])
def test_parameters_can_be_donated_after_flatten_and_delta(
  params, layout, mesh
):
  sharded = put(params, *mesh)
  vector = layout.flatten(sharded)
  whole_delta(vector, sharded, layout)
  double = jax.jit(
    lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0
  )
  double(sharded)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(sharded))


@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)])
def test_delta_is_theta_minus_x_and_zero_in_the_padding(params, layout, mesh):
  x = layout.flatten(params)
  rng = np.random.default_rng(1)
  moved = jax.tree.map(
    lambda p: p + rng.standard_normal(p.shape, dtype=np.float32), params
  )
  theta = layout.flatten(moved)
  out = whole_delta(theta, put(params, *mesh), layout)
  np.testing.assert_array_equal(out, theta - x)


def test_neighbours_make_up_the_delta(params, layout):
  """As processes of an island do, each with some of the tensors."""
  theta = layout.flatten(params)
  rng = np.random.default_rng(1)
  x = jax.tree.map(
    lambda p: p + rng.standard_normal(p.shape, dtype=np.float32), params
  )
  whole = whole_delta(theta, x, layout)
  bounds = [0, layout.block, 7 * layout.block, layout.size]
  for start, stop in itertools.pairwise(bounds):
    tensors = layout.overlapping(start, stop)
    origin, end = tensors[0].start, tensors[-1].stop
    assert origin <= start and stop <= end
    out = whole_delta(theta, x, layout, tensors)
    np.testing.assert_array_equal(out, whole[origin:end])
  assert layout.overlapping(5, 5) == ()


def test_pieces_are_small_and_whole_blocks(params, layout):
  theta = layout.flatten(params)
  for size in (layout.block, PIECE):
    sizes = [len(piece) for piece in delta(theta, params, layout, size)]
    assert sum(sizes) == layout.size
    assert all(s % layout.block == 0 for s in sizes)
    assert max(sizes) <= size + 2 * layout.block


def test_a_codec_of_large_blocks_changes_the_end_alone(params, layout):
  large = Layout.of(params, list(stacked_names()), 4096)
  assert large.size % 4096 == 0 and 0 < large.size - layout.size < 4096
  vector = large.flatten(params)
  np.testing.assert_array_equal(vector[: layout.size], layout.flatten(params))
  assert not vector[layout.size :].any()
  # Who reads theta of a run need not know its codec.
  restored = layout.unflatten(vector)
  jax.tree.map(np.testing.assert_array_equal, restored, params)
  out = whole_delta(2 * vector, params, large)
  np.testing.assert_array_equal(out, vector)


def test_a_name_too_few_is_an_error(params):
  with pytest.raises(ValueError, match="4832 of 4840 parameters"):
    Layout.of(params, list(stacked_names())[1:])


def test_parameters_must_be_float32(params):
  params["norm"] = params["norm"].astype(np.float16)
  with pytest.raises(ValueError, match=r"model\.norm\.weight is float16"):
    Layout.of(params, list(stacked_names()))
