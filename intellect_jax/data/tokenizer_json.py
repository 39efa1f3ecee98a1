"""A tokenizer as Hugging Face's `tokenizers` reads it: tokenizer.json.

tiktoken joins, of all neighbours whose bytes together are a token, the pair of
the lowest rank; `tokenizers` wants those pairs listed. So each way to cut a
token in two tokens is a merge, in the order of the token's rank.
"""

import json
from typing import Any

from intellect_jax.data.tokenizer import EOS, RankTokenizer


def tokenizer_json(tokenizer: RankTokenizer) -> dict[str, Any]:
  """The tokenizer.json that gives the ids of `tokenizer`.

  Only the text of a special name, such as "<eos>", differs: here it is that
  id, unless split_special_tokens is set; in training it was letters.
  """
  letters = _letters()
  text = {
    token: "".join(letters[byte] for byte in token) for token in tokenizer.ranks
  }
  merges = [
    (text[token[:cut]], text[token[cut:]])
    for token in sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
    for cut in range(1, len(token))
    if token[:cut] in text and token[cut:] in text
  ]
  return dict(
    version="1.0",
    truncation=None,
    padding=None,
    added_tokens=[
      dict(
        id=number,
        content=name,
        special=True,
        normalized=False,
        single_word=False,
        lstrip=False,
        rstrip=False,
      )
      for name, number in tokenizer.special.items()
    ],
    normalizer=None,
    pre_tokenizer=dict(
      type="Sequence",
      pretokenizers=[
        dict(
          type="Split",
          pattern=dict(Regex=tokenizer.pattern),
          behavior="Isolated",
          invert=False,
        ),
        dict(
          type="ByteLevel",
          add_prefix_space=False,
          trim_offsets=True,
          use_regex=False,
        ),
      ],
    ),
    post_processor=None,
    decoder=dict(
      type="ByteLevel",
      add_prefix_space=False,
      trim_offsets=True,
      use_regex=False,
    ),
    model=dict(
      type="BPE",
      dropout=None,
      unk_token=None,
      continuing_subword_prefix=None,
      end_of_word_suffix=None,
      fuse_unk=False,
      byte_fallback=False,
      ignore_merges=True,  # as tiktoken: a word that is a token stays whole
      vocab={text[token]: rank for token, rank in tokenizer.ranks.items()},
      merges=merges,
    ),
  )


def files(tokenizer: RankTokenizer, sequence_length: int) -> dict[str, bytes]:
  """Both files, by name."""
  config = tokenizer_config(sequence_length)
  config["eos_token"] = next(iter(tokenizer.special))
  return {
    "tokenizer.json": _bytes(tokenizer_json(tokenizer)),
    "tokenizer_config.json": _bytes(config),
  }


def _bytes(content: dict[str, Any]) -> bytes:
  return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def tokenizer_config(sequence_length: int) -> dict[str, Any]:
  """The tokenizer_config.json beside it."""
  return dict(
    tokenizer_class="PreTrainedTokenizerFast",
    eos_token=EOS,
    model_max_length=sequence_length,
    clean_up_tokenization_spaces=False,
  )


def _letters() -> list[str]:
  """The printable letter that stands for each byte (GPT-2's table)."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  letters = {byte: chr(byte) for byte in printable}
  letters |= {byte: chr(256 + i) for i, byte in enumerate(others)}
  return [letters[byte] for byte in range(256)]
