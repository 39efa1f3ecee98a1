"""The global sample index: what each sample of an endless run is.

Every island holds the same text and computes the same function from index to
sample, so that the coordinator leases intervals of plain integers
(docs/protocol.md, section 7) and no island asks another for data.
"""

from collections.abc import Iterator, Sequence

import grain
import ml_collections
import numpy as np

from intellect_jax.data import sources
from intellect_jax.data.packing import PackedSamples, Sample
from intellect_jax.data.tokenizer import Tokenizer
from intellect_jax.errors import UserError

Interval = tuple[int, int]  # indices of samples, the second one exclusive

# One thread is enough, for the work holds the GIL; two batches ahead hide it.
PREFETCH = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


class GlobalIndex:
  """Random access to the samples of a run, shuffled anew in each epoch.

  Attributes:
    samples_per_epoch: samples until each has been seen once.
    tokens_per_epoch: tokens of the training text, each document's eos included.
  """

  def __init__(self, data: ml_collections.ConfigDict, tokenizer: Tokenizer):
    """Tokenizes the whole source; takes a second for what ships.

    Args:
      data: `run.data`; its tokenizer field is not read.
      tokenizer: makes the tokens.

    Raises:
      UserError: if there is no such source, the seed is out of range, or the
        split leaves no document on one of its sides.
    """
    if not 0 <= data.seed < 2**32:
      raise UserError(
        f"run.data.seed is {data.seed}, but must be from 0 to 2^32 - 1. Change"
        " it in the config file or with --config.run.data.seed=…"
      )
    training, held_out = [], []
    for document in sources.documents(data.source):
      is_held_out = sources.is_held_out(document, data.held_out)
      (held_out if is_held_out else training).append(document)
    if not training or not held_out:
      raise UserError(
        f"run.data.held_out is {data.held_out}, which leaves {len(training)}"
        f" documents for training and {len(held_out)} for evaluation; both"
        " need some. Change it in the config file or with"
        " --config.run.data.held_out=0.05."
      )
    packed = _pack(training, tokenizer, data.sequence_length)
    self.tokens_per_epoch = len(packed.tokens)
    self.samples_per_epoch = len(packed)
    self._samples = (
      grain.MapDataset.source(packed).seed(data.seed).shuffle().repeat()
    )
    self._held_out = _pack(held_out, tokenizer, data.sequence_length)

  def __getitem__(self, index: int) -> Sample:
    """Returns the sample at a global index; see `PackedSamples`."""
    sample = self._samples[index]
    assert sample is not None  # only a filter leaves holes in a dataset
    return sample

  def batches(
    self, intervals: Sequence[Interval], batch_size: int
  ) -> Iterator[Sample]:
    """Returns the samples of `intervals`, in that order, as host batches.

    A thread prepares the next batches meanwhile. It ends with the iterator,
    also with one that is closed or dropped before its end.

    Args:
      intervals: which samples; batches run on from one into the next.
      batch_size: samples in a batch.

    Returns:
      An iterator of dicts as `PackedSamples` describes them, [batch_size, L].

    Raises:
      ValueError: if an interval has no beginning or end among the indices, or
        together they are no whole number of batches: none is padded or lost.
    """
    if not all(0 <= start <= stop for start, stop in intervals):
      raise ValueError(f"not intervals of sample indices: {intervals}")
    samples = sum(stop - start for start, stop in intervals)
    if samples % batch_size:
      raise ValueError(
        f"{samples} samples in {intervals} are no multiple of {batch_size}"
      )
    if not samples:
      return iter(())
    leased = grain.MapDataset.concatenate(
      [self._samples[start:stop] for start, stop in intervals if start < stop]
    )
    return _prefetched(leased.batch(batch_size))

  def held_out(self, sequences: int, batch_size: int) -> list[Sample]:
    """Returns samples of the held-out text as batches: always the same.

    They are spread evenly over that text, whatever the seed of the run. If it
    has fewer than `sequences`, they are all of it. The last batch is filled up
    with empty samples (segment ids and weights 0): all have one shape.
    """
    available = len(self._held_out)
    taken = min(sequences, available)
    samples = [self._held_out[i * available // taken] for i in range(taken)]
    empty = {name: np.zeros_like(x) for name, x in self._held_out[0].items()}
    samples += [empty] * (-taken % batch_size)
    return [
      {
        name: np.stack([s[name] for s in samples[i : i + batch_size]])
        for name in empty
      }
      for i in range(0, len(samples), batch_size)
    ]


def _pack(
  documents: list[str], tokenizer: Tokenizer, sequence_length: int
) -> PackedSamples:
  tokens = [
    np.append(tokenizer.encode(d), np.int32(tokenizer.eos)) for d in documents
  ]
  ends = np.cumsum([len(t) for t in tokens])
  return PackedSamples(np.concatenate(tokens), ends, sequence_length)


def _prefetched(dataset: grain.MapDataset) -> Iterator[Sample]:
  iterator = iter(dataset.to_iter_dataset(PREFETCH))
  try:
    yield from iterator
  finally:
    iterator.close()
