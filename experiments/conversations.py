"""Make conversations and preferences that a small model can learn in minutes.

  make instruct        # this, then fine-tuning on both

Questions about numbers and words, asked and answered in a few turns; half of
the answers are polite. The preferences are for the polite ones. So after
supervised fine-tuning a model should answer rightly and now and then politely,
and after DPO rightly and politely, also what it was never asked before.

Writes talks.jsonl and pairs.jsonl into --output, and prepares both.
"""

from collections.abc import Iterator
import json
import pathlib
import random

from absl import app, flags

from intellect_jax.data import sources
from intellect_jax.data.preparation import Preparation, Settings
from intellect_jax.data.readers import Fields

OUTPUT = flags.DEFINE_string("output", "runs/instruct", "Folder to write to.")
TALKS = flags.DEFINE_integer("talks", 20_000, "Conversations.")
PAIRS = flags.DEFINE_integer("pairs", 6_000, "Preferences.")

TOKENIZER = "bpe:2048"
HELD_OUT = 0.02
POLITE = ", with pleasure."
WORDS = 300


def words() -> list[str]:
  """The commonest short words of the shipped text that are one id each."""
  counts: dict[str, int] = {}
  for document in sources.documents():
    for word in document.split():
      if word.isascii() and word.isalpha() and word.islower():
        counts[word] = counts.get(word, 0) + 1
  usual = sorted(
    (w for w in counts if 3 <= len(w) <= 7), key=counts.__getitem__
  )
  return usual[-WORDS:]


def question(rng: random.Random, known: list[str]) -> tuple[str, str]:
  """A question and its answer."""
  kind = rng.randrange(4)
  if kind < 2:
    number = rng.randrange(1, 99)
    where, step = ("after", 1) if kind else ("before", -1)
    return f"Which number comes {where} {number}?", f"{number + step}"
  first, second = rng.sample(known, 2)
  if kind == 2:
    return f"Say {first}.", first
  return (
    f"Say {first} and {second} the other way round.",
    f"{second} and {first}",
  )


def talks(count: int, seed: int) -> Iterator[dict]:
  """Conversations of one to three questions."""
  rng, known = random.Random(seed), words()
  for _ in range(count):
    messages = []
    for _ in range(rng.randrange(1, 4)):
      asked, answer = question(rng, known)
      answer += POLITE if rng.random() < 0.5 else "."
      messages += [
        dict(role="user", content=asked),
        dict(role="assistant", content=answer),
      ]
    yield dict(messages=messages)


def pairs(count: int, seed: int) -> Iterator[dict]:
  """The polite answer is preferred."""
  rng, known = random.Random(seed), words()
  for _ in range(count):
    asked, answer = question(rng, known)
    yield dict(prompt=asked, chosen=f"{answer}{POLITE}", rejected=f"{answer}.")


def prepare(
  records: Iterator[dict], form: str, output: pathlib.Path, name: str
) -> None:
  """Writes the records and makes a source of them."""
  path = output / f"{name}.jsonl"
  with open(path, "w") as file:
    file.writelines(json.dumps(record) + "\n" for record in records)
  settings = Settings(TOKENIZER, Fields(form=form), held_out=HELD_OUT)
  preparation = Preparation([str(path)], settings, output / "prepared" / name)
  if not preparation.finished:
    preparation.run(0, lambda read: None)
    preparation.finish()
  print(f"{path}, and prepared from it: {output}/prepared/{name}")


def main(_) -> None:
  output = pathlib.Path(OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  prepare(talks(TALKS.value, 0), "chat", output, "talks")
  prepare(pairs(PAIRS.value, 1), "preference", output, "pairs")


if __name__ == "__main__":
  app.run(main)
