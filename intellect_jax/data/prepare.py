"""Prepare a source: tokenize files once, for any number of runs.

  python -m intellect_jax.data.prepare --input=texts/ --tokenizer=bpe:32000 \\
      --output=prepared/texts

reads folders of text, .jsonl (also .gz and .zst), .parquet, .arrayrecord, and
flat files of tokens (.bin, .npy), from this machine or from s3://, gs:// and
hf:// URLs. Run it again after a kill and it goes on. Runs name the output's
folder in run.data.sources; docs/data.md has more.

Conversations and preferences, JSON as chat models are tuned with, become ids by
a chat template, and a note of which of them are the assistant's:

  … --form=chat --input=talks.jsonl          {"messages": [{"role", "content"}]}
  … --form=preference --input=pairs.jsonl    {"prompt", "chosen", "rejected"}
"""

import os
import pathlib

from absl import flags
import rich.console
import rich.progress

from intellect_jax import command
from intellect_jax.data.chat import read_template
from intellect_jax.data.conversations import FORMS
from intellect_jax.data.preparation import Done, Preparation, Settings
from intellect_jax.data.readers import FORMATS, Fields

INPUT = command.define_input()
OUTPUT = command.define_output(
  "Folder to write to; made if needed. Its name is the source's name."
)
TOKENIZER = flags.DEFINE_string(
  "tokenizer",
  "bpe:32000",
  "byte, bpe:N, or the path of a tokenizer's file (#TOKEN: the one that ends a"
  " document).",
)
FORMAT = flags.DEFINE_enum(
  "format", "", ["", *FORMATS], "Of all files; empty: by their names."
)
FORM = flags.DEFINE_enum(
  "form", "text", [*FORMS], "What the records are, and the source will be."
)
CHAT_TEMPLATE = flags.DEFINE_string(
  "chat_template",
  None,
  "File of Jinja, or a tokenizer_config.json with a template; none: one for any"
  " tokenizer.",
)
PATTERN = command.define_pattern()
FIELD = command.define_field()
DTYPE = flags.DEFINE_enum(
  "dtype", "uint16", ["uint16", "uint32"], "Of tokens in .bin files."
)
HELD_OUT = flags.DEFINE_float(
  "held_out", 0.005, "Fraction of the documents kept for evaluation.", 0.0, 1.0
)
PART_MB = flags.DEFINE_float(
  "part_mb",
  0.0,
  "Input that one process works through at a time, 10^6 bytes; 0: a 64th of all"
  " of it, from 4 to 268.",
  0.0,
)
MAX_BROKEN = flags.DEFINE_integer(
  "max_broken", 100, "Broken records to skip before it is an error.", 0
)
WORKERS = flags.DEFINE_integer(
  "workers", os.cpu_count() or 1, "Processes; 0: in this one.", 0
)


def main() -> None:
  output = command.path(OUTPUT)
  settings = Settings(
    TOKENIZER.value,
    Fields(text=FIELD.value, dtype=DTYPE.value, form=FORM.value),
    FORMAT.value,
    PATTERN.value,
    HELD_OUT.value,
    int(PART_MB.value * 1e6),
    MAX_BROKEN.value,
    _template(),
  )
  preparation = Preparation(INPUT.value, settings, output)
  if preparation.finished:
    print(f"{output} is prepared already.")
    return
  now = _run(preparation)
  prepared = preparation.finish()
  contents = prepared.contents
  print(
    f"{output}: {contents.count('train', 'tokens'):,} tokens to train on,"
    f" {contents.count('held_out', 'tokens'):,} held out, of"
    f" {preparation.done.documents:,} documents"
    f" ({preparation.done.broken:,} broken records skipped)"
  )
  if now.text_bytes:
    print(speed(now))
  print(f"digest {prepared.digest}")


def _template() -> str:
  if CHAT_TEMPLATE.value is None:
    return ""
  return read_template(pathlib.Path(CHAT_TEMPLATE.value).expanduser())


def _run(preparation: Preparation) -> Done:
  console = rich.console.Console(stderr=True)
  with rich.progress.Progress(
    "[progress.description]{task.description}",
    rich.progress.BarColumn(),
    rich.progress.DownloadColumn(),
    rich.progress.TransferSpeedColumn(),
    rich.progress.TimeElapsedColumn(),
    "ETA",
    rich.progress.TimeRemainingColumn(),
    console=console,
  ) as progress:
    task = progress.add_task(
      "tokenizing",
      total=preparation.input_bytes,
      completed=preparation.done_bytes,
    )
    return preparation.run(
      WORKERS.value, lambda read: progress.advance(task, read)
    )


def speed(done: Done) -> str:
  """How fast that was, beside the tokenizer's own speed."""
  if not done.timed_seconds:
    return f"{done.text_bytes / 1e6:.1f} MB of ids in {done.seconds:.1f} s"
  a_core = done.text_bytes / 1e6 / done.seconds
  alone = done.timed_bytes / 1e6 / done.timed_seconds
  return (
    f"{done.text_bytes / 1e6:.1f} MB of text in {done.seconds:.1f} s of a core:"
    f" {a_core:.1f} MB/s a core, {a_core / alone:.0%} of the tokenizer's own"
    f" {alone:.1f} MB/s"
  )


if __name__ == "__main__":
  command.run(main)
