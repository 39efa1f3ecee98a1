"""Evaluate: benchmarks of a trained model, by lm-evaluation-harness.

  python -m intellect_jax.evaluate --workdir=runs/demo/island-0 \\
      --tasks=hellaswag,arc_challenge --shots=10
  python -m intellect_jax.evaluate --workdir=llama --suite=intellect_1

The workdir is an island's, also while it trains, or a folder as export writes
it. The harness fetches data from its hub; with --data=FOLDER they come from
there (intellect_jax/evaluation/tasks.py says how it is laid out). A suite is
a fixed list of tasks, with INTELLECT-1's figures beside:

  intellect_1            INTELLECT-1's eight benchmarks, with its shots
  intellect_1_instruct   those of its Instruct model; wants --chat
  smoke                  real questions of MMLU that come with the harness: 167,
                         too few to say how good a model is, enough to see that
                         all works

It takes the extra eval: pip install 'intellect_jax[eval]'.
"""

import contextlib
import pathlib
import tempfile
from typing import Any

from absl import flags
from ml_collections import ConfigDict
import rich.console

from intellect_jax import command
from intellect_jax.errors import UserError, not_installed
from intellect_jax.evaluation.suites import SUITES, Benchmark
from intellect_jax.inference.loading import Model, open_model

CONFIG = command.define_config()
WORKDIR = command.define_model_folder()
DTYPE, CONTEXT = command.define_model_use()
TASKS = flags.DEFINE_list("tasks", [], "Names of the harness's tasks, groups.")
SUITE = flags.DEFINE_string("suite", None, "A fixed list of tasks, see above.")
SHOTS = flags.DEFINE_integer(
  "shots", None, "Examples before each question; none: as the task says.", 0
)
DATA = flags.DEFINE_string("data", None, "Folder with data sets; none: hub.")
LIMIT = flags.DEFINE_integer(
  "limit", None, "Questions of each task, to try.", 1
)
CHAT = flags.DEFINE_bool("chat", False, "Ask by the model's chat template.")
CACHE = flags.DEFINE_string(
  "cache",
  None,
  "Begins the name of a file of answers, one for each model: what it has is not"
  " computed again.",
)
OUTPUT = command.define_output("File for all figures, JSON.", required=False)
BATCH_TOKENS = flags.DEFINE_integer(
  "batch_tokens", 8192, "Tokens that are scored at once, about.", 1
)
SLOTS = flags.DEFINE_integer(
  "slots", 16, "Answers written at once.", 1, allow_override=True
)


def main() -> None:
  if bool(TASKS.value) == bool(SUITE.value):
    raise UserError("Pass either --tasks=NAME,NAME… or --suite=NAME.")
  island = command.island_of(CONFIG)
  with contextlib.ExitStack() as stack:
    try:
      evaluate(island, stack)
    except ImportError as error:
      raise not_installed("evaluate", error.name, "eval") from None


def evaluate(island: ConfigDict, stack: contextlib.ExitStack) -> None:
  """Evaluates what the flags name, and prints a table."""
  from lm_eval.evaluator import (  # pyright: ignore[reportMissingImports]
    simple_evaluate,
  )
  from lm_eval.tasks import (  # pyright: ignore[reportMissingImports]
    TaskManager,
  )

  from intellect_jax.evaluation import report, shipped, tasks
  from intellect_jax.evaluation.harness import HarnessModel

  suite = _suite()
  wanted = [(name, SHOTS.value) for name in TASKS.value]
  wanted += [(benchmark.task, benchmark.shots) for benchmark in suite]
  data = command.path(DATA) if DATA.value else None
  if SUITE.value == "smoke":
    data = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    shipped.write_mmlu(data)
  manager = TaskManager()
  chosen = tasks.load(manager, wanted, data)
  model = open_model(command.path(WORKDIR), island, DTYPE.value, CONTEXT.value)
  results: Any = simple_evaluate(
    HarnessModel(model, BATCH_TOKENS.value, SLOTS.value),
    tasks=chosen,
    task_manager=manager,
    limit=LIMIT.value,
    use_cache=_cache(model),
    apply_chat_template=CHAT.value,
    log_samples=False,
  )
  if suite:
    table = report.suite_table(results, suite, model.name)
  else:
    table = report.task_table(results, model.name)
  rich.console.Console().print(table)
  if OUTPUT.value:
    report.write(command.path(OUTPUT), results)


def _suite() -> tuple[Benchmark, ...]:
  """The suite of the flag, or none."""
  if not SUITE.value:
    return ()
  if SUITE.value not in SUITES:
    raise UserError(
      f"There is no --suite={SUITE.value}; there are {', '.join(SUITES)}."
    )
  return SUITES[SUITE.value]


def _cache(model: Model) -> str | None:
  """The file of answers; what is computed in another way is another answer."""
  if not CACHE.value:
    return None
  kind = f"{model.digest[:16]}-{model.c.dtype}-{model.context}"
  return f"{command.path(CACHE)}-{kind}"


if __name__ == "__main__":
  command.run(main)
