"""Train a byte-level BPE tokenizer on files: a Hugging Face tokenizer.json.

  python -m intellect_jax.data.train_tokenizer --input=texts/ \\
      --vocab_size=32000 --output=prepared/tokenizer.json

Reads what data.prepare reads, by the library `tokenizers` (extra `data`). The
same input gives the same file, on any machine.
"""

from collections.abc import Iterator, Sequence
import pathlib

from absl import flags, logging

from intellect_jax import command
from intellect_jax.data import files, readers
from intellect_jax.data.readers import Fields
from intellect_jax.data.tokenizer import BYTES, EOS, PATTERN
from intellect_jax.errors import UserError, not_installed

INPUT = command.define_input()
OUTPUT = command.define_output("File to write.")
VOCAB_SIZE = flags.DEFINE_integer(
  "vocab_size", 32_000, "Ids in all, 256 bytes and <eos> among them.", BYTES + 1
)
PATTERN_OF_NAMES = command.define_pattern()
FIELD = command.define_field()
SAMPLE_MB = flags.DEFINE_float(
  "sample_mb", 1000.0, "Text to learn from at most, 10^6 bytes.", 0.0
)

_CUT = 2**26  # bytes that are read at a time


def main() -> None:
  found = files.find(INPUT.value, PATTERN_OF_NAMES.value)
  output = command.path(OUTPUT)
  texts = sample(found, Fields(FIELD.value), SAMPLE_MB.value * 1e6)
  train(texts, VOCAB_SIZE.value, output)
  print(f"{output} has {VOCAB_SIZE.value:,} ids; {EOS} ends a document")


def sample(
  found: Sequence[files.File], fields: Fields, most: float
) -> Iterator[str]:
  """Yields documents: of each piece of the files as large a share.

  Args:
    found: the files.
    fields: how records are read.
    most: bytes in all, about.
  """
  share = min(1.0, most / max(1, sum(file.size for file in found)))
  for file in found:
    kind = readers.format_of(file.name)
    if kind == "tokens":
      raise UserError(f"{file.url} has ids: a tokenizer learns from text.")
    for piece in readers.cut(file, kind, fields, _CUT):
      for record in readers.read(piece, fields):
        if record.done > share * piece.size and share < 1:
          break
        if isinstance(record.document, str):
          yield record.document
        else:
          logging.warning(
            "Skipping %s, %s: %s", file.url, record.position, record.problem
          )


def train(texts: Iterator[str], vocab_size: int, output: pathlib.Path) -> None:
  """Learns merges within words, cut as those of the shipped tokenizer.

  Raises:
    UserError: if there is not text enough for so many ids.
  """
  try:
    # Here, because a run does without it.
    from tokenizers import (  # pyright: ignore[reportMissingImports]
      Regex,
      Tokenizer,
      decoders,
      models,
      pre_tokenizers,
      trainers,
    )
  except ImportError as error:
    raise not_installed("To train a tokenizer", error.name, "data") from error
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(PATTERN), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[EOS],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  if tokenizer.get_vocab_size() < vocab_size:
    raise UserError(
      f"The text has merges for {tokenizer.get_vocab_size()} ids, and"
      f" --vocab_size is {vocab_size}. Give more text, or ask for fewer ids."
    )
  output.parent.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(output))


if __name__ == "__main__":
  command.run(main)
