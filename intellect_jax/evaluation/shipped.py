"""The few real questions of MMLU that come with the harness itself.

They are the examples of its chain-of-thought prompts: some five a subject, of
57. As data for its `mmlu` task they need no hub; they say that evaluation works,
and nothing about a model, for they are also what models are prompted with.
"""

from collections.abc import Iterator
import importlib.resources
import json
import pathlib
import re
from typing import Any

_FILE = "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
_EXAMPLES = 2  # of each subject; the others are asked
_ITEM = re.compile(
  r"(?P<question>.*?)\s+\(A\) (?P<A>.*?)\s+\(B\) (?P<B>.*?)\s+\(C\) (?P<C>.*?)"
  r"\s+\(D\) (?P<D>.*?)\s*\nA: .*answer is \((?P<answer>[A-D])\)",
  re.DOTALL,
)


def write_mmlu(data: pathlib.Path) -> int:
  """Writes them to a folder of data as `tasks` reads it; returns how many."""
  text = (importlib.resources.files("lm_eval") / _FILE).read_text()
  total = 0
  for subject, prompt in json.loads(text).items():
    items = list(_items(prompt))
    folder = data / "cais" / "mmlu" / subject
    folder.mkdir(parents=True)
    for split, part in (
      ("dev", items[:_EXAMPLES]),
      ("test", items[_EXAMPLES:]),
    ):
      lines = "".join(json.dumps(item) + "\n" for item in part)
      (folder / f"{split}.jsonl").write_text(lines)
    total += len(items[_EXAMPLES:])
  return total


def _items(prompt: str) -> Iterator[dict[str, Any]]:
  """The questions of a prompt in the fields of MMLU's data set."""
  for part in prompt.split("\n\nQ: ")[1:]:
    found = _ITEM.match(part)
    if found:
      yield dict(
        question=found["question"],
        choices=[found[letter] for letter in "ABCD"],
        answer="ABCD".index(found["answer"]),
      )
