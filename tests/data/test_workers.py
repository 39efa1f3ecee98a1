"""Batches are the same whoever makes them, and go on wherever they stopped."""

from absl import flags
import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.elastic.samples import subtract, take

LEASE = [(3, 35), (100, 116), (50, 66)]  # as a pool hands them out, and not
BATCH = 8


def make_index(workers, length=64):
  config = config_lib.base()
  config.run.data.update(tokenizer="byte", sequence_length=length)
  config.island.data.update(workers=workers)
  return GlobalIndex(
    config.run.data, make_tokenizer("byte"), config.island.data
  )


@pytest.fixture(scope="module")
def here():
  return make_index(workers=0)


def rest(steps):
  """What is left of the lease after some steps: all there is to remember."""
  left, used = [], take(LEASE, steps * BATCH)
  for interval in LEASE:
    left += subtract([interval], used)
  return left


def test_stopped_anywhere_it_goes_on_with_the_same_sequence(here):
  whole = [batch["tokens"] for batch in here.batches(LEASE, BATCH)]
  assert len(whole) == 8
  for steps in range(9):
    after = [b["tokens"] for b in here.batches(rest(steps), BATCH)]
    np.testing.assert_array_equal(after or whole[8:], whole[steps:])


def test_processes_make_the_batches_that_a_thread_makes(here):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain's processes look at them
  whole = list(here.batches(LEASE, BATCH))
  stopped = make_index(workers=2).batches(LEASE, BATCH)
  first = [next(stopped) for _ in range(3)]
  stopped.close()
  others = list(here.batches(rest(3), BATCH))
  for ours, theirs in zip(whole, first + others, strict=True):
    for name, x in ours.items():
      np.testing.assert_array_equal(x, theirs[name])


def test_waiting_and_padding_are_counted():
  index = make_index(workers=0, length=4096)
  places = 4096 * index.samples_per_epoch[0]
  for _ in index.batches([(0, index.samples_per_epoch[0])], 1):
    pass
  figures = index.figures()
  assert figures["data_wait_seconds"] > 0
  padding = places - (index.tokens_per_epoch[0] - 1)
  assert figures["padding_share"] == pytest.approx(padding / places)
  assert padding > 0
