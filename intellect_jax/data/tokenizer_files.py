"""Tokenizers from files: Hugging Face's, SentencePiece's, tiktoken's.

What a file is shows in its content, not in its name: Meta calls the tiktoken
file of Llama 3 tokenizer.model, as SentencePiece's are called.
"""

from collections.abc import Iterable
import functools
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from intellect_jax.data.tokenizer import (
  RankTokenizer,
  Tokenized,
  Tokenizer,
  around_special,
  ranks_of,
)
from intellect_jax.data.tokenizer_json import tokenizer_config
from intellect_jax.errors import UserError, not_installed

# Of Llama 3 (github.com/meta-llama/llama3, llama/tokenizer.py): how text is cut
# into words, and the 256 ids after the ranks.
LLAMA3_PATTERN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMED = {  # of those, by their place; the others are reserved
  0: "<|begin_of_text|>",
  1: "<|end_of_text|>",
  6: "<|start_header_id|>",
  7: "<|end_header_id|>",
  9: "<|eot_id|>",
}
_SPECIAL = 256

# Which token ends a document, if nothing says so: the first that there is.
_USUAL_EOS = ("<eos>", "<|end_of_text|>", "</s>", "<|endoftext|>", "[SEP]")


def read_tokenizer(path: pathlib.Path, eos: str = "") -> Tokenizer:
  """Reads a tokenizer's file.

  Args:
    path: of a tokenizer.json, a SentencePiece model or a tiktoken file.
    eos: the token that ends a document; empty: what the file, or a
      tokenizer_config.json beside it, says, or a usual name.

  Raises:
    UserError: if it cannot be read, or no token ends a document.
  """
  content = path.read_bytes()
  try:
    if content.lstrip()[:1] == b"{":
      return HuggingFaceTokenizer(path, content, eos)
    if (ranks := _ranks(content)) is not None:
      return _llama3(ranks, content, eos)
    return SentencePieceTokenizer(path, content, eos)
  except ImportError as error:
    what = f"To read the tokenizer {path}"
    raise not_installed(what, error.name, "data") from None
  except UserError:
    raise
  except Exception as error:  # the libraries raise bare Exception
    raise UserError(
      f"{path} is no tokenizer that can be read ({error}). It must be a"
      " Hugging Face tokenizer.json, a SentencePiece model or a tiktoken file."
    ) from None


def _no_eos(path: pathlib.Path | str, eos: str) -> UserError:
  what = f"no token {eos!r}" if eos else "no token known to end a document"
  return UserError(
    f"The tokenizer {path} has {what}. Name one of its tokens after the file:"
    " run.data.tokenizer=tokenizer.json#NAME."
  )


def _ranks(content: bytes) -> dict[bytes, int] | None:
  """The ranks of a tiktoken file, or None if it is none."""
  try:
    return ranks_of(content.decode("ascii").splitlines()) or None
  except ValueError:
    return None


def _llama3(ranks: dict[bytes, int], content: bytes, eos: str) -> RankTokenizer:
  """Ranks with the words and the special ids of Llama 3."""
  names = [
    _NAMED.get(i, f"<|reserved_special_token_{i}|>") for i in range(_SPECIAL)
  ]
  eos = eos or _NAMED[1]
  if eos not in names:
    raise _no_eos("of a tiktoken file", eos)
  ids = {name: len(ranks) + i for i, name in enumerate(names)}
  special = {eos: ids.pop(eos), **ids}
  digest = _digest(content, special[eos])
  return RankTokenizer(ranks, LLAMA3_PATTERN, special, digest, _NAMED[0])


def _digest(content: bytes, eos: int) -> str:
  """Hex SHA-256 of a tokenizer's file and the id that ends a document."""
  return hashlib.sha256(b"%d\n" % eos + content).hexdigest()


