import hashlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from intellect_jax import config
from intellect_jax.data import sources
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.errors import UserError

TOKENIZER = make_tokenizer("bpe:2048")


def make_index(**fields):
  data = config.base().run.data
  data.update(sequence_length=256, **fields)
  return GlobalIndex(data, TOKENIZER)


@pytest.fixture(scope="module")
def index():
  return make_index()


def rows(batches):
  """All samples of the batches, as hashable rows of tokens."""
  return [row.tobytes() for b in batches for row in b["tokens"]]


def prefetch_threads():
  return [t for t in threading.enumerate() if "grain-prefetch" in t.name]


def assert_no_prefetch_threads():
  for thread in prefetch_threads():
    thread.join(timeout=10)
  assert not prefetch_threads()


def test_an_epoch_has_each_sample_once_and_the_next_another_order(index):
  n = index.samples_per_epoch[0]
  first = [index[i]["tokens"].tobytes() for i in range(n)]
  second = [index[i]["tokens"].tobytes() for i in range(n, 2 * n)]
  assert len(set(first)) == n
  assert set(first) == set(second)
  same_place = sum(a == b for a, b in zip(first, second, strict=True))
  assert same_place < n / 100
  assert n == -(-(index.tokens_per_epoch[0] - 1) // 256)


def test_the_index_is_the_same_in_two_objects_and_at_any_distance(index):
  other = make_index()
  for i in (0, 1, 12_345, 10**12):
    for name, x in index[i].items():
      np.testing.assert_array_equal(x, other[i][name])


def test_the_index_is_the_same_in_all_versions(index):
  """Islands with different libraries must not differ in what a sample is."""
  sample = b"".join(x.tobytes() for x in index[12_345].values())
  assert hashlib.sha256(sample).hexdigest()[:16] == "7d0c584d98803691", (
    "Sample 12345 of the global index has changed. If that is meant (another"
    " text, shuffle or packing), put the new digest here; runs that are under"
    " way cannot go on with this version."
  )


def test_any_split_into_intervals_gives_the_same_samples(index):
  whole = rows(index.batches([(100, 196)], 8))
  assert whole == [index[i]["tokens"].tobytes() for i in range(100, 196)]
  parts = [(100, 101), (101, 101), (101, 150), (150, 196)]
  assert rows(index.batches(parts, 8)) == whole
  assert rows(index.batches(parts, 32)) == whole
  reordered = rows(index.batches([(148, 196), (100, 148)], 8))
  assert reordered == whole[48:] + whole[:48]


def test_disjoint_intervals_of_an_epoch_have_disjoint_samples(index):
  n = index.samples_per_epoch[0]
  ours = rows(index.batches([(0, 64), (200, 264)], 16))
  theirs = rows(index.batches([(64, 200), (n - 24, n)], 16))
  assert not set(ours) & set(theirs)


def test_an_interval_may_run_on_into_the_next_epoch(index):
  n = index.samples_per_epoch[0]
  around = rows(index.batches([(n - 4, n + 4)], 4))
  assert around == [index[i]["tokens"].tobytes() for i in range(n - 4, n + 4)]


def test_the_seed_makes_another_order(index):
  ours = rows(index.batches([(0, 64)], 64))
  theirs = rows(make_index(seed=1).batches([(0, 64)], 64))
  assert len(set(ours) & set(theirs)) < 16


def test_batches_have_one_shape(index):
  for batch in index.batches([(0, 12)], 4):
    for name, x in batch.items():
      assert x.shape == (4, 256)
      assert x.dtype == (np.float32 if name == "weights" else np.int32)


def test_intervals_that_cannot_be_are_refused(index):
  for intervals in ([(0, 7)], [(-4, 4)], [(8, 4)]):
    with pytest.raises(ValueError, match=r"interval|multiple"):
      index.batches(intervals, 4)
  assert list(index.batches([], 4)) == []


def test_held_out_documents_are_never_trained_on(index):
  documents = sources.documents()
  trained, evaluated = set(), set()
  held_out = index.held_out(10**6, 1)
  for seen, samples in (
    (trained, (index[i] for i in range(index.samples_per_epoch[0]))),
    (evaluated, ({k: x[0] for k, x in b.items()} for b in held_out)),
  ):
    for sample in samples:
      for segment in range(2, sample["segment_ids"].max() + 1):
        tokens = sample["tokens"][sample["segment_ids"] == segment]
        seen.add(TOKENIZER.decode(tokens)[:80])
  for document in documents:
    is_held_out = sources.is_held_out(document.encode(), 0.05)
    assert document[:80] not in (trained if is_held_out else evaluated)
  assert len(evaluated) > 10


def test_held_out_batches_are_fixed_and_of_one_shape(index):
  batches = index.held_out(10, 4)
  other = make_index(seed=7).held_out(10, 4)
  assert rows(batches) == rows(other)
  assert [b["tokens"].shape for b in batches] == [(4, 256)] * 3
  assert not batches[-1]["weights"][2:].any()
  assert not batches[-1]["segment_ids"][2:].any()
  assert all(b["weights"][:2].any() for b in batches)
  assert len(set(rows(batches))) == 10 + 1  # and the empty one
  assert index.held_out(0, 4) == []


def test_iterators_leave_no_thread_behind(index):
  abandoned = index.batches([(0, 4096)], 8)
  next(abandoned)
  assert prefetch_threads()
  del abandoned
  assert_no_prefetch_threads()
  closed = index.batches([(0, 4096)], 8)
  next(closed)
  closed.close()
  assert_no_prefetch_threads()
  assert len(list(index.batches([(0, 64)], 8))) == 8
  assert_no_prefetch_threads()


def test_a_bare_process_can_read_and_leave_in_the_middle():
  """No absl flags parsed, an iterator open at exit: no error, no hang."""
  program = """
from intellect_jax import config
from intellect_jax.data import index, tokenizer
data = config.base().run.data
batches = index.GlobalIndex(data, tokenizer.make_tokenizer("byte")).batches(
    [(0, 10**9)], 8)
next(batches)
print(next(batches)["tokens"].shape)
"""
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
  assert done.stdout.strip() == "(8, 1024)"


def test_a_split_that_leaves_nothing_is_explained():
  with pytest.raises(UserError, match=r"run\.data\.held_out is 1e-09"):
    make_index(held_out=1e-9)
