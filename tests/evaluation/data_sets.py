"""Made-up rows in the fields of real data sets, as a folder for --data."""

import json
import pathlib
import random
from typing import Any

from intellect_jax.data import sources
from intellect_jax.evaluation import shipped

_RNG = random.Random(0)
_TEXT = sources.documents()[0].split()


def words(most: int = 6) -> str:
  start = _RNG.randrange(len(_TEXT) - most)
  return " ".join(_TEXT[start : start + _RNG.randint(2, most)])


def write(data: pathlib.Path, manager: Any) -> None:
  """All that the suite intellect_1 asks for; of MMLU, real questions."""
  shipped.write_mmlu(data)
  for name, splits, row in (
    ("Rowan/hellaswag", dict(train=12, validation=3), _hellaswag),
    ("allenai/ai2_arc/ARC-Challenge", dict(train=30, test=3), _arc),
    ("Idavidrein/gpqa/gpqa_main", dict(train=3), _gpqa),
    ("openai/gsm8k/main", dict(train=8, test=2), _gsm8k),
    ("truthfulqa/truthful_qa/multiple_choice", dict(validation=3), _truthful),
    ("allenai/winogrande/winogrande_xl", dict(train=8, validation=3), _wino),
  ):
    for split, count in splits.items():
      _write(data / name / f"{split}.jsonl", [row() for _ in range(count)])
  for task, choices in _bbh(manager):
    row = dict(input=words(), target=choices[-1])
    _write(data / "SaylorTwift" / "bbh" / task / "test.jsonl", [row])


def _write(file: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _hellaswag():
  return dict(
    activity_label=words(),
    ctx_a=words(),
    ctx_b=words(),
    endings=[words() for _ in range(4)],
    label=str(_RNG.randrange(4)),
  )


def _arc():
  choices = dict(text=[words() for _ in range(4)], label=list("ABCD"))
  return dict(question=words(), choices=choices, answerKey=_RNG.choice("ABCD"))


def _gpqa():
  wrong = {f"Incorrect Answer {n}": words() for n in (1, 2, 3)}
  return {"Question": words(), "Correct Answer": words(), **wrong}


def _gsm8k():
  return dict(question=words(), answer=f"{words()}\n#### {_RNG.randrange(99)}")


def _truthful():
  targets = dict(choices=[words() for _ in range(3)], labels=[1, 0, 0])
  return dict(question=words(), mc1_targets=targets, mc2_targets=targets)


def _wino():
  return dict(
    sentence=f"{words()} _ {words()}",
    option1=words(2),
    option2=words(2),
    answer=_RNG.choice("12"),
  )


def _bbh(manager: Any):
  """Names of the parts, and the choices that the harness gives in each."""
  from lm_eval.tasks._yaml_loader import (  # pyright: ignore[reportMissingImports]
    load_yaml,
  )

  for name, entry in manager.task_index.items():
    if name.startswith("leaderboard_bbh_") and entry.yaml_path:
      config = load_yaml(entry.yaml_path, resolve_func=False)
      if "doc_to_choice" in config:
        yield config["dataset_name"], config["doc_to_choice"]
