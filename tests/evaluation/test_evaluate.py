"""The command, from names of tasks to a table, with no hub."""

import importlib
import json
import subprocess
import sys
from typing import Any

import data_sets
import numpy as np
import pytest
import rich.console

from intellect_jax import config as config_lib
from intellect_jax.errors import UserError
from intellect_jax.inference.loading import open_model

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

from intellect_jax.evaluation import report, tasks  # noqa: E402
from intellect_jax.evaluation.harness import HarnessModel  # noqa: E402
from intellect_jax.evaluation.suites import SUITES  # noqa: E402

HFLM: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
TaskManager: Any = importlib.import_module("lm_eval.tasks").TaskManager
simple_evaluate: Any = importlib.import_module(
  "lm_eval.evaluator"
).simple_evaluate

ROOM = 1024  # tokens: the suite's examples fit


@pytest.fixture(scope="module")
def manager():
  return TaskManager()


@pytest.fixture(scope="module")
def data(tmp_path_factory, manager):
  data = tmp_path_factory.mktemp("data")
  data_sets.write(data, manager)
  return data


def evaluate(lm, chosen, **more):
  results = simple_evaluate(
    lm, tasks=chosen, bootstrap_iters=0, log_samples=False, **more
  )
  return results


def test_the_suite_gives_the_figures_of_the_hf_model(folder, data, manager):
  """All of INTELLECT-1's benchmarks, and its own figures beside."""
  suite = SUITES["intellect_1"]
  wanted = [(b.task, b.shots) for b in suite]
  torch.set_num_threads(1)
  theirs = HFLM(
    str(folder), device="cpu", dtype="float32", max_length=ROOM, batch_size=4
  )
  model = open_model(folder, config_lib.base().island, context=ROOM)
  ours = HarnessModel(model)
  # Loaded for each: the harness's GPQA shuffles choices as it is loaded.
  results = [
    evaluate(lm, tasks.load(manager, wanted[1:], data), limit=2)
    for lm in (ours, theirs)
  ]
  mine, their = (r["results"] for r in results)
  assert mine.keys() == their.keys()
  for task in mine:
    for name, value in their[task].items():
      if isinstance(value, float):
        np.testing.assert_allclose(mine[task][name], value, atol=1e-3)
  shown = text_of(report.suite_table(results[0], suite[1:], "mine"))
  for benchmark in suite[1:]:
    assert benchmark.title in shown and f"{benchmark.figure:.2f}" in shown


def text_of(table):
  console = rich.console.Console(width=100)
  with console.capture() as capture:
    console.print(table)
  return capture.get()


def test_suites_name_what_the_harness_has(manager):
  names = {b.task for suite in SUITES.values() for b in suite}
  assert names <= manager.task_index.keys()
  assert [len(SUITES[name]) for name in ("intellect_1",)] == [8]


def test_the_smoke_test_asks_real_questions(folder, tmp_path):
  output = tmp_path / "figures.json"
  command = [
    *(sys.executable, "-m", "intellect_jax.evaluate", "--suite=smoke"),
    *(f"--workdir={folder}", f"--context={ROOM}", "--limit=1"),
    f"--output={output}",
  ]
  done = subprocess.run(command, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  assert "MMLU" in done.stdout
  results = json.loads(output.read_text())["results"]
  assert len(results) > 57 and 0 <= results["mmlu"]["acc,none"] <= 1
  assert "mmlu_anatomy" in results


def test_a_task_that_is_not_there_is_named(manager, data):
  with pytest.raises(UserError, match="'no_such_task'"):
    tasks.load(manager, [("no_such_task", None)], data)


def test_data_that_are_not_there_are_named(manager, tmp_path):
  with pytest.raises(UserError, match=r"Rowan/hellaswag/SPLIT\.jsonl"):
    tasks.load(manager, [("hellaswag", 0)], tmp_path)
