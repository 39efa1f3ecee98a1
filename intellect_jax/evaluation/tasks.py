"""The harness's tasks, with data from its hub or from files of this machine.

A folder of data has, for each data set, what the hub has under its name, as
JSON, an object a line: DATA/cais/mmlu/anatomy/test.jsonl, .../dev.jsonl,
DATA/Rowan/hellaswag/validation.jsonl. Names of data sets, their parts and their
fields stand in the harness's tasks/*/*.yaml: dataset_path, dataset_name, splits.
"""

from collections.abc import Iterable, Iterator
import contextlib
import json
import pathlib
from typing import Any

import datasets  # pyright: ignore[reportMissingImports]
from lm_eval.api.group import Group  # pyright: ignore[reportMissingImports]
from lm_eval.api.task import (  # pyright: ignore[reportMissingImports]
  ConfigurableTask,
)
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
from lm_eval.tasks._factory import (  # pyright: ignore[reportMissingImports]
  TaskFactory,
)

from intellect_jax.errors import UserError
from intellect_jax.evaluation import ifeval


def load(
  manager: TaskManager,
  wanted: Iterable[tuple[str, int | None]],
  data: pathlib.Path | None,
) -> list[Any]:
  """The harness's Task or Group of each of these names.

  Args:
    manager: knows what there is.
    wanted: names, and how many examples stand before each question; None: as
      many as the task says.
    data: folder with their data; None: the hub has them.

  Raises:
    UserError: if there is no such task, or no data, or not what it takes to
      check answers.
  """
  found: list[Any] = []
  for name, shots in wanted:
    if name not in manager.task_index:
      raise UserError(
        f"--tasks names {name!r}, which lm-evaluation-harness does not have."
        " `lm_eval ls tasks` lists its tasks, groups and tags."
      )
    overrides: dict[str, Any] = {} if shots is None else dict(num_fewshot=shots)
    if data is not None:
      overrides["class"] = _local(data)
    with ifeval.offline(data) if data else contextlib.nullcontext():
      built = TaskFactory().build(
        manager.task_index[name],
        overrides=overrides,
        registry=manager.task_index,
      )
    found += built if isinstance(built, list) else [built]
  ifeval.check(_leaves(found), data)
  return found


def _leaves(found: Iterable[Any]) -> Iterator[ConfigurableTask]:
  for each in found:
    if isinstance(each, Group):
      yield from each.get_all_tasks()
    else:
      yield each


def _local(data: pathlib.Path) -> type[ConfigurableTask]:
  class LocalTask(ConfigurableTask):
    """A task of the harness whose data are files in `data`."""

    def __init__(self, config: dict[str, Any]):
      config = {k: v for k, v in config.items() if k != "class"}
      super().__init__(config=config)

    def download(self, dataset_kwargs=None, **kwargs) -> None:
      self.dataset = _read(
        data.joinpath(str(self.DATASET_PATH), self.DATASET_NAME or ""),
        self.task_name,
      )

  return LocalTask


def _read(folder: pathlib.Path, task: str) -> datasets.DatasetDict:
  files = sorted(folder.glob("*.jsonl"))
  if not files:
    raise UserError(
      f"There are no data for {task}: --data wants them, as JSON with an object"
      f" a line, in {folder}/SPLIT.jsonl, where SPLIT is test, validation or"
      " what the task's yaml file says."
    )
  return datasets.DatasetDict(
    {file.stem: datasets.Dataset.from_list(list(_rows(file))) for file in files}
  )


def _rows(file: pathlib.Path) -> Iterable[dict[str, Any]]:
  with file.open() as lines:
    for number, line in enumerate(lines, 1):
      try:
        yield json.loads(line)
      except ValueError as error:
        raise UserError(
          f"Line {number} of {file} is no JSON: {error}."
        ) from None
