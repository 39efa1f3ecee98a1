import numpy as np
import pytest

from intellect_jax.errors import UserError
from intellect_jax.outer import codec as codec_lib
from intellect_jax.outer import kernels

FINFO = np.finfo(np.float32)


SCALED = ["int8", "int4", "e3m0"]
LARGEST = {"int8": 127, "int4": 7, "e3m0": 64}  # numbers, times the scale


@pytest.fixture(params=[*SCALED, "float32", "sparse2"])
def codec(request):
  return codec_lib.make_codec(request.param)


@pytest.fixture(params=SCALED)
def scaled(request):
  return codec_lib.make_codec(request.param)


@pytest.fixture(params=["int8", "int4"])
def linear(request):
  return codec_lib.make_codec(request.param)


@pytest.fixture
def e3m0():
  return codec_lib.make_codec("e3m0")


def encode(codec, values):
  out = np.empty(values.size // codec.block * codec.block_bytes, np.uint8)
  codec.encode(values, out)
  return out


def decode(codec, codes):
  out = np.empty(codes.size // codec.block_bytes * codec.block, np.float32)
  codec.decode(codes, out)
  return out


def numbers(codec, codes):
  """The scales [n] and what the codes stand for, int [n, 256], by the format."""
  blocks = codes.reshape(-1, codec.block_bytes)
  scales, codes = blocks[:, :4].copy().view("<f4")[:, 0], blocks[:, 4:]
  if codec.name == "int8":
    return scales, codes.view(np.int8).astype(int)
  nibbles = np.concatenate([codes & 15, codes >> 4], axis=1).astype(int)
  signed = np.where(nibbles < 8, nibbles, nibbles - 16)
  if codec.name == "int4":
    return scales, signed
  return scales, np.sign(signed) * 2 ** abs(signed) // 2


def normal(blocks, seed=0, block=256):
  rng = np.random.default_rng(seed)
  return rng.standard_normal(blocks * block, dtype=np.float32)


def extreme(blocks, seed, block=256):
  """Blocks of every magnitude, with zeros, subnormals and single giants."""
  rng = np.random.default_rng(seed)
  bits = rng.integers(0, 2**32, blocks * block, dtype=np.uint32)
  x = bits.view(np.float32).reshape(blocks, block)
  x[~np.isfinite(x)] = FINFO.max
  ceiling = np.float32(2.0) ** rng.integers(-149, 128, (blocks, 1))
  x[1::2] = np.clip(x, -ceiling, ceiling)[1::2]
  x[::5, 1:] = 0
  x[::7] *= np.float32(1e-30)
  return x.ravel()


@pytest.mark.parametrize(
  ("draw", "bars"),
  [
    (lambda rng, n: rng.standard_normal(n), (0.008, 0.13, 0.20)),
    (lambda rng, n: rng.laplace(size=n), (0.011, 0.18, 0.19)),
    (lambda rng, n: rng.standard_t(3, size=n), (0.020, 0.28, 0.175)),
  ],
  ids=["normal", "laplace", "student_t3"],
)
def test_the_relative_l2_error_stays_low(scaled, draw, bars):
  x = draw(np.random.default_rng(0), 4096 * 256).astype(np.float32)
  error = decode(scaled, encode(scaled, x)) - x
  bar = bars[SCALED.index(scaled.name)]
  assert np.linalg.norm(error) / np.linalg.norm(x) <= bar


@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_bounded_at_any_magnitude(scaled, seed):
  x = extreme(512, seed)
  codes = encode(scaled, x)
  y = decode(scaled, codes)
  assert np.isfinite(y).all()
  scale, _ = numbers(scaled, codes)
  bound = scale[:, None].astype(np.float64) / 2
  if scaled.name == "e3m0":
    bound = np.maximum(bound, np.abs(x.reshape(-1, 256)) / 3.0)
  # 1 / scale and two products round once each.
  slack = scale[:, None] * (2 * LARGEST[scaled.name] * FINFO.eps)
  error = np.abs(y.astype(np.float64) - x).reshape(-1, 256)
  assert (error <= bound + slack).all()
  assert not (y.reshape(-1, 256)[scale == 0]).any()


@pytest.mark.parametrize(
  "largest", [FINFO.max, FINFO.tiny, FINFO.smallest_subnormal, 1e-44, 1.0]
)
def test_one_huge_value_in_a_block_is_held(scaled, largest):
  x = np.zeros(256, np.float32)
  x[17] = -largest
  codes = encode(scaled, x)
  (scale,), _ = numbers(scaled, codes)
  y = decode(scaled, codes)
  assert abs(np.float64(y[17]) - x[17]) <= scale / 2
  assert not y[:17].any() and not y[18:].any()


def test_zero_blocks_have_scale_zero_and_come_back_as_zeros(codec):
  zeros = np.zeros(2 * codec.block, np.float32)
  codes = encode(codec, zeros)
  assert not codes.any()
  assert not decode(codec, codes).any()
  assert codec.squared_norm(codes) == 0


def test_half_is_rounded_to_even(linear):
  x = np.zeros(256, np.float32)
  top = LARGEST[linear.name]
  x[:6] = [top, 0.5, 1.5, 2.5, -0.5, -1.5]
  np.testing.assert_array_equal(
    decode(linear, encode(linear, x))[:6], [top, 0, 2, 2, 0, -2]
  )


def test_e3m0_takes_the_nearest_power_and_the_larger_of_two(e3m0):
  x = np.zeros(256, np.float32)
  x[:9] = [64, 0.49, 0.5, 0.7, -1.49, 1.5, -2.9, 47, -48]
  np.testing.assert_array_equal(
    decode(e3m0, encode(e3m0, x))[:9], [64, 0, 1, 1, -1, 2, -2, 32, -64]
  )


def test_no_number_of_e3m0_is_nearer(e3m0):
  x = normal(64)
  codes = encode(e3m0, x)
  scale, taken = numbers(e3m0, codes)
  powers = np.array([0, 1, 2, 4, 8, 16, 32, 64])
  every = np.concatenate([powers, -powers[1:]])
  r = x.reshape(-1, 256) / scale[:, None]
  nearest = np.abs(r[..., None] - every).min(axis=-1)
  assert set(np.unique(taken)) == set(every)
  np.testing.assert_allclose(np.abs(r - taken), nearest, atol=1e-4)


def test_a_tiny_block_beside_a_large_one_keeps_its_digits(scaled):
  """Scaling by a power of two changes scales alone."""
  x = normal(2)
  x[256:] = x[:256] * np.float32(2**-10)
  scale, number = numbers(scaled, encode(scaled, x))
  assert scale[1] == scale[0] / 2**10
  np.testing.assert_array_equal(number[0], number[1])


def test_float32_is_exact():
  x, codec = extreme(64, 0), codec_lib.make_codec("float32")
  y = decode(codec, encode(codec, x))
  np.testing.assert_array_equal(x.view(np.uint32), y.view(np.uint32))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 300, 1023])
