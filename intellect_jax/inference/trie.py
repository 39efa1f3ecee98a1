"""Texts packed into rows, so that what they begin with alike is there once.

The choices of a question share the question, and the questions of a benchmark
often the examples before them. The texts of a row are a trie, written depth
first: a token stands after all it follows on, and looks at its ancestors alone.
Which those are, a number for each token says: where its subtree ends.

  texts      a b c, a b d e, f        token      a b c d e f
                                      depth      0 1 2 2 3 0
                                      end        5 5 3 5 5 6

Token m is an ancestor of token l, or l itself, if m <= l < end[m].
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Text:
  """A text to score.

  Attributes:
    tokens: at least two.
    first: the first token whose probability is asked for, at least 1: each
      depends on those before it.
  """

  tokens: Sequence[int]
  first: int


@dataclasses.dataclass
class Row:
  """A trie of texts, without their last tokens, which nothing follows on.

  Attributes:
    tokens, depths, ends: lists of a number for each token, see above.
    asked: what follows on which token: (place in the row, the token that
      follows, number of the text).
  """

  tokens: list[int] = dataclasses.field(default_factory=list)
  depths: list[int] = dataclasses.field(default_factory=list)
  ends: list[int] = dataclasses.field(default_factory=list)
  asked: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
  _path: list[int] = dataclasses.field(default_factory=list)
  _last: Sequence[int] = ()

  def __len__(self) -> int:
    return len(self.tokens)

  def more(self, text: Text) -> int:
    """How many tokens the row would grow by."""
    read = text.tokens[:-1]
    return len(read) - common_prefix(self._last, read)

  def add(self, number: int, text: Text) -> None:
    """Adds a text that is, in lexical order, not before the last one."""
    read = text.tokens[:-1]
    common = common_prefix(self._last, read)
    self._leave(common)
    for depth in range(common, len(read)):
      self._path.append(len(self.tokens))
      self.tokens.append(read[depth])
      self.depths.append(depth)
      self.ends.append(0)
    self._last = read
    self.asked += [
      (self._path[i - 1], text.tokens[i], number)
      for i in range(text.first, len(text.tokens))
    ]

  def close(self) -> None:
    self._leave(0)

  def _leave(self, depth: int) -> None:
    """The path from `depth` on gets no more descendants."""
    for place in self._path[depth:]:
      self.ends[place] = len(self.tokens)
    del self._path[depth:]


def rows(texts: Sequence[Text], most: int) -> Iterator[Row]:
  """Packs texts into rows of `most` tokens or of one larger text.

  In lexical order, so that those which share the most are neighbours.
  """
  row = Row()
  for number in _in_order(texts):
    text = texts[number]
    if row.tokens and len(row) + row.more(text) > most:
      row.close()
      yield row
      row = Row()
    row.add(number, text)
  if row.tokens:
    row.close()
    yield row


def _in_order(texts: Sequence[Text]) -> Iterable[int]:
  # By what is read: those that differ in their last token share all of it.
  keys = [tuple(text.tokens[:-1]) for text in texts]
  return sorted(range(len(texts)), key=keys.__getitem__)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
  """How many tokens both begin with."""
  size = min(len(a), len(b))
  if list(a[:size]) == list(b[:size]):
    return size
  differ = np.asarray(a[:size]) != np.asarray(b[:size])
  return int(np.argmax(differ))
