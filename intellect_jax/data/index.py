"""The global sample index: what each sample of an endless run is.

Every island holds the same text and computes the same function from index to
sample, so that the coordinator leases intervals of plain integers
(docs/protocol.md, section 7) and no island asks another for data.
"""

from collections.abc import Iterator, Sequence
import time

from absl import logging
import grain
import ml_collections
import numpy as np

from intellect_jax.data.conversations import DOCUMENTS
from intellect_jax.data.mixture import Mixture, apportion
from intellect_jax.data.packing import PackedSamples, Sample, WholeSamples
from intellect_jax.data.texts import Shipped, Text, open_texts
from intellect_jax.data.tokenizer import Tokenizer
from intellect_jax.errors import UserError

Interval = tuple[int, int]  # indices of samples, the second one exclusive

# One thread is enough, for the work holds the GIL; two batches ahead hide it.
PREFETCH = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


class GlobalIndex:
  """Random access to the samples of a run, shuffled anew in each epoch.

  Attributes:
    sources: names of the sources, as in `run.data.sources`.
    samples_per_epoch: of each source, samples until each has been seen once.
    tokens_per_epoch: of each source, tokens of its training text, each
      document's eos included.
    waited: seconds that readers of `batches` have waited for one.
    padding: places without a token, and
    places: all of them, in the batches that were read.
  """

  def __init__(
    self,
    data: ml_collections.ConfigDict,
    tokenizer: Tokenizer,
    island: ml_collections.ConfigDict | None = None,
  ):
    """Opens the sources; tokenizes the shipped text, which takes a second.

    Args:
      data: `run.data`, valid; its tokenizer field is not read.
      tokenizer: makes the tokens.
      island: `island.data`; None: nothing is read from this host's disk.

    Raises:
      UserError: as `open_texts`; or if all of a source is too long.
    """
    self._length = data.sequence_length
    self._workers = island.workers if island is not None else 0
    self._mixture = Mixture(data.stages, data.sequence_length)
    self._weights = data.stages[0][1]
    texts = open_texts(data, tokenizer, island)
    packed = [self._pack(text, "train") for text in texts]
    self._held_out = [self._pack(text, "held_out") for text in texts]
    self.sources = list(data.sources)
    self.tokens_per_epoch = [len(p.tokens) for p in packed]
    self.samples_per_epoch = [len(p) for p in packed]
    self._sources = [
      grain.MapDataset.source(p)
      .seed((data.seed + k) % 2**32)
      .shuffle()
      .repeat()
      for k, p in enumerate(packed)
    ]
    self.waited, self.padding, self.places = 0.0, 0, 0

  def _pack(self, text: Text, split: str) -> PackedSamples | WholeSamples:
    tokens = text.tokens(split)
    if isinstance(text, Shipped) or text.form == "text":
      return PackedSamples(tokens, self._length)
    together = DOCUMENTS[text.form]
    packed = WholeSamples(tokens, text.mask(split), self._length, together)
    if packed.too_long:
      logging.warning(
        "%d in the split %r of %s are longer than run.data.sequence_length=%d:"
        " %s.",
        packed.too_long,
        split,
        text.folder,
        self._length,
        "left out" if together > 1 else "their ends are cut off",
      )
    if not len(packed):
      raise UserError(
        f"None of the {packed.too_long} pairs in the split {split!r} of"
        f" {text.folder} is as short as run.data.sequence_length, which is"
        f" {self._length}. Make it longer."
      )
    return packed

  def __getitem__(self, index: int) -> Sample:
    """Returns the sample at a global index; see `PackedSamples`."""
    source, number = self._mixture[index]
    sample = self._sources[source][number]
    assert sample is not None  # only a filter leaves holes in a dataset
    return sample

  def source_of(self, index: int) -> str:
    """The name of the source that a sample is from."""
    return self.sources[self._mixture[index][0]]

  def batches(
    self,
    intervals: Sequence[Interval],
    batch_size: int,
    rows: Interval | None = None,
  ) -> Iterator[Sample]:
    """Returns the samples of `intervals`, in that order, as host batches.

    Grain's workers prepare the next batches meanwhile: `island.data.workers`
    processes, or a thread if that is 0. The batches are the same with any
    number. Workers end with the iterator, also with one that is closed or
    dropped before its end.

    Args:
      intervals: which samples; batches run on from one into the next.
      batch_size: samples in a batch.
      rows: which of each batch are wanted, as by a process that feeds only its
        own devices; None: all.

    Returns:
      An iterator of dicts as `PackedSamples` describes them, [rows, L].

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
    first, last = rows or (0, batch_size)
    leased = _Leased(self, intervals, batch_size, first, last)
    dataset = grain.MapDataset.source(leased).batch(last - first)
    dataset = dataset.to_iter_dataset(PREFETCH)
    if self._workers:
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=2)
      )
    return self._measured(dataset)

  def _measured(self, dataset: grain.IterDataset) -> Iterator[Sample]:
    iterator = iter(dataset)
    try:
      while True:
        began = time.monotonic()
        batch = next(iterator, None)
        self.waited += time.monotonic() - began
        if batch is None:
          return
        self.places += batch["segment_ids"].size
        self.padding += int(np.sum(batch["segment_ids"] == 0))
        yield batch
    finally:
      close = getattr(iterator, "close", None)
      if close is not None:
        close()

  def figures(self) -> dict[str, float]:
    """For the logs: waiting for batches so far, and what of them is padding."""
    return dict(
      data_wait_seconds=self.waited,
      padding_share=self.padding / max(1, self.places),
    )

  def held_out(self, sequences: int, batch_size: int) -> list[Sample]:
    """Returns samples of the held-out text as batches: always the same.

    Sources have as many as the first stage's weights give them, spread evenly
    over their held-out text, whatever the seed of the run. Of one that has
    fewer, they are all of it. The last batch is filled up with empty samples
    (segment ids and weights 0): all have one shape.
    """
    samples: list[Sample] = []
    for held_out, wanted in zip(
      self._held_out, apportion(self._weights, sequences), strict=True
    ):
      available = len(held_out)
      taken = min(int(wanted), available)
      samples += [held_out[i * available // taken] for i in range(taken)]
    first = self._held_out[0][0]
    empty = {name: np.zeros_like(x) for name, x in first.items()}
    samples += [empty] * (-len(samples) % batch_size)
    return [
      {
        name: np.stack([s[name] for s in samples[i : i + batch_size]])
        for name in empty
      }
      for i in range(0, len(samples), batch_size)
    ]


class _Leased:
  """Rows of the batches of intervals: their samples, numbered from 0."""

  def __init__(
    self,
    whole: GlobalIndex,
    intervals: Sequence[Interval],
    batch_size: int,
    first: int,
    last: int,
  ):
    """Of each batch, rows [first, last)."""
    self._whole = whole
    self._batch_size = batch_size
    self._first, self._rows = first, last - first
    self._starts = [start for start, _ in intervals]
    self._ends = np.cumsum([stop - start for start, stop in intervals])

  def __len__(self) -> int:
    return int(self._ends[-1]) // self._batch_size * self._rows

  def __getitem__(self, index: int) -> Sample:
    batch, row = divmod(index, self._rows)
    index = batch * self._batch_size + self._first + row
    k = int(np.searchsorted(self._ends, index, side="right"))
    before = int(self._ends[k - 1]) if k else 0
    return self._whole[self._starts[k] + index - before]