def test_values_that_are_not_finite_are_refused_by_index(codec, bad, index):
  x = normal(4, 0, codec.block)
  x[index] = bad
  with pytest.raises(codec_lib.NotFiniteError, match=f"Value {index} ") as info:
    encode(codec, x)
  assert info.value.index == index


def test_any_range_of_blocks_is_coded_as_in_the_whole(codec):
  x = extreme(40, 1, codec.block)
  whole = encode(codec, x)
  total = np.zeros_like(x)
  codec.accumulate(total, whole, 0.3)
  for first, last in [(0, 1), (1, 17), (17, 40)]:
    values = slice(first * codec.block, last * codec.block)
    coded = slice(first * codec.block_bytes, last * codec.block_bytes)
    np.testing.assert_array_equal(encode(codec, x[values]), whole[coded])
    np.testing.assert_array_equal(
      decode(codec, whole[coded]), decode(codec, whole)[values]
    )
    part = np.zeros(x[values].size, np.float32)
    codec.accumulate(part, whole[coded], 0.3)
    np.testing.assert_array_equal(part, total[values])


def test_received_bytes_decode_wherever_they_lie_in_memory(codec):
  x = normal(3, 0, codec.block)
  codes = encode(codec, x)
  received = np.frombuffer(b"x" + codes.tobytes(), np.uint8)[1:]
  assert not received.flags.writeable
  np.testing.assert_array_equal(decode(codec, received), decode(codec, codes))
  total = np.zeros_like(x)
  codec.accumulate(total, received, 1.0)
  np.testing.assert_array_equal(total, decode(codec, codes))
  assert codec.squared_norm(received) == codec.squared_norm(codes)