class HuggingFaceTokenizer:
  """A tokenizer.json, by the library `tokenizers`; see `Tokenizer`."""

  def __init__(self, path: pathlib.Path, content: bytes, eos: str):
    import tokenizers  # pyright: ignore[reportMissingImports]

    self._library: Any = tokenizers.Tokenizer.from_buffer(content)
    self._library.no_truncation()
    self._library.no_padding()
    # Text that looks like a special token is text.
    self._library.encode_special_tokens = True
    self._content = content
    told = _told(path)
    names = [told.get("eos_token", _USUAL_EOS[0]), *_USUAL_EOS]
    names = [eos] if eos else names
    ids = map(self._library.token_to_id, names)
    found = next(
      ((n, i) for n, i in zip(names, ids, strict=True) if i is not None), None
    )
    if found is None:
      raise _no_eos(path, eos)
    self._eos_name, self.eos = found
    self.special_tokens_map = {"eos_token": self._eos_name} | told
    self.special = {
      token.content: number
      for number, token in self._library.get_added_tokens_decoder().items()
      if token.special
    }
    self.digest = _digest(content, self.eos)
    vocabulary = self._library.get_vocab(with_added_tokens=True)
    self.vocab_size = 1 + max(vocabulary.values())

  def encode(self, text: str) -> np.ndarray:
    encoding = self._library.encode(text, add_special_tokens=False)
    return np.asarray(encoding.ids, np.int32)

  @functools.cached_property
  def _with_special(self) -> Any:
    library = type(self._library).from_str(self._library.to_str())
    library.encode_special_tokens = False
    return library

  def tokenize(self, text: str) -> Tokenized:
    encoding = self._with_special.encode(text, add_special_tokens=False)
    offsets = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
    return Tokenized(np.asarray(encoding.ids, np.int32), offsets)

  def decode(self, ids: Iterable[int]) -> str:
    known = [i for i in ids if i < self.vocab_size]
    return self._library.decode(known, skip_special_tokens=True)

  def files(self, sequence_length: int) -> dict[str, bytes]:
    config = tokenizer_config(sequence_length) | dict(eos_token=self._eos_name)
    return {
      "tokenizer.json": self._content,
      "tokenizer_config.json": json.dumps(config, indent=2).encode(),
    }


def _told(path: pathlib.Path) -> dict[str, str]:
  """The names that the tokenizer_config.json beside a tokenizer.json tells."""
  config = path.with_name("tokenizer_config.json")
  if not config.is_file():
    return {}
  names = {}
  for role, told in json.loads(config.read_text()).items():
    name = told.get("content") if isinstance(told, dict) else told
    if role.endswith("_token") and name and isinstance(name, str):
      names[role] = name
  return names


class SentencePieceTokenizer:
  """A SentencePiece model; see `Tokenizer`."""

  def __init__(self, path: pathlib.Path, content: bytes, eos: str):
    import sentencepiece  # pyright: ignore[reportMissingImports]

    self._library: Any = sentencepiece.SentencePieceProcessor(
      model_proto=content
    )
    self._content = content
    self.eos = self._library.piece_to_id(eos) if eos else self._library.eos_id()
    if self.eos < 0 or (eos and self._library.is_unknown(self.eos)):
      raise _no_eos(path, eos)
    self.digest = _digest(content, self.eos)
    self.vocab_size = self._library.vocab_size()
    self.special = {
      self._library.id_to_piece(i): i
      for i in range(self.vocab_size)
      if self._library.is_control(i) or i == self.eos
    }
    self.special_tokens_map = {"eos_token": self._library.id_to_piece(self.eos)}
    if self._library.bos_id() >= 0:
      bos = self._library.id_to_piece(self._library.bos_id())
      self.special_tokens_map["bos_token"] = bos

  def encode(self, text: str) -> np.ndarray:
    return np.asarray(self._library.encode(text), np.int32)

  def tokenize(self, text: str) -> Tokenized:
    return around_special(text, self.special, self._with_offsets)

  def _with_offsets(self, text: str) -> Tokenized:
    pieces = self._library.encode(text, out_type="immutable_proto").pieces
    offsets = np.array([(p.begin, p.end) for p in pieces], np.int64)
    ids = np.array([p.id for p in pieces], np.int32)
    return Tokenized(ids, offsets.reshape(-1, 2))

  def decode(self, ids: Iterable[int]) -> str:
    return self._library.decode(
      [int(i) for i in ids if i < self.vocab_size and i != self.eos]
    )

  def files(self, sequence_length: int) -> dict[str, bytes]:
    config = tokenizer_config(sequence_length) | dict(
      tokenizer_class="LlamaTokenizer",
      eos_token=self._library.id_to_piece(self.eos),
      add_bos_token=False,
    )
    return {
      "tokenizer.model": self._content,
      "tokenizer_config.json": json.dumps(config, indent=2).encode(),
    }
