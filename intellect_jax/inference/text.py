"""Tokens to text as they come: whole characters, and nothing of a stop word."""

from collections.abc import Callable, Iterable, Sequence

from intellect_jax.data.tokenizer import Tokenizer
from intellect_jax.inference.engine import Request, Sampling
from intellect_jax.inference.loading import Model

_NO_CHARACTER = "\ufffd"
_LOOK_BACK = 8  # ids: a character has at most four bytes, each maybe an id


class TextStream:
  """The text of one answer.

  Attributes:
    text: what may be shown: it never is taken back.
    stopped: whether a stop word or a stopping token has come.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    stop_words: Iterable[str] = (),
    stops: frozenset[int] = frozenset(),
    before: Sequence[int] = (),
  ):
    """Nothing has come yet.

    Args:
      tokenizer: makes the text.
      stop_words: the text ends before the first of them.
      stops: ids that end it.
      before: ids that the text follows: some tokenizers write a word with a
        space before it, unless it is the first of a text.
    """
    self._tokenizer = tokenizer
    self._stop_words = tuple(word for word in stop_words if word)
    self._stops = stops
    self._ids = list(before[-_LOOK_BACK:])
    self._read = len(self._ids)  # ids whose text is known
    self._from = 0  # where decoding begins anew
    self._whole = ""  # text so far, whatever may be shown of it
    self.text, self.stopped = "", False

  def add(self, token: int) -> str:
    """Takes a token; returns what may be shown now in addition."""
    assert not self.stopped, "a text goes on after its end"
    if token in self._stops:
      shown = self.close()
      self.stopped = True
      return shown
    self._ids.append(token)
    self._decode(partly=True)
    return self._show(self._end())

  def close(self) -> str:
    """No more will come: returns what is left, unless it is a stop word."""
    if self.stopped:
      return ""
    self._decode(partly=False)
    self._end()
    return self._show(len(self._whole))

  def _decode(self, partly: bool) -> None:
    """Adds the text of new ids; `partly`: unless its end is no character."""
    known = self._tokenizer.decode(self._ids[self._from : self._read])
    now = self._tokenizer.decode(self._ids[self._from :])
    if len(now) > len(known) and not (partly and now.endswith(_NO_CHARACTER)):
      self._whole += now[len(known) :]
      self._from, self._read = self._read, len(self._ids)

  def _end(self) -> int:
    """Up to where the text may be shown; notes a stop word."""
    found = [
      self._whole.find(word, len(self.text)) for word in self._stop_words
    ]
    found = [place for place in found if place >= 0]
    if found:
      self.stopped = True
      self._whole = self._whole[: min(found)]
      return len(self._whole)
    held_back = (
      size
      for word in self._stop_words
      for size in range(min(len(word) - 1, len(self._whole)), 0, -1)
      if self._whole.endswith(word[:size])
    )
    return max(len(self.text), len(self._whole) - max(held_back, default=0))

  def _show(self, end: int) -> str:
    new = self._whole[len(self.text) : end]
    self.text += new
    return new


def answer(
  model: Model,
  prompt: Sequence[int],
  most: int,
  sampling: Sampling,
  stop_words: Iterable[str] = (),
  stops: frozenset[int] = frozenset(),
  show: Callable[[str], object] = lambda new: None,
  done: Callable[[str, str], object] = lambda text, why: None,
) -> Request:
  """A request for the engine that gives text.

  Args:
    model: whose tokens they are.
    prompt, most, sampling: see `Request`.
    stop_words: the text ends before the first of them.
    stops: ids that end it, beside those of the model.
    show: called with each piece of text as it comes.
    done: called with all of it, and why there is no more: "stop", "length" or
      "cancelled".
  """
  text = TextStream(model.tokenizer, stop_words, model.stops | stops, prompt)

  def take(token: int, logprob: float) -> bool:
    if new := text.add(token):
      show(new)
    return not text.stopped

  def end(why: str) -> None:
    if new := text.close():
      show(new)
    done(text.text, "stop" if text.stopped else why)

  return Request(prompt, most, sampling, take, end)
