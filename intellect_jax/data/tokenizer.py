"""Text to token ids and back: what ships, or a file that the user has.

What ships is one list of byte-pair merges, ranked in the order in which they
were learned: the first n ranks are themselves a vocabulary, and small ones
share their ids with large ones. The shortest, the 256 bytes, is the byte-level
tokenizer. Files are read by `tokenizer_files.py`.
"""

import base64
from collections.abc import Callable, Iterable
import functools
import hashlib
import pathlib
import re
import shutil
from typing import NamedTuple, Protocol

from ml_collections import ConfigDict
import numpy as np
import tiktoken

from intellect_jax.data import sources
from intellect_jax.errors import UserError

BYTES = 256
LARGEST = 32_768
EOS = "<eos>"  # the name of the id that ends a document
LONGEST = 2**18  # characters at once; tiktoken panics at 10^6 spaces in a row

# How Tekken cuts text into words before it merges within each of them.
PATTERN = "|".join(
  (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
  )
)


class Tokenized(NamedTuple):
  """Ids, and the text that each is of."""

  ids: np.ndarray  # [tokens] int32
  offsets: np.ndarray  # [tokens, 2]: first character, and that after the last


class Tokenizer(Protocol):
  """Text to token ids and back.

  Attributes:
    vocab_size: number of ids; a model may have more, but not fewer.
    eos: the id that ends every document; no text encodes to it.
    digest: hex digest over all that determines the ids. Two islands with
      different digests must not train together.
    special: names of the ids that `encode` makes of no text.
    special_tokens_map: the names that chat templates know as eos_token,
      bos_token and the like.
  """

  vocab_size: int
  eos: int
  digest: str
  special: dict[str, int]
  special_tokens_map: dict[str, str]

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of `text`, [tokens] int32, without an eos."""
    ...

  def tokenize(self, text: str) -> Tokenized:
    """As `encode`, but names of special tokens are those tokens."""
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of `ids`; bytes that are no UTF-8 become U+FFFD.

    Ids without bytes, such as eos and the padding of a larger model's
    vocabulary, become nothing.
    """
    ...

  def files(self, sequence_length: int) -> dict[str, bytes]:
    """Name and content of the files that Hugging Face's libraries read."""
    ...


def make_tokenizer(name: str, folder: str | pathlib.Path = "") -> Tokenizer:
  """Returns the tokenizer that `run.data.tokenizer` names.

  Args:
    name: "byte"; "bpe:N" for N token ids in all; or a file: a Hugging Face
      tokenizer.json, a SentencePiece model or a tiktoken file, with "#TOKEN"
      after it to say which token ends a document.
    folder: where a file with a relative name is.

  Raises:
    UserError: if it is none of these, or N is out of range.
  """
  kind, _, size = name.partition(":")
  if name == "byte":
    return shipped_tokenizer(BYTES + 1)
  if kind == "bpe" and size.isdecimal() and BYTES < int(size) <= LARGEST:
    return shipped_tokenizer(int(size))
  if path := file_of(name, folder):
    # Here, because it brings libraries that most runs do not need.
    from intellect_jax.data.tokenizer_files import read_tokenizer

    return read_tokenizer(path, name.partition("#")[2])
  raise UserError(
    f"run.data.tokenizer is {name!r}, but must be 'byte', or 'bpe:N' with N"
    f" from {BYTES + 1} to {LARGEST}, or a file such as 'tokenizer.json' in"
    " the folder that --config.island.data.folder names. Change it in the"
    " config file or with --config.run.data.tokenizer=…"
  )


def file_of(name: str, folder: str | pathlib.Path = "") -> pathlib.Path | None:
  """The file that `run.data.tokenizer` names, or None if what ships is meant.

  Raises:
    UserError: if the file is not there.
  """
  file = name.partition("#")[0]
  if not file.endswith((".json", ".model", ".tiktoken")):
    return None
  path = pathlib.Path(folder).expanduser() / file
  if not path.is_file():
    raise UserError(
      f"There is no tokenizer file {path}. run.data.tokenizer={name} is looked"
      " for in the folder that --config.island.data.folder names, or the"
      " current one."
    )
  return path


def keep_file(name: str, folder: str, workdir: pathlib.Path) -> None:
  """Copies the tokenizer's file, if it is one, to where a run's results are.

  So that what reads a workdir needs no other folder.
  """
  path = file_of(name, folder)
  if path is not None:
    for file in (path, path.with_name("tokenizer_config.json")):
      if file.is_file():
        shutil.copyfile(file, workdir / file.name)


