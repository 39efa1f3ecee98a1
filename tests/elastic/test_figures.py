"""Figures of outer steps, against what numpy says of the same values."""

import numpy as np
import pytest

from intellect_jax.elastic import figures
from intellect_jax.elastic.means import Mean
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.state import OuterState
from intellect_jax.outer.codec import make_codec

SIZE = 5000 * 256  # more than one piece, not a multiple of it
MU = 0.9


def cosine(a, b):
  return np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)


def record(number: int, scale: float) -> pb.Record:
  step = pb.OuterStep(learning_rate=0.7, momentum=MU, scale=scale)
  return pb.Record(number=number, step=step)


def steps_of(codec, count: int):
  """Encoded means with something in common, and their values in float64."""
  rng = np.random.default_rng(0)
  common, values = rng.standard_normal(SIZE), np.empty(SIZE, np.float32)
  for _ in range(count):
    mean = (common + rng.standard_normal(SIZE)).astype(np.float32)
    codes = np.empty(SIZE // codec.block * codec.block_bytes, np.uint8)
    codec.encode(mean, codes)
    codec.decode(codes, values)
    yield codes, values.astype(np.float64)


@pytest.mark.parametrize("name", ["int8", "float32"])
def test_gain_and_cosine_are_those_of_the_values(name):
  codec, state = make_codec(name), OuterState(SIZE)
  before, values_before = None, None
  b = np.zeros(SIZE)
  for n, (codes, values) in enumerate(steps_of(codec, 4)):
    scale = 1 + n / 2
    applied = record(n + 1, scale)
    d = scale * values
    expected = 1 + MU + MU**2 * np.dot(b, d) / np.dot(d, d)  # b before
    b = MU * b + d
    state.apply(applied, codes, codec)
    mean = Mean(applied.step, codes, codec)
    found = figures.direction(state, applied, mean, before, codec)
    assert found is not None
    assert found.gain == pytest.approx(expected, rel=1e-5)
    if before is None:
      assert found == (pytest.approx(1 + MU, rel=1e-6), None)
    else:
      expected = cosine(values, values_before)
      assert found.delta_cosine == pytest.approx(expected, rel=1e-9)
      assert found.delta_cosine == pytest.approx(0.5, abs=0.01)
    before, values_before = mean, values


def test_nothing_is_said_of_a_step_that_is_past_or_that_went_nowhere():
  codec, state = make_codec("int8"), OuterState(256)
  codes = np.zeros(codec.block_bytes, np.uint8)
  mean = Mean(pb.OuterStep(), codes, codec)
  state.apply(record(1, 1.0), codes, codec)
  assert figures.direction(state, record(1, 1.0), mean, None, codec) is None
  codec.encode(np.ones(256, np.float32), codes)
  state.apply(record(2, 1.0), codes, codec)
  assert figures.direction(state, record(2, 1.0), mean, None, codec)
  state.advance(3)
  assert figures.direction(state, record(2, 1.0), mean, None, codec) is None


def test_a_record_has_the_figures_that_follow_from_it():
  step = pb.OuterStep(learning_rate=0.5, momentum=0.25, scale=1.5, mean_norm=2)
  step.members.add(weight=10, clip=1, norm=3)
  step.members.add(weight=10, clip=0.75, norm=4)  # both of norm 3, as merged
  assert figures.of_step(step) == dict(
    outer_learning_rate=0.5,
    outer_momentum=0.25,
    delta_norm=3.0,
    island_cosine=pytest.approx((4 * 2**2 - 2 * 3**2) / (2 * 3**2)),
  )
  old = pb.OuterStep(learning_rate=0.5, momentum=0.25)  # without norms
  old.members.add(weight=10, clip=1)
  assert set(figures.of_step(old)) == {"outer_learning_rate", "outer_momentum"}
