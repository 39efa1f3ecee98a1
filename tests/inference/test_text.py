"""What is shown is never taken back, and is what the tokens say."""

import pytest

from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.inference.text import TextStream

TEXT = "naïve 👩‍👩‍👧 日本語: stop, then STOP!, and more"


@pytest.fixture(params=["byte", "bpe:2048"])
def tokenizer(request):
  return make_tokenizer(request.param)


def shown(tokenizer, text, stop_words=(), end=True):
  """The pieces of a text, one for each token until it stops."""
  stream = TextStream(tokenizer, stop_words, frozenset({tokenizer.eos}))
  pieces = []
  for token in tokenizer.encode(text).tolist():
    pieces.append(stream.add(token))
    if stream.stopped:
      break
  pieces.append(stream.close())
  assert "".join(pieces) == stream.text
  return pieces


def test_characters_come_whole(tokenizer):
  pieces = shown(tokenizer, TEXT)
  assert "".join(pieces) == TEXT
  assert not any("\ufffd" in piece for piece in pieces)
  assert sum(map(bool, pieces)) > len(TEXT) / 8  # as they come


@pytest.mark.parametrize(
  "words, left",
  [
    (["STOP!"], "naïve 👩‍👩‍👧 日本語: stop, then "),
    (["more", "stop", "STOP"], "naïve 👩‍👩‍👧 日本語: "),
    (["語"], "naïve 👩‍👩‍👧 日本"),
    (["STOP!!", "", "more and"], TEXT),
    (["naïve"], ""),
  ],
)
def test_no_part_of_a_stop_word_is_shown(tokenizer, words, left):
  assert "".join(shown(tokenizer, TEXT, words)) == left


def test_eos_ends_a_text_and_shows_what_was_held_back(tokenizer):
  stream = TextStream(tokenizer, ["!?"], frozenset({tokenizer.eos}))
  pieces = [stream.add(token) for token in tokenizer.encode("a!").tolist()]
  assert "".join(pieces) == "a"
  assert stream.add(tokenizer.eos) == "!"
  assert stream.stopped and stream.close() == ""


def test_broken_characters_are_shown_at_the_end(tokenizer):
  stream = TextStream(tokenizer)
  (first, *_) = tokenizer.encode("👩").tolist()
  assert stream.add(first) == ""
  assert stream.close() == "\ufffd"
