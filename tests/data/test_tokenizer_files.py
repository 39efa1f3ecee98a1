"""A tiktoken file gives the ids that its engine gives, in Llama 3's places."""

import base64

import pytest
import tiktoken

from intellect_jax import config as config_lib
from intellect_jax.data import sources, tokenizer_files
from intellect_jax.data.tokenizer import (
  keep_file,
  make_tokenizer,
  shipped_tokenizer,
  tokenizer_of,
)
from intellect_jax.errors import UserError

RANKS = shipped_tokenizer(1500).ranks
TEXT = "Don't <|end_of_text|> panic: 12345 naïve\n\n  cafés " + "".join(
  sources.documents()[:2]
)


@pytest.fixture
def folder(tmp_path):
  """With Llama 3's kind of file, of 1499 ranks, under Meta's name for it."""
  lines = [f"{base64.b64encode(t).decode()} {r}" for t, r in RANKS.items()]
  (tmp_path / "tokenizer.model").write_text("\n".join(lines) + "\n")
  return tmp_path


def test_ids_are_those_of_llama_3s_tokenizer(folder):
  ours = make_tokenizer("tokenizer.model", folder)
  theirs = tiktoken.Encoding(
    "theirs",
    pat_str=tokenizer_files.LLAMA3_PATTERN,
    mergeable_ranks=RANKS,
    special_tokens={},
  )
  ids = ours.encode(TEXT).tolist()
  assert ids == theirs.encode_ordinary(TEXT)
  assert ours.decode([*ids, ours.eos]) == TEXT
  # After 128,000 ranks this is 128,001, and 128,256 ids in all.
  assert (ours.eos, ours.vocab_size) == (1499 + 1, 1499 + 256)
  other = make_tokenizer("tokenizer.model#<|eot_id|>", folder)
  assert other.eos == 1499 + 9 and other.digest != ours.digest


def test_a_run_finds_its_tokenizer_and_no_other(folder, tmp_path):
  run = config_lib.base().run
  run.data.tokenizer = "tokenizer.model"
  run.data.tokenizer_digest = tokenizer_of(run, folder).digest
  (tmp_path / "workdir").mkdir()
  keep_file(run.data.tokenizer, str(folder), tmp_path / "workdir")
  assert tokenizer_of(run, tmp_path / "workdir").vocab_size == 1755
  path = folder / "tokenizer.model"
  path.write_text("".join(path.read_text().splitlines(True)[:-1]))
  with pytest.raises(UserError, match=r"has digest .* ids would mean other"):
    tokenizer_of(run, folder)
  run.data.tokenizer = str(path)
  with pytest.raises(UserError, match=r"is the path .*must be the name"):
    tokenizer_of(run, folder)


def test_bad_files_are_named(folder):
  with pytest.raises(UserError, match=r"no tokenizer file .*nowhere\.json"):
    make_tokenizer("nowhere.json", folder)
  with pytest.raises(UserError, match=r"no token '<\|amen\|>'.*#NAME"):
    make_tokenizer("tokenizer.model#<|amen|>", folder)
