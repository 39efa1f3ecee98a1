"""The canonical vector, cut into fragments."""

import itertools

import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.model import llama
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer.fragments import partition
from intellect_jax.outer.layout import Layout


def layout_of(**model):
  config = config_lib.base()
  small = dict(width=64, heads=4, kv_heads=4, head_dim=16, ffn=176)
  config.run.model.update(small | model)
  shapes = llama.LlamaConfig.of(config.run.model, config.island.model)
  params = llama.abstract_params(shapes)
  return Layout.of(params, tensor_names(params))


SHAPES = [
  dict(layers=12, vocab_size=512),
  dict(layers=9, vocab_size=20_000),  # embeddings outweigh layers
  dict(layers=8, vocab_size=512, tied_embeddings=True),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_each_value_is_in_one_fragment_and_fragments_are_alike(shape, count):
  layout = layout_of(**shape)
  fragments = partition(layout, count)
  assert fragments == partition(layout, count)
  covered = np.zeros(layout.blocks, int)
  for fragment in fragments:
    assert [t.start for t in fragment.tensors] == sorted(
      t.start for t in fragment.tensors
    )
    runs = fragment.runs
    assert sum(stop - start for start, stop in runs) == fragment.blocks > 0
    for (_, stop), (start, _) in itertools.pairwise(runs):
      assert stop < start, "neighbours are one run"
    for start, stop in runs:
      covered[start:stop] += 1
  assert (covered == 1).all()
  layer = sum(
    t.stop - t.start for t in layout.tensors if ".layers.0." in t.name
  )
  largest = max(layer, *(t.stop - t.start for t in layout.tensors))
  sizes = [fragment.size for fragment in fragments]
  assert max(sizes) - min(sizes) <= largest


def test_layers_are_taken_in_strides():
  layout = layout_of(layers=12, vocab_size=512)
  for fragment in partition(layout, 4):
    names = [t.name for t in fragment.tensors if "input_layernorm" in t.name]
    layers = [int(name.split(".")[2]) for name in names]
    assert layers[0] < 4 and layers[-1] >= 8
    assert max(b - a for a, b in itertools.pairwise([*layers, 12])) <= 5


def test_one_fragment_is_the_canonical_vector():
  layout = layout_of(layers=2, vocab_size=512)
  (whole,) = partition(layout, 1)
  assert whole.tensors == layout.tensors
  assert whole.runs == [(0, layout.blocks)]
  cut = layout.tensors[2].start + 1, layout.tensors[4].stop - 1
  tensors, origin = whole.overlapping(*cut)
  assert tensors == layout.overlapping(*cut)
  assert origin == layout.tensors[2].start


def test_tensors_of_a_stretch_of_a_fragments_vector():
  fragment = partition(layout_of(layers=4, vocab_size=512), 2)[1]
  sizes = [tensor.stop - tensor.start for tensor in fragment.tensors]
  starts = [0, *itertools.accumulate(sizes)]
  tensors, origin = fragment.overlapping(starts[1] + 1, starts[3])
  assert (tensors, origin) == (fragment.tensors[1:3], starts[1])
  assert fragment.overlapping(starts[2], starts[2]) == ((), 0)


def test_a_fragment_without_a_layer_is_refused():
  with pytest.raises(ValueError, match="fragments"):
    partition(layout_of(layers=2, vocab_size=512), 8)
