"""Documents to samples of one length: end to end and cut, or whole."""

import bisect
import collections

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


class WholeSamples:
  """Random access to samples of conversations, none of which is cut in two.

  What an assistant says depends on all that was said before. So conversations
  are packed whole, largest first, each where it fits best (arXiv 2404.10830),
  and the rest of a sample is padding. Documents that belong together, chosen
  and rejected, lie side by side in one sample: their segment ids are odd and
  even.

  A conversation that is longer than a sample loses its end; a pair would lose
  what it is about, and is left out.

  Attributes:
    too_long: how many are cut, or left out.
  """

  def __init__(
    self,
    tokens: Tokens,
    mask: Tokens,
    sequence_length: int,
    together: int = 1,
  ):
    """Packs; reads only where documents end.

    Args:
      tokens: all documents.
      mask: for each of their tokens, 1 if it is trained on, or 0.
      sequence_length: L, tokens in a sample.
      together: documents of a unit: 1, or 2 of a pair.
    """
    self.tokens, self._mask = tokens, mask
    self._length = sequence_length
    size = len(tokens)
    stops = np.append(tokens.ends(0, size), size) if size else np.empty(0, int)
    self._starts = np.concatenate([[0], stops[:-1]])
    # The last token of a document has no successor, and needs no place.
    places = (stops - self._starts - 1).reshape(-1, together)
    sizes = places.sum(axis=1)
    fits = sizes <= sequence_length
    self.too_long = int(np.sum(~fits))
    if together == 1:
      places = np.minimum(places, sequence_length)
      sizes, fits = places[:, 0], np.ones(len(places), bool)
    self._places = places.reshape(-1)
    units = np.flatnonzero(fits)
    self._samples = [
      [
        d
        for unit in units[packed]
        for d in range(unit * together, (unit + 1) * together)
      ]
      for packed in best_fit(sizes[units], sequence_length)
    ]

  def __len__(self) -> int:
    return len(self._samples)

  def __getitem__(self, index: int) -> Sample:
    """Returns one sample, as `PackedSamples` does.

    Weights are 1 where the target is trained on, else 0.
    """
    if not 0 <= index < len(self):
      raise IndexError(f"sample {index} of {len(self)}")
    length, at = self._length, 0
    sample: Sample = {
      name: np.zeros(length, np.int32)
      for name in ("tokens", "targets", "segment_ids", "positions")
    }
    sample["weights"] = np.zeros(length, np.float32)
    for segment, document in enumerate(self._samples[index], 1):
      start, places = int(self._starts[document]), int(self._places[document])
      here, at = slice(at, at + places), at + places
      ids = self.tokens.read(start, start + places + 1)
      sample["tokens"][here], sample["targets"][here] = ids[:-1], ids[1:]
      sample["segment_ids"][here] = segment
      sample["positions"][here] = np.arange(places)
      sample["weights"][here] = self._mask.read(start + 1, start + places + 1)
    return sample


def best_fit(sizes: np.ndarray, room: int) -> list[list[int]]:
  """Packs things into boxes: the largest first, each where least room is left.

  Args:
    sizes: int [things], none larger than `room`.
    room: of a box.

  Returns:
    Of each box, the things in it.
  """
  boxes: list[list[int]] = []
  with_room: dict[int, list[list[int]]] = collections.defaultdict(list)
  rooms: list[int] = []  # of boxes, sorted, each once
  for thing in np.argsort(-sizes, kind="stable").tolist():
    size = int(sizes[thing])
    place = bisect.bisect_left(rooms, size)
    if place < len(rooms):
      left = rooms[place]
      box = with_room[left].pop()
      if not with_room[left]:
        del rooms[place]
    else:
      left, box = room, []
      boxes.append(box)
    box.append(thing)
    left -= size
    if not with_room[left]:
      bisect.insort(rooms, left)
    with_room[left].append(box)
  return boxes
