"""AutoTokenizer gives the ids that training used."""

import json
import random

import pytest

from intellect_jax.checkpoint.tensors import write_json
from intellect_jax.data import sources
from intellect_jax.data.tokenizer import make_tokenizer

transformers = pytest.importorskip("transformers")

NAMES = pytest.mark.parametrize(
  "name", ["byte", "bpe:257", "bpe:2048", "bpe:32768"]
)
EOS = "<eos>"
HARD = (
  "",
  " ",
  "\x00\x01\x7f",
  " \t\n\r\n \u2028\u00a0\u0085\u3000 tail  ",
  "naïve café, Zürich: ‘quotes’ — dash…",
  "nai\u0308ve cafe\u0301 A\u030angstro\u0308m \u0301\u0301",
  "שלום עולם مرحبا नमस्ते ไทย 日本語 한국어",
  "👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff \ufeff\ufffd",
  "<|endoftext|> [INST] < eos > <EOS>",
  "camelCase HTTPServer x1234567 ½ ² Ⅷ I'Ll we'd DON'T",
  "if x:\n    return\r\n\r\n\t\t# //--==**\\\n\n\n  end \n ",
  "a" * 3000 + "\n" * 3000 + " " * 100_000,
)


def load(tmp_path, name, **more):
  """As an export is loaded, beside a config.json that says it is a Llama."""
  tokenizer = make_tokenizer(name)
  write_json(tmp_path / "config.json", dict(model_type="llama"))
  for file, content in tokenizer.files(64).items():
    (tmp_path / file).write_bytes(content)
  path = tmp_path / "tokenizer_config.json"
  write_json(path, json.loads(path.read_text()) | more)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  return tokenizer, lambda text: theirs.encode(text), theirs


@NAMES
def test_ids_are_the_same(tmp_path, name):
  ours, encode, theirs = load(tmp_path, name)
  for text in (*HARD, *sources.documents()[:3]):
    ids = ours.encode(text).tolist()
    assert encode(text) == ids
    assert theirs.decode(ids) == ours.decode(ids) == text
  assert theirs.eos_token_id == ours.eos
  assert len(theirs) == ours.vocab_size


def test_runs_of_few_letters(tmp_path):
  """Where pairs tie or overlap, the order of merges shows."""
  ours, encode, _ = load(tmp_path, "bpe:32768")
  rng = random.Random(0)
  for letters in (
    "ab",
    "aA ",
    " \n",
    "\n\r /.",
    "1 'Ss",
    "=-_*#",
    "eéÉ\u0301 ",
  ):
    for _ in range(300):
      runs = (
        rng.choice(letters) * rng.choice((1, 1, 2, 3, 5, 9)) for _ in range(20)
      )
      text = "".join(runs)
      assert encode(text) == ours.encode(text).tolist()


def test_every_kind_of_letter(tmp_path):
  """Both engines cut words by Unicode's classes: every 7th code point."""
  ours, encode, _ = load(tmp_path, "bpe:2048")
  points = [c for c in range(0, 0x110000, 7) if not 0xD800 <= c < 0xE000]
  for start in range(0, len(points), 64):
    text = "".join(
      f"a{chr(c)}b {chr(c)} C{chr(c)}1" for c in points[start : start + 64]
    )
    assert encode(text) == ours.encode(text).tolist()


def test_the_end_of_a_document_is_one_id_unless_split(tmp_path):
  ours, encode, _ = load(tmp_path, "bpe:2048")
  assert encode(f"a{EOS}") == [*ours.encode("a"), ours.eos]
  ours, encode, _ = load(tmp_path, "bpe:2048", split_special_tokens=True)
  assert encode(f"a{EOS}") == ours.encode(f"a{EOS}").tolist()
