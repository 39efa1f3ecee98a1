"""Tokenizers of other libraries, and one that is trained here."""

import json

import numpy as np
import pytest

from intellect_jax.data import sources
from intellect_jax.data.tokenizer import make_tokenizer, shipped_tokenizer
from intellect_jax.data.train_tokenizer import train
from intellect_jax.errors import UserError

pytest.importorskip("tokenizers")
sentencepiece = pytest.importorskip("sentencepiece")

DOCUMENTS = sources.documents()[:40]
TEXT = "naïve café — <eos> </s>\n\n  12345 日本語 👩‍👩‍👧 tail  "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A trained tokenizer.json and a SentencePiece model, of 1000 ids each."""
  folder = tmp_path_factory.mktemp("tokenizers")
  train(iter(DOCUMENTS), 1000, folder / "tokenizer.json")
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter("\n".join(DOCUMENTS).splitlines()),
    model_prefix=str(folder / "pieces"),
    vocab_size=1000,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "pieces.model"])
def test_text_survives_and_never_ends_a_document(folder, name):
  tokenizer = make_tokenizer(name, folder)
  assert tokenizer.vocab_size == 1000
  for text in (TEXT, *DOCUMENTS[:3]):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and tokenizer.eos not in ids
    assert tokenizer.decode([*ids, tokenizer.eos]) == text
    assert ids.min() >= 0 and ids.max() < 1000
  assert tokenizer.encode("").shape == (0,)


def test_training_is_the_same_anywhere(folder, tmp_path):
  train(iter(DOCUMENTS), 1000, tmp_path / "again.json")
  again = (tmp_path / "again.json").read_bytes()
  assert again == (folder / "tokenizer.json").read_bytes()
  ours = make_tokenizer("tokenizer.json", folder)
  # It learned something: English takes far fewer ids than bytes.
  length = sum(len(ours.encode(d)) for d in DOCUMENTS)
  assert length < 0.5 * sum(len(d.encode()) for d in DOCUMENTS)
  with pytest.raises(UserError, match=r"--vocab_size is 5000\. Give more text"):
    train(iter(["few words"]), 5000, tmp_path / "none.json")


def test_the_shipped_tokenizer_read_as_a_file(tmp_path):
  """What an export writes is read with the same ids."""
  ours = shipped_tokenizer(2048)
  for name, content in ours.files(64).items():
    (tmp_path / name).write_bytes(content)
  theirs = make_tokenizer("tokenizer.json", tmp_path)
  assert (theirs.eos, theirs.vocab_size) == (ours.eos, ours.vocab_size)
  for text in (TEXT, *DOCUMENTS[:5]):
    assert theirs.encode(text).tolist() == ours.encode(text).tolist()
  for name, content in theirs.files(64).items():
    (tmp_path / "again").mkdir(exist_ok=True)
    (tmp_path / "again" / name).write_bytes(content)
  assert make_tokenizer("tokenizer.json", tmp_path / "again").digest == (
    theirs.digest
  )


def test_which_token_ends_a_document(folder, tmp_path):
  path = tmp_path / "tokenizer.json"
  content = json.loads((folder / "tokenizer.json").read_text())
  content["added_tokens"] = [
    dict(content["added_tokens"][0], id=1000 + i, content=name)
    for i, name in enumerate(("<|fin|>", "<|pad|>"))
  ]
  del content["model"]["vocab"]["<eos>"]
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match=r"no token known to end a document"):
    make_tokenizer("tokenizer.json", tmp_path)
  named = make_tokenizer("tokenizer.json#<|pad|>", tmp_path)
  config = dict(eos_token=dict(content="<|fin|>"))
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  told = make_tokenizer("tokenizer.json", tmp_path)
  assert told.vocab_size == named.eos + 1 == told.eos + 2
  assert named.digest != told.digest
  assert make_tokenizer("pieces.model", folder).eos == 2  # </s>


def test_what_is_no_tokenizer_is_named(tmp_path):
  for name, content in (("a.json", "{}"), ("b.model", "nothing")):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name[0]}.* can be read"):
      make_tokenizer(name, tmp_path)
