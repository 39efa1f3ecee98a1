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
import os
import pathlib
import tempfile
from typing import Any

from absl import flags
import rich.console

from intellect_jax import command
from intellect_jax.errors import UserError

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
  "cache", None, "File of answers: what it has is not computed again."
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
  # Logs of the harness's libraries, as TensorFlow's, come while they load.
  os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
  with contextlib.ExitStack() as stack:
    try:
      evaluate(island, stack)
    except ImportError as error:
      raise UserError(
        f"evaluate takes the package {error.name}: pip install"
        " 'intellect_jax[eval]', from a checkout '.[eval]'."
      ) from None


def evaluate(island, stack: contextlib.ExitStack) -> dict[str, Any]:
  """Evaluates what the flags name, prints a table; returns all results."""
  from lm_eval.evaluator import (  # pyright: ignore[reportMissingImports]
    simple_evaluate,
  )
  from lm_eval.tasks import (  # pyright: ignore[reportMissingImports]
    TaskManager,
  )

  from intellect_jax.evaluation import report, shipped, tasks
  from intellect_jax.evaluation.harness import HarnessModel
  from intellect_jax.evaluation.suites import SUITES
  from intellect_jax.inference.loading import open_model

  benchmarks, data = (), command.path(DATA) if DATA.value else None
  wanted = [(name, SHOTS.value) for name in TASKS.value]
  if SUITE.value:
    if SUITE.value not in SUITES:
      raise UserError(
        f"There is no --suite={SUITE.value}; there are {', '.join(SUITES)}."
      )
    benchmarks = SUITES[SUITE.value]
    wanted = [(b.task, b.shots) for b in benchmarks]
  if SUITE.value == "smoke":
    data = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    shipped.write_mmlu(data)
  manager = TaskManager()
  model = open_model(command.path(WORKDIR), island, DTYPE.value, CONTEXT.value)
  results: Any = simple_evaluate(
    HarnessModel(model, BATCH_TOKENS.value, SLOTS.value),
    tasks=tasks.load(manager, wanted, data),
    task_manager=manager,
    limit=LIMIT.value,
    use_cache=CACHE.value,
    apply_chat_template=CHAT.value,
    log_samples=False,
  )
  assert results is not None
  if benchmarks:
    table = report.suite_table(results, benchmarks, model.name)
  else:
    table = report.task_table(results, model.name)
  rich.console.Console().print(table)
  if OUTPUT.value:
    report.write(command.path(OUTPUT), results)
  return results


if __name__ == "__main__":
  command.run(main)
