"""Documents end to end, cut into samples of one length."""

import numpy as np

from intellect_jax.data.shards import Tokens

Sample = dict[str, np.ndarray]


class PackedSamples:
  """Random access to the packed samples of a tokenized text.

  The documents stand one after the other; sample i has tokens i L to i L + L
  as input and their successors as targets. So a document's tail goes on in the
  next sample, nothing is thrown away, and every token is a target in exactly
  one sample, apart from the first of each document: it would be predicted from
  another document and has weight 0. The last sample is padded.

  A sample reads only its own tokens, wherever they are.
  """

  def __init__(self, tokens: Tokens, sequence_length: int):
    """Reads nothing yet.

    Args:
      tokens: all documents, each with its eos; more than one token.
      sequence_length: L, tokens in a sample.
    """
    if len(tokens) < 2:
      raise ValueError(f"{len(tokens)} tokens, but a sample takes 2 at least")
    self.tokens = tokens
    self._length = sequence_length

  def __len__(self) -> int:
    # The very last token has no successor, so it needs no place as an input.
    return -(-(len(self.tokens) - 1) // self._length)

  def __getitem__(self, index: int) -> Sample:
    """Returns one sample; of O(L + log documents) work.

    Every array is [L]: `tokens`, `targets`, `segment_ids` (the documents of
    the sample, from 1; 0 is padding) and `positions` (from 0 at the first
    token of the document in this sample) are int32, `weights` are float32: 1
    where the target is of the same document, else 0.
    """
    if not 0 <= index < len(self):
      raise IndexError(f"sample {index} of {len(self)}")
    length = self._length
    start = index * length
    stop = min(start + length + 1, len(self.tokens))
    window = np.zeros(length + 1, np.int32)
    window[: stop - start] = self.tokens.read(start, stop)

    # Documents that begin after the first token of the window, up to its end.
    begins = np.zeros(length + 1, bool)
    begins[self.tokens.ends(start, stop) - start] = True

    offsets = np.arange(length, dtype=np.int32)
    is_input = offsets < stop - start - 1
    origins = np.maximum.accumulate(np.where(begins[:-1], offsets, 0))
    segment_ids = 1 + np.cumsum(begins[:-1], dtype=np.int32)
    return {
      "tokens": np.where(is_input, window[:-1], 0),
      "targets": window[1:],
      "segment_ids": np.where(is_input, segment_ids, 0),
      "positions": np.where(is_input, offsets - origins, 0),
      "weights": (is_input & ~begins[1:]).astype(np.float32),
    }
