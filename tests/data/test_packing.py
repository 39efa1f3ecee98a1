import numpy as np
import pytest

from intellect_jax.data.packing import PackedSamples
from intellect_jax.data.shards import Tokens

LENGTH = 16


def pack(lengths, length=LENGTH):
  """Samples of documents whose tokens are all different: 100, 101, …"""
  ends = np.cumsum(lengths)
  return PackedSamples(Tokens.of(100 + np.arange(ends[-1]), ends), length)


@pytest.fixture(params=[0, 1, 2])
def lengths(request):
  return np.random.default_rng(request.param).integers(1, 40, size=50)


def test_each_token_is_a_target_once_but_for_the_first_of_a_document(lengths):
  samples = pack(lengths)
  targets = np.concatenate([s["targets"][s["weights"] > 0] for s in samples])
  starts = 100 + np.cumsum(lengths) - lengths
  everything = np.arange(100, 100 + lengths.sum())
  np.testing.assert_array_equal(targets, np.setdiff1d(everything, starts))


def test_a_target_is_the_successor_and_of_the_same_document(lengths):
  document_of = np.repeat(np.arange(len(lengths)), lengths)
  for sample in pack(lengths):
    weighted = sample["weights"] > 0
    tokens, targets = sample["tokens"][weighted], sample["targets"][weighted]
    np.testing.assert_array_equal(targets, tokens + 1)
    np.testing.assert_array_equal(
      document_of[targets - 100], document_of[tokens - 100]
    )


def test_segments_are_documents_and_positions_restart_in_each(lengths):
  document_of = np.repeat(np.arange(len(lengths)), lengths)
  for sample in pack(lengths):
    is_input = sample["segment_ids"] > 0
    documents = document_of[sample["tokens"][is_input] - 100]
    segment_ids = sample["segment_ids"][is_input]
    positions = sample["positions"][is_input]
    # Segment k is the k-th document of the sample.
    np.testing.assert_array_equal(segment_ids, documents - documents[0] + 1)
    first = np.diff(documents, prepend=-1) > 0
    np.testing.assert_array_equal(positions == 0, first)
    assert np.all(np.diff(positions)[~first[1:]] == 1)


def test_a_tail_goes_on_in_the_next_sample():
  first, second = pack([LENGTH + 4, 5])
  assert np.all(first["segment_ids"] == 1) and np.all(first["weights"] == 1)
  assert second["tokens"][0] == first["targets"][-1]
  np.testing.assert_array_equal(
    second["segment_ids"], [1] * 4 + [2] * 4 + [0] * 8
  )
  np.testing.assert_array_equal(second["positions"], [0, 1, 2, 3] * 2 + [0] * 8)
  np.testing.assert_array_equal(
    second["weights"], [1, 1, 1, 0] + [1] * 4 + [0] * 8
  )


def test_only_the_last_sample_is_padded(lengths):
  *whole, last = pack(lengths)
  assert all(np.all(s["segment_ids"] > 0) for s in whole)
  padding = last["segment_ids"] == 0
  assert np.all(np.diff(padding.astype(int)) >= 0) and not padding[0]
  for name in ("tokens", "positions", "weights"):
    assert not last[name][padding].any()


@pytest.mark.parametrize("tokens", [2, LENGTH, LENGTH + 1, LENGTH + 2])
def test_no_sample_is_without_an_input(tokens):
  samples = pack([tokens])
  assert len(samples) == (2 if tokens == LENGTH + 2 else 1)
  assert all(s["segment_ids"][0] == 1 for s in samples)


def test_shapes_and_dtypes():
  for name, x in pack([7, 30], 8)[1].items():
    assert x.shape == (8,)
    assert x.dtype == (np.float32 if name == "weights" else np.int32)


def test_document_ends_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="10 tokens"):
    Tokens.of(np.arange(10), np.array([4, 9]))


@pytest.mark.parametrize("cuts", [[7], [3, 20, 21], range(5, 45, 5)])
def test_shards_make_no_difference(lengths, cuts):
  """Samples run on from one shard into the next."""
  ends = np.cumsum(lengths)
  tokens = 100 + np.arange(ends[-1])
  groups = np.split(np.arange(len(lengths)), cuts)
  shards = []
  for group in groups:
    start = ends[group[0]] - lengths[group[0]]
    shards.append((tokens[start : ends[group[-1]]], ends[group] - start))
  sharded = Tokens([len(t) for t, _ in shards], shards.__getitem__)
  ours, whole = PackedSamples(sharded, LENGTH), pack(lengths)
  assert len(ours) == len(whole)
  for i in range(len(whole)):
    for name, x in whole[i].items():
      np.testing.assert_array_equal(ours[i][name], x)