def tokenizer_of(run: ConfigDict, folder: str | pathlib.Path = "") -> Tokenizer:
  """Returns the tokenizer of a run, all of whose ids its model can hold.

  Raises:
    UserError: if there is no such tokenizer, it is not the one that the run
      was started with, or the vocabulary is too small.
  """
  if "/" in run.data.tokenizer.partition("#")[0]:
    raise UserError(
      f"run.data.tokenizer is the path {run.data.tokenizer}, but must be the"
      " name of a file in the folder that --config.island.data.folder names:"
      " each host has folders of its own."
    )
  tokenizer = make_tokenizer(run.data.tokenizer, folder)
  if run.data.tokenizer_digest not in ("", tokenizer.digest):
    raise UserError(
      f"run.data.tokenizer={run.data.tokenizer} has digest"
      f" {tokenizer.digest[:12]} here, but the run was started with"
      f" {run.data.tokenizer_digest[:12]}: ids would mean other text. Copy the"
      " tokenizer's file from where the run was started."
    )
  if run.model.vocab_size < tokenizer.vocab_size:
    raise UserError(
      f"run.model.vocab_size is {run.model.vocab_size}, but tokenizer"
      f" {run.data.tokenizer!r} has {tokenizer.vocab_size} ids. Make it at"
      " least that, or choose a smaller tokenizer with"
      " --config.run.data.tokenizer=…"
    )
  return tokenizer


def shipped_tokenizer(vocab_size: int) -> "RankTokenizer":
  """The first `vocab_size` - 1 ranks of Tekken, and eos as the last id."""
  lines = _ranks()[: vocab_size - 1]
  digest = hashlib.sha256("\n".join([PATTERN, *lines]).encode()).hexdigest()
  return RankTokenizer(ranks_of(lines), PATTERN, {EOS: vocab_size - 1}, digest)


def ranks_of(lines: Iterable[str]) -> dict[bytes, int]:
  """The ranks in a tiktoken file: lines of base64 and number.

  Raises:
    ValueError: if a line is neither.
  """
  return {
    base64.b64decode(token, validate=True): int(rank)
    for token, rank in map(str.split, lines)
  }


class RankTokenizer:
  """Byte-pair merges by rank, as tiktoken has them.

  Attributes:
    vocab_size, eos, digest, special_tokens_map: see `Tokenizer`.
    ranks: the id of each run of bytes that has one.
    pattern: how text is cut into words before it is merged within each.
    special: names of the ids that no text encodes to; the first is eos.
  """

  def __init__(
    self,
    ranks: dict[bytes, int],
    pattern: str,
    special: dict[str, int],
    digest: str,
    bos: str = "",
  ):
    self.ranks, self.pattern, self.special = ranks, pattern, special
    self.special_tokens_map = {"eos_token": next(iter(special))}
    if bos:
      self.special_tokens_map["bos_token"] = bos
    self.digest = digest
    self.vocab_size = len(ranks) + len(special)
    self.eos = next(iter(special.values()))
    self._silent = frozenset(special.values())
    self._encoding = tiktoken.Encoding(
      name=digest[:12],
      pat_str=pattern,
      mergeable_ranks=ranks,
      special_tokens=special,
    )

  def encode(self, text: str) -> np.ndarray:
    if len(text) <= LONGEST:
      return self._encode(text)
    starts = range(0, len(text), LONGEST)
    return np.concatenate([self._encode(text[i : i + LONGEST]) for i in starts])

  def _encode(self, text: str) -> np.ndarray:
    # Into an array at once: half the time of a list of ids.
    ids = self._encoding.encode_to_numpy(text, disallowed_special=())
    return ids.view(np.int32)  # of uint32

  def tokenize(self, text: str) -> Tokenized:
    return around_special(text, self.special, self._with_offsets)

  def _with_offsets(self, text: str) -> Tokenized:
    ids = self.encode(text)
    lengths = [len(b) for b in self._encoding.decode_tokens_bytes(ids.tolist())]
    ends = np.cumsum([0, *lengths])  # in bytes
    content = np.frombuffer(text.encode(), np.uint8)
    character = np.cumsum(content & 0xC0 != 0x80) - 1  # of each byte
    starts, last = character[ends[:-1]], character[ends[1:] - 1]
    return Tokenized(ids, np.stack([starts, last + 1], axis=1))

  def decode(self, ids: Iterable[int]) -> str:
    return self._encoding.decode(
      [i for i in ids if i < self.vocab_size and i not in self._silent]
    )

  def files(self, sequence_length: int) -> dict[str, bytes]:
    from intellect_jax.data import tokenizer_json

    return tokenizer_json.files(self, sequence_length)


def around_special(
  text: str, special: dict[str, int], plain: Callable[[str], Tokenized]
) -> Tokenized:
  """Names of special tokens to their ids, and what stands between by `plain`."""
  ids, offsets = [np.empty(0, np.int32)], [np.empty((0, 2), np.int64)]

  def add(start: int, part: Tokenized) -> None:
    ids.append(part.ids)
    offsets.append(part.offsets + start)

  at = 0
  for match in any_of(tuple(special)).finditer(text):
    start, stop = match.span()
    if at < start:
      add(at, plain(text[at:start]))
    one = np.array([special[match.group()]], np.int32)
    add(start, Tokenized(one, np.array([[0, stop - start]])))
    at = stop
  if at < len(text):
    add(at, plain(text[at:]))
  return Tokenized(np.concatenate(ids), np.concatenate(offsets))


@functools.lru_cache(8)
def any_of(names: tuple[str, ...]) -> re.Pattern[str]:
  """Finds these names in a text, the longest first."""
  longest_first = sorted(names, key=len, reverse=True)
  return re.compile("|".join(map(re.escape, longest_first)))


@functools.cache
def _ranks() -> list[str]:
  return sources.read_shipped("tekken.tiktoken.xz").splitlines()
