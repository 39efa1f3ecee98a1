"""How models of `make instruct` answer: rightly, and politely?

  python experiments/answers.py --workdir=runs/instruct/sft \\
      --workdir=runs/instruct/dpo

Asks each the same questions, made as those of conversations.py with another
seed: numbers and single words it has met in training, of the questions about two
words hardly any. Answers are greedy.
"""

from collections.abc import Sequence
import pathlib
import random

from absl import flags
from conversations import POLITE, question, words
import rich.console
import rich.table

from intellect_jax import command
from intellect_jax import config as config_lib
from intellect_jax.inference.engine import GREEDY, Engine
from intellect_jax.inference.loading import Model, open_model
from intellect_jax.inference.text import answer

WORKDIR = flags.DEFINE_multi_string(
  "workdir", ["runs/instruct/sft", "runs/instruct/dpo"], "Of each model."
)
QUESTIONS = flags.DEFINE_integer("questions", 400, "Asked of each.", 1)
SEED = flags.DEFINE_integer("seed", 2, "Of the questions.")

_MOST = 24  # tokens of an answer
_PLAIN = "."


def answers(model: Model, asked: Sequence[str]) -> list[str]:
  """What the model says to each, the likeliest token after the other."""
  engine, said = Engine(model, slots=16), [""] * len(asked)
  for n, content in enumerate(asked):

    def done(text: str, why: str, n: int = n) -> None:
      said[n] = text

    prompt = model.template.prompt([dict(role="user", content=content)])
    stops = model.template.ends
    engine.add(
      answer(model, prompt.tolist(), _MOST, GREEDY, stops=stops, done=done)
    )
  engine.run()
  return said


def shares(asked: Sequence[tuple[str, str]], said: Sequence[str]) -> list[str]:
  """Of all right, of numbers and of words right, of all polite; in percent."""
  numbers, of_words, polite = [], [], []
  for (_, expected), text in zip(asked, said, strict=True):
    right = text in (expected + POLITE, expected + _PLAIN)
    (numbers if expected.isdigit() else of_words).append(right)
    polite.append(text.endswith(POLITE))
  kinds = numbers + of_words, numbers, of_words, polite
  return [f"{100 * sum(kind) / len(kind):.1f} %" for kind in kinds]


def main() -> None:
  rng, known = random.Random(SEED.value), words()
  asked = [question(rng, known) for _ in range(QUESTIONS.value)]
  table = rich.table.Table("model", box=None)
  for name in ("right", "numbers right", "words right", "polite"):
    table.add_column(name, justify="right")
  for folder in WORKDIR.value:
    model = open_model(pathlib.Path(folder), config_lib.base().island)
    said = answers(model, [content for content, _ in asked])
    table.add_row(folder, *shares(asked, said))
  rich.console.Console().print(table)


if __name__ == "__main__":
  command.run(main)
