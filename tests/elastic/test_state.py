"""Theta and b: moved by records alone, to the same bits everywhere."""

import numpy as np
import pytest

from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.state import OuterState, pieces
from intellect_jax.outer import nesterov
from intellect_jax.outer.codec import make_codec

SIZE = 5000 * 256  # more than one piece, not a multiple of it


def encoded(codec, values):
  codes = np.empty(len(values) // codec.block * codec.block_bytes, np.uint8)
  codec.encode(values, codes)
  return codes


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.6])
@pytest.mark.parametrize("name", ["int8", "int4", "float32"])
def test_apply_is_nesterov_on_the_decoded_mean(name, scale):
  """A record of before there was a scale has none, which stands for 1."""
  codec, rng = make_codec(name), np.random.default_rng(0)
  theta = rng.standard_normal(SIZE).astype(np.float32)
  momentum = rng.standard_normal(SIZE).astype(np.float32)
  mean = encoded(codec, rng.standard_normal(SIZE).astype(np.float32))
  state = OuterState(SIZE)
  state.replace(np.concatenate([theta, momentum]), 6)
  step = pb.OuterStep(learning_rate=0.7, momentum=0.9, codec=name, scale=scale)
  state.apply(pb.Record(number=7, step=step), mean, codec)

  decoded = np.empty(SIZE, np.float32)
  codec.decode(mean, decoded)
  nesterov.apply(
    theta,
    momentum,
    decoded if scale in (0, 1) else np.float32(scale) * decoded,
    step.learning_rate,
    step.momentum,
  )
  np.testing.assert_array_equal(state.theta, theta)
  np.testing.assert_array_equal(state.momentum, momentum)
  assert state.record == 7


def test_the_hash_is_of_every_bit_of_theta_and_b():
  state = OuterState(512)
  zero = state.manifest()[1].id
  state.momentum[-1] = -0.0
  negative_zero = state.manifest()[1].id
  state.theta[0] = np.float32(1e-45)
  assert len({zero, negative_zero, state.manifest()[1].id}) == 3


def test_a_piece_of_b_is_copied_only_while_it_stands():
  state = OuterState(512)
  state.momentum[:256] = 1
  piece = np.full(256, 2, np.float32)
  assert state.read_momentum(0, slice(0, 256), piece)
  assert (piece == 1).all()
  state.advance(1)
  assert not state.read_momentum(0, slice(256, 512), piece)
  assert (piece == 1).all()


@pytest.mark.parametrize("size", [256, 512 * 256, SIZE])
def test_pieces_tile_values_and_codes(size):
  codec = make_codec("int8")
  values, codes = zip(*pieces([(0, size // 256)], codec), strict=True)
  for tiles, end in ((values, size), (codes, size // 256 * 260)):
    edges = [0, *(piece.stop for piece in tiles)]
    assert [piece.start for piece in tiles] == edges[:-1]
    assert edges[-1] == end


def test_a_step_of_a_fragment_moves_its_runs_and_nothing_else():
  codec, rng = make_codec("int8"), np.random.default_rng(0)
  runs = [(1, 3), (700, 2000)]  # one longer than a piece
  index = np.r_[256:768, 700 * 256 : 2000 * 256]
  both = rng.standard_normal(2 * SIZE).astype(np.float32)
  mean = encoded(codec, both[: len(index)])
  part = OuterState(len(index))
  part.replace(np.concatenate([both[index], both[SIZE + index]]), 0)
  whole = OuterState(SIZE)
  whole.replace(both, 0)
  places = [(start * 256, stop * 256) for start, stop in runs]
  assert whole.fragment_hash(places) == part.manifest()[1].id
  step = pb.OuterStep(learning_rate=0.5, momentum=0.9)
  part.apply(pb.Record(number=1, step=step), mean, codec)
  for start, stop in runs:
    step.blocks.add(start=start, stop=stop)
  whole.apply(pb.Record(number=1, step=step), mean, codec)
  assert whole.fragment_hash(places) == part.manifest()[1].id
  still = np.delete(np.arange(SIZE), index)
  np.testing.assert_array_equal(whole.theta[still], both[still])
  np.testing.assert_array_equal(whole.momentum[still], both[SIZE + still])
  assert whole.fragment_hash([(0, SIZE)]) == whole.manifest()[1].id


def test_a_snapshot_stays_as_it_was():
  state = OuterState(512)
  state.theta[:] = 1
  record, manifest, data = state.snapshot()
  assert manifest.id == state.manifest()[1].id
  state.theta[:] = 2
  state.advance(1)
  both = data.view(np.float32)
  assert (record, both[0], both[-1]) == (0, 1.0, 0.0)
  again = OuterState(512)
  again.replace(both, record)
  assert again.manifest() == (0, manifest)
