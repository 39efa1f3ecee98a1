"""Text to token ids and back, for vocabularies of any size up to 32,768.

Byte-pair merges are ranked in the order in which they were learned, so the
first n ranks are themselves a vocabulary, and small vocabularies share their
ids with large ones. The shortest, the 256 bytes, is the byte-level tokenizer.
"""

import base64
from collections.abc import Iterable
import functools
import hashlib
import itertools

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


def make_tokenizer(name: str) -> "Tokenizer":
  """Returns the tokenizer that `run.data.tokenizer` names.

  Args:
    name: "byte", or "bpe:N" for N token ids in all.

  Raises:
    UserError: if it is neither, or N is out of range.
  """
  kind, _, size = name.partition(":")
  if name == "byte":
    return Tokenizer(BYTES + 1)
  if kind == "bpe" and size.isdecimal() and BYTES < int(size) <= LARGEST:
    return Tokenizer(int(size))
  raise UserError(
    f"run.data.tokenizer is {name!r}, but must be 'byte', or 'bpe:N' with N"
    f" from {BYTES + 1} to {LARGEST}. Change it in the config file or with"
    " --config.run.data.tokenizer=…"
  )


def tokenizer_of(run: ConfigDict) -> "Tokenizer":
  """Returns the tokenizer of a run, all of whose ids its model can hold.

  Raises:
    UserError: if there is no such tokenizer, or the vocabulary is too small.
  """
  tokenizer = make_tokenizer(run.data.tokenizer)
  if run.model.vocab_size < tokenizer.vocab_size:
    raise UserError(
      f"run.model.vocab_size is {run.model.vocab_size}, but tokenizer"
      f" {run.data.tokenizer!r} has {tokenizer.vocab_size} ids. Make it at"
      " least that, or choose a smaller tokenizer with"
      " --config.run.data.tokenizer=…"
    )
  return tokenizer


class Tokenizer:
  """The first `vocab_size` - 1 ranks of Tekken, and `eos` as the last id.

  Attributes:
    vocab_size: number of ids; a model may have more, but not fewer.
    eos: the id that ends every document; no text encodes to it.
    ranks: the id of each run of bytes that has one, all but eos.
    digest: hex SHA-256 over all that determines the ids. Two islands with
      different digests must not train together.
  """

  def __init__(self, vocab_size: int):
    lines = _ranks()[: vocab_size - 1]
    self.vocab_size = vocab_size
    self.eos = vocab_size - 1
    self.digest = hashlib.sha256(
      "\n".join([PATTERN, *lines]).encode()
    ).hexdigest()
    self.ranks = {
      base64.b64decode(token): int(rank)
      for token, rank in map(str.split, lines)
    }
    self._encoding = tiktoken.Encoding(
      name=f"tekken-{vocab_size}",
      pat_str=PATTERN,
      mergeable_ranks=self.ranks,
      special_tokens={EOS: self.eos},
    )

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of `text`, [tokens] int32, without an eos."""
    pieces = [text[i : i + LONGEST] for i in range(0, len(text), LONGEST)]
    ids = map(self._encoding.encode_ordinary, pieces)
    return np.fromiter(itertools.chain.from_iterable(ids), np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of `ids`; bytes that are no UTF-8 become U+FFFD.

    Ids without bytes, which are eos and the padding of a larger model's
    vocabulary, become nothing.
    """
    return self._encoding.decode([i for i in ids if i < self.eos])


@functools.cache
def _ranks() -> list[str]:
  return sources.read_shipped("tekken.tiktoken.xz").splitlines()