def test_accumulate_rounds_as_numpy_float32_does(codec):
  """A contracted multiply-add would differ in the last bit here and there."""
  weights = [np.float32(w) for w in (0.1, 7e4, 1 / 3)]
  total = np.zeros(256 * codec.block, np.float32)
  expected = np.zeros_like(total)
  for seed, weight in enumerate(weights):
    codes = encode(codec, normal(256, seed, codec.block))
    codec.accumulate(total, codes, weight)
    if codec.name in SCALED:
      scale, number = numbers(codec, codes)
      decoded = scale[:, None] * number.astype(np.float32)
      np.testing.assert_array_equal(decode(codec, codes), decoded.ravel())
    expected = expected + weight * decode(codec, codes)
  np.testing.assert_array_equal(total, expected)


def test_two_halves_of_a_worker_weigh_as_much_as_the_whole(codec):
  """Weights are tokens: splitting an island in two changes no mean."""
  a, b = (encode(codec, normal(8, seed, codec.block)) for seed in (0, 1))

  def mean(codes, tokens):
    total = np.zeros(8 * codec.block, np.float32)
    for code, weight in zip(codes, tokens, strict=True):
      codec.accumulate(total, code, weight)
    return total / np.float32(sum(tokens))

  np.testing.assert_allclose(
    mean([a, b, b], [3000, 1000, 1000]),
    mean([a, b], [3000, 2000]),
    rtol=1e-5,
    atol=1e-6,
  )


def test_squared_norm_is_that_of_the_decoded_values(codec):
  codes = encode(codec, normal(100, 0, codec.block))
  exact = np.square(decode(codec, codes).astype(np.float64)).sum()
  assert codec.squared_norm(codes) == pytest.approx(exact, rel=1e-6)


def test_squared_norm_is_exact_in_each_block(scaled):
  codes = encode(scaled, normal(1))
  (scale,), number = numbers(scaled, codes)
  assert scaled.squared_norm(codes) == float(scale) ** 2 * (number**2).sum()


def test_a_wrong_length_or_type_is_refused(codec):
  size = codec.block_bytes
  with pytest.raises(AssertionError):
    codec.encode(normal(2, 0, codec.block), np.empty(size, np.uint8))
  with pytest.raises(AssertionError):
    codec.encode(normal(1, 0, codec.block)[:-1], np.empty(size, np.uint8))
  with pytest.raises(AssertionError):
    encode(codec, normal(1, 0, codec.block).astype(np.float64))


def test_compile_all_leaves_nothing_to_compile(codec):
  kernels.compile_all()
  codes = encode(codec, normal(2, 0, codec.block))
  compiled = [len(kernel.signatures) for kernel in kernels._SIGNATURES]
  total = decode(codec, np.frombuffer(codes.tobytes(), np.uint8))
  codec.accumulate(total, codes, 1)
  codec.squared_norm(codes)
  assert compiled == [len(kernel.signatures) for kernel in kernels._SIGNATURES]


def test_an_unknown_codec_names_the_setting_and_the_choices():
  with pytest.raises(UserError, match=r"run\.outer\.codec is 'int7'.*int8"):
    codec_lib.make_codec("int7")
