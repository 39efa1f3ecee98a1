import unicodedata

import numpy as np
import pytest

from intellect_jax.data import sources
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.errors import UserError

NAMES = ("byte", "bpe:257", "bpe:1024", "bpe:8192", "bpe:32768")
HARD = (
  "",
  " ",
  "\x00\x01\x7f",
  " \t\n\r\n \u2028\u00a0 tail  ",
  "naïve café, Zürich: ‘quotes’ — dash…",
  unicodedata.normalize("NFD", "naïve café Ångström"),
  "שלום עולם مرحبا नमस्ते ไทย 日本語 한국어",
  "👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff \ufeff\ufffd",
  "<eos> <|endoftext|> [INST]",  # text that looks special is only text
  "a" * 3000 + "\n" * 3000 + " " * 2_000_000,
)


@pytest.mark.parametrize("name", NAMES)
def test_text_survives_the_round_trip(name):
  tokenizer = make_tokenizer(name)
  for text in HARD:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert np.all((ids >= 0) & (ids < tokenizer.eos))


def test_every_code_point_survives_the_round_trip():
  surrogates = range(0xD800, 0xE000)
  text = "".join(chr(c) for c in range(0x110000) if c not in surrogates)
  tokenizer = make_tokenizer("bpe:4096")
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_are_their_own_ids():
  text = HARD[6]
  ids = make_tokenizer("byte").encode(text)
  assert bytes(ids.tolist()) == text.encode()


def test_sizes_share_ids_and_larger_ones_are_shorter():
  text = sources.documents()[0]
  lengths = []
  for name in ("bpe:1024", "bpe:4096", "bpe:16384"):
    small, large = make_tokenizer(name), make_tokenizer("bpe:32768")
    # An id means the same bytes in both.
    assert large.decode(small.encode(text)) == text
    lengths.append(len(small.encode(text)))
  assert lengths == sorted(lengths, reverse=True)


def test_ids_without_bytes_decode_to_nothing():
  tokenizer = make_tokenizer("byte")
  assert tokenizer.vocab_size == tokenizer.eos + 1 == 257
  assert tokenizer.decode([104, tokenizer.eos, 105, 511]) == "hi"
  assert tokenizer.decode([0xE2, 0x82]) == "\ufffd"


def test_the_digest_tells_vocabularies_apart():
  digests = {make_tokenizer(name).digest for name in NAMES}
  assert len(digests) == len(NAMES) - 1
  assert make_tokenizer("byte").digest == make_tokenizer("bpe:257").digest
  assert make_tokenizer("bpe:1024").digest == make_tokenizer("bpe:1024").digest


@pytest.mark.parametrize(
  "name", ["bpe:256", "bpe:32769", "bpe:", "bpe:-1", "bpe:1e3", "bytes", ""]
)
def test_an_impossible_name_is_explained(name):
  with pytest.raises(UserError, match=r"run\.data\.tokenizer.*257 to 32768"):
    make_tokenizer(name)
