"""What a device encodes is what a host would have, up to the last place."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from intellect_jax.outer import device_codec
from intellect_jax.outer.codec import NotFiniteError, make_codec
from intellect_jax.outer.layout import Layout

FINFO = np.finfo(np.float32)


class Name(NamedTuple):
  name: str
  path: tuple[str, ...]
  layer: int | None


NAMES = [Name("odd", ("odd",), None)] + [
  Name(f"layers.{i}", ("stacked",), i) for i in range(3)
]


def tree(seed):
  rng = np.random.default_rng(seed)
  return dict(
    odd=rng.standard_normal(7, dtype=np.float32),
    stacked=rng.standard_normal((3, 10, 28), dtype=np.float32),
  )


@pytest.fixture(params=list(device_codec.ENCODERS))
def codec(request):
  return make_codec(request.param)


@pytest.mark.parametrize("wanted", ["auto", "yes", "no"])
def test_who_encodes(wanted):
  mesh = jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1])
  layout = Layout.of(tree(0), NAMES)
  on_cpu = jax.default_backend() == "cpu"
  for name in ("int4", "float32"):
    made = device_codec.delta_encoder(wanted, make_codec(name), layout, mesh)
    here = wanted == "yes" or (wanted == "auto" and not on_cpu)
    assert (made is not None) == (here and name != "float32")


def encode(codec, values):
  """Codes of device and host, and the decoded values of both."""
  device = np.asarray(jax.jit(device_codec.ENCODERS[codec.name])(values))
  host = np.empty(values.size // codec.block * codec.block_bytes, np.uint8)
  decoded = np.empty((2, values.size), np.float32)
  codec.encode(values, host)
  codec.decode(device, decoded[0])
  codec.decode(host, decoded[1])
  return device, host, decoded


def parts(codec, codes):
  blocks = codes.reshape(-1, codec.block_bytes)
  return blocks[:, :4].copy().view("<f4"), blocks[:, 4:]


@pytest.mark.parametrize("exponent", [-60, 0, 60])
def test_codes_are_those_of_the_host_but_for_ties(codec, exponent):
  rng = np.random.default_rng(0)
  x = rng.standard_t(3, size=1024 * 256).astype(np.float32)
  x = np.ldexp(x, exponent)
  device, host, decoded = encode(codec, x)
  scales, codes = zip(*(parts(codec, c) for c in (device, host)), strict=True)
  np.testing.assert_allclose(*scales, rtol=3e-7)
  assert np.mean(codes[0] != codes[1]) < 1e-4
  # Where they differ, x lies between the two and is as far from both.
  there, here = np.abs(decoded.astype(np.float64) - x).reshape(2, -1, 256)
  absmax = np.abs(x).reshape(-1, 256).max(axis=1, keepdims=True)
  assert (np.abs(there - here) <= 8 * FINFO.eps * absmax).all()


def test_zeros_are_exact(codec):
  x = np.zeros(512, np.float32)
  x[256:300] = 3
  device, _, (decoded, _) = encode(codec, x)
  assert not device[: codec.block_bytes].any()
  np.testing.assert_array_equal(decoded[x == 0], 0)


@pytest.mark.parametrize("largest", [FINFO.max, 1.0, FINFO.tiny])
def test_one_huge_value_in_a_block_is_held(codec, largest):
  x = np.zeros(256, np.float32)
  x[200] = -largest
  device, _, (decoded, _) = encode(codec, x)
  scale = device[:4].view("<f4")[0]
  assert abs(np.float64(decoded[200]) - x[200]) <= scale / 2
  assert not np.delete(decoded, 200).any()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_the_first_value_that_is_not_finite_is_found(bad):
  x = jnp.ones(1024, jnp.float32)
  assert np.isfinite(device_codec.suspect(x)[1])
  index, value = device_codec.suspect(x.at[np.array([700, 900])].set(bad))
  assert index == 700
  np.testing.assert_equal(float(value), bad)


def test_it_lowers_for_cuda(codec):
  encode = jax.jit(device_codec.ENCODERS[codec.name])
  traced = encode.trace(jax.ShapeDtypeStruct((1024,), np.float32))
  codes = traced.lower(lowering_platforms=("cuda",)).out_info
  assert (codes.shape, codes.dtype) == ((4 * codec.block_bytes,), np.uint8)


def on(mesh, params):
  axes = dict(odd=P(), stacked=P(None, "fsdp", "tensor"))
  return {
    name: jax.device_put(leaf, NamedSharding(mesh, axes[name]))
    for name, leaf in params.items()
  }


@pytest.fixture(params=[(1, 1), (2, 2)])
def mesh(request):
  count = math.prod(request.param)
  if len(devices := jax.devices()[:count]) < count:
    pytest.skip(f"needs {count} devices")
  types = (AxisType.Auto,) * 2
  return jax.make_mesh(
    request.param, ("fsdp", "tensor"), types, devices=devices
  )


def test_a_sharded_delta_is_encoded_where_it_lies(codec, mesh):
  theta, x = tree(0), tree(1)
  layout = Layout.of(theta, NAMES)
  encoder = device_codec.DeltaEncoder(codec, layout, mesh)
  whole = np.empty(layout.blocks * codec.block_bytes, np.uint8)
  encoder.encode(on(mesh, theta), on(mesh, x), whole, 0)

  values = layout.flatten(theta) - layout.flatten(x)
  expected = np.empty_like(whole)
  codec.encode(values, expected)
  scales, codes = zip(
    *(parts(codec, c) for c in (whole, expected)), strict=True
  )
  np.testing.assert_allclose(*scales, rtol=3e-7)
  assert np.mean(codes[0] != codes[1]) < 0.01
  # A process's own bytes, cut inside of a tensor, are those of the whole.
  part = np.empty(2 * codec.block_bytes, np.uint8)
  at = codec.block_bytes
  encoder.encode(on(mesh, theta), on(mesh, x), part, at)
  np.testing.assert_array_equal(part, whole[at:][: len(part)])


def test_a_delta_that_is_not_finite_is_refused_by_index(mesh):
  codec, theta, x = make_codec("int8"), tree(0), tree(1)
  x["stacked"][1, 2, 3] = np.nan
  layout = Layout.of(theta, NAMES)
  encoder = device_codec.DeltaEncoder(codec, layout, mesh)
  out = np.empty(layout.blocks * codec.block_bytes, np.uint8)
  expected = next(t for t in layout.tensors if t.layer == 1).start + 2 * 28 + 3
  with pytest.raises(NotFiniteError) as raised:
    encoder.encode(on(mesh, theta), on(mesh, x), out, 0)
  assert raised.value.index == expected
