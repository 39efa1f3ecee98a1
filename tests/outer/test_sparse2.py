"""The sparse codec by its format, and what it must not lose."""

import numpy as np
import pytest

from intellect_jax.outer import schedule, traffic
from intellect_jax.outer.codec import make_codec

CODEC = make_codec("sparse2")
BLOCK, KEPT = 4096, 64
FINFO = np.finfo(np.float32)


def encode(values):
  out = np.empty(values.size // BLOCK * CODEC.block_bytes, np.uint8)
  CODEC.encode(values, out)
  return out


def decode(codes):
  out = np.empty(codes.size // CODEC.block_bytes * BLOCK, np.float32)
  CODEC.decode(codes, out)
  return out


def by_the_format(codes):
  """Decodes one block as the text of sparse_kernels.py has it."""
  out = np.zeros(BLOCK, np.float32)
  magnitudes = np.zeros(4, np.uint8), np.zeros(4, np.uint8)
  for i, magnitude in enumerate(magnitudes):
    magnitude[2:] = codes[80 + 2 * i : 82 + 2 * i]
  ones = np.flatnonzero(np.unpackbits(codes[:16], bitorder="little"))
  for item, (one, code) in enumerate(zip(ones, codes[16:80], strict=False)):
    magnitude = magnitudes[code >> 6 & 1].view("<f4")[0]
    out[(one - item) * 64 + code % 64] = -magnitude if code >> 7 else magnitude
  return out


def draws(blocks, seed=0):
  """Blocks of every kind that training has, and of kinds that it has not."""
  rng = np.random.default_rng(seed)
  size = blocks, BLOCK
  sparse = np.where(rng.random(size) < 0.005, rng.standard_normal(size), 0)
  bits = rng.integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
  steps = np.round(rng.standard_normal(size))  # many are equal
  kinds = [
    rng.standard_normal(size),
    rng.laplace(size=size) * 1e-3,
    rng.standard_t(1, size=size),
    10.0 ** rng.uniform(-30, 30, size) * rng.choice([-1, 1], size),
    np.where(np.isfinite(bits), bits, FINFO.max),
    sparse,
    steps,
    rng.standard_normal(size) * 1e-42,
  ]
  return np.concatenate(kinds, dtype=np.float32).ravel()


def test_a_block_of_4096_values_takes_84_bytes():
  """8 bits a place and sign and magnitude in one byte, but for the high bits."""
  assert (CODEC.block, CODEC.block_bytes) == (BLOCK, 16 + KEPT + 2 * 2)


def test_what_is_decoded_is_what_the_format_says():
  codes = encode(draws(2))
  for block, values in zip(
    codes.reshape(-1, CODEC.block_bytes),
    decode(codes).reshape(-1, BLOCK),
    strict=True,
  ):
    np.testing.assert_array_equal(by_the_format(block), values)


def test_what_is_left_out_is_what_remains_bit_for_bit():
  """r + decode(code) = a and r = a - decode(code), none of them rounded."""
  a = draws(4)
  decoded = decode(encode(a))
  with np.errstate(over="raise"):
    r = a - decoded
  np.testing.assert_array_equal(r + decoded, a)
  np.testing.assert_array_equal(r, a.astype(np.float64) - decoded)
  again = a.copy()  # as an island does it, without an array of decoded values
  CODEC.accumulate(again, encode(a), -1.0)
  np.testing.assert_array_equal(again, r)


def test_the_64_largest_of_each_block_are_kept_and_no_zero():
  a = draws(4)
  for x, y in zip(
    a.reshape(-1, BLOCK), decode(encode(a)).reshape(-1, BLOCK), strict=True
  ):
    kept = y != 0
    assert kept.sum() <= min(KEPT, np.count_nonzero(x))
    if kept.any():
      # The smaller ones may be too small for the magnitude that they share.
      assert abs(x[kept]).min() >= np.sort(abs(x))[-KEPT]
    np.testing.assert_array_equal(np.sign(x[kept]), np.sign(y[kept]))


def test_of_equal_values_the_first_are_kept():
  x = np.zeros(BLOCK, np.float32)
  x[10:200], x[3000] = -2, 5
  y = decode(encode(x))
  np.testing.assert_array_equal(np.flatnonzero(y), [*range(10, 73), 3000])
  assert (y[10], y[3000]) == (-2, 5)


@pytest.mark.parametrize("count", [1, 2, 63])
def test_fewer_values_than_64_leave_room(count):
  x = np.zeros(BLOCK, np.float32)
  x[-count:] = 3
  np.testing.assert_array_equal(decode(encode(x)), x)


@pytest.mark.parametrize(
  ("draw", "bar"),
  [
    (lambda rng, n: rng.standard_normal(n), 0.07),
    (lambda rng, n: rng.laplace(size=n), 0.125),
  ],
  ids=["normal", "laplace"],
)
def test_two_magnitudes_are_near_the_values_they_stand_for(draw, bar):
  x = draw(np.random.default_rng(0), 256 * BLOCK).astype(np.float32)
  y = decode(encode(x))
  kept = y != 0
  assert kept.sum() == 256 * KEPT
  assert np.linalg.norm((y - x)[kept]) <= bar * np.linalg.norm(x[kept])


def test_something_of_every_block_that_is_not_subnormal_is_sent():
  """So that error feedback comes to an end: what is left gets smaller."""
  a = draws(4)
  for _ in range(3):
    r = a - decode(encode(a))
    before, after = (
      np.abs(x.astype(np.float64)).reshape(-1, BLOCK).sum(axis=1)
      for x in (a, r)
    )
    normal = abs(a.reshape(-1, BLOCK)).max(axis=1) >= 64 * FINFO.tiny
    assert (after[normal] < before[normal]).all()
    a = r


def test_any_bytes_are_decoded_without_leaving_their_block():
  rng = np.random.default_rng(0)
  codes = rng.integers(0, 256, 50 * CODEC.block_bytes, np.uint8)
  codes[: CODEC.block_bytes] = 255
  whole = np.full(52 * BLOCK, 7, np.float32)
  CODEC.decode(codes, whole[BLOCK:-BLOCK])
  assert (whole[:BLOCK] == 7).all() and (whole[-BLOCK:] == 7).all()
  assert (
    np.count_nonzero(whole[BLOCK:-BLOCK].reshape(50, -1), 1) <= KEPT
  ).all()


@pytest.mark.parametrize(("islands", "least"), [(2, 14_000), (8, 3500)])
def test_the_payload_of_150m_parameters_falls_so_much(islands, least):
  values = 150_000_000
  coded = -(-values // BLOCK) * CODEC.block_bytes
  sent = traffic.coded_bytes_sent(islands, coded, shares=False)
  reduction = schedule.payload_reduction(islands, values, 100, sent)
  assert reduction >= least
  assert reduction == pytest.approx(
    2 / islands * 4 * 100 * BLOCK / 84, rel=1e-3
  )
