"""How fast text becomes batches: the pipeline alone, and its preparation.

  python -m benchmarks.data            # writes benchmarks/results/data.json
  python -m benchmarks.data --quick    # a few seconds, prints alone

Figures are of one process and of one core, by the clock and by processor time:
on a machine that others load too, look at the second.
"""

import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

from absl import app, flags

from benchmarks import machine
from intellect_jax import config as config_lib
from intellect_jax.data import sources
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.preparation import Preparation, Settings
from intellect_jax.data.tokenizer import make_tokenizer

QUICK = flags.DEFINE_bool("quick", False, "Less of everything.")
JSON = flags.DEFINE_string(
  "json",
  "",
  "File for the figures; empty: benchmarks/results/data.json, if not --quick.",
)

NEEDED = 50_000  # tokens/s that a large island trains on
TOKENIZER = "bpe:32000"
_TURNS = 5


def main(argv) -> None:
  del argv
  figures: dict[str, Any] = dict(machine=machine.describe())
  copies = 2 if QUICK.value else 12
  with tempfile.TemporaryDirectory() as folder:
    output = pathlib.Path(folder) / "prepared" / "docs"
    figures["prepare"] = prepare(pathlib.Path(folder), output, copies)
    figures["pipeline"] = [
      pipeline(output.parent, length, workers)
      for length in (1024, 8192)
      for workers in ((0,) if QUICK.value else (0, 2))
    ]
    figures["fed"] = fed(output.parent, 2.0 if QUICK.value else 20.0)
  figures["load_after"] = machine.load()
  text = json.dumps(figures, indent=1)
  print(text)
  path = JSON.value or ("" if QUICK.value else "benchmarks/results/data.json")
  if path:
    pathlib.Path(path).write_text(text + "\n")


def prepare(folder: pathlib.Path, output: pathlib.Path, copies: int) -> dict:
  """Prepares copies of the shipped text, beside the tokenizer alone on it.

  Both are timed in turns, in this process; the median of each, and
  of what a turn's two come to.
  """
  documents = sources.documents()
  lines = [json.dumps(dict(text=document)) for document in documents]
  path = folder / "docs.jsonl"
  path.write_text("\n".join(lines * copies))
  tokenizer = make_tokenizer(TOKENIZER)
  settings = Settings(TOKENIZER, held_out=0.05)
  size = copies * sum(len(document.encode()) for document in documents)
  alone, whole = [], []
  for attempt in range(_TURNS):
    began = time.process_time()
    for document in documents * copies:
      tokenizer.encode(document)
    alone.append(time.process_time() - began)
    target = output if attempt == 0 else folder / f"again-{attempt}"
    preparation = Preparation([str(path)], settings, target)
    began = time.process_time()
    preparation.run(0, lambda read: None)
    preparation.finish()
    whole.append(time.process_time() - began)
  shares = [a / w for a, w in zip(alone, whole, strict=True)]
  return dict(
    text_mb=size / 1e6,
    mb_per_second_a_core=size / 1e6 / statistics.median(whole),
    tokenizer_mb_per_second_a_core=size / 1e6 / statistics.median(alone),
    share_of_tokenizer=statistics.median(shares),
    shares=sorted(shares),
  )


def _index(folder: pathlib.Path, length: int, workers: int) -> GlobalIndex:
  config = config_lib.base()
  config.run.data.update(
    sources=("docs",), tokenizer=TOKENIZER, sequence_length=length
  )
  config.island.data.update(folder=str(folder), workers=workers)
  tokenizer = make_tokenizer(TOKENIZER)
  return GlobalIndex(config.run.data, tokenizer, config.island.data)


def pipeline(folder: pathlib.Path, length: int, workers: int) -> dict:
  """Tokens/s of batches of 8 that nobody does anything with."""
  index = _index(folder, length, workers)
  batches = (16_000_000 if not QUICK.value else 4_000_000) // (8 * length)
  stream = index.batches([(0, 8 * (batches + 1))], 8)
  next(stream)  # processes start once a window
  began, cpu = time.monotonic(), time.process_time()
  tokens = sum(batch["tokens"].size for batch in stream)
  return dict(
    sequence_length=length,
    workers=workers,
    tokens_per_second=tokens / (time.monotonic() - began),
    tokens_per_cpu_second=tokens / (time.process_time() - cpu)
    if not workers
    else None,
  )


def fed(folder: pathlib.Path, seconds: float) -> dict:
  """Share of the time that an island of 50k tokens/s waits for its batches.

  Steps are of 8 sequences of 1024, as long as they take at that rate; windows
  are of 100 steps, and each begins with a new stream.
  """
  index, step = _index(folder, 1024, 0), 8 * 1024 / NEEDED
  began, start = time.monotonic(), 0
  while time.monotonic() - began < seconds:
    for _ in index.batches([(start, start + 800)], 8):
      time.sleep(step)
      if time.monotonic() - began >= seconds:
        break
    start += 800
  waited = index.waited / (time.monotonic() - began)
  return dict(tokens_per_second=NEEDED, waiting_share=waited)


if __name__ == "__main__":
  app.run(main)
