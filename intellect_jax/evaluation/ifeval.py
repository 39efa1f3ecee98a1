"""What IFEval takes beside its packages: NLTK's model of English sentences.

Two of its 25 kinds of instructions are checked with it, the others need nothing.
The harness fetches it when it loads the task. With data of this machine nothing
is fetched: it is looked for in DATA/nltk_data, and where NLTK looks, and missed
before an answer is written.
"""

from collections.abc import Iterable, Iterator
import contextlib
import os
import pathlib
from typing import Any

from intellect_jax.errors import UserError

KINDS = (
  "change_case:capital_word_frequency",
  "length_constraints:number_sentences",
)
_FIELD = "instruction_id_list"
_MODEL = "tokenizers/punkt_tab/english/"
_NO_DOWNLOAD = (
  "LOCAL_RANK"  # the harness fetches it where this is 0, or not set
)


@contextlib.contextmanager
def offline(data: pathlib.Path) -> Iterator[None]:
  """While tasks are loaded: nothing is fetched, and `data` is looked at too."""
  import nltk  # pyright: ignore[reportMissingImports]

  own = str(data.absolute() / "nltk_data")
  if own not in nltk.data.path:
    nltk.data.path.insert(0, own)
  before = os.environ.get(_NO_DOWNLOAD)
  os.environ[_NO_DOWNLOAD] = "1"
  try:
    yield
  finally:
    del os.environ[_NO_DOWNLOAD]
    if before is not None:
      os.environ[_NO_DOWNLOAD] = before


def check(tasks: Iterable[Any], data: pathlib.Path | None) -> None:
  """Sees that answers to these tasks can be checked, before any is written.

  Args:
    tasks: of the harness, loaded; those of IFEval are known by their fields.
    data: folder of their data, for what is said.

  Raises:
    UserError: if NLTK's model is wanted and is not here.
  """
  asked = [kinds for task in tasks for kinds in _instructions(task)]
  missed = sum(not set(KINDS).isdisjoint(kinds) for kinds in asked)
  if missed and not _is_here():
    folder = pathlib.Path("FOLDER") if data is None else data
    raise UserError(
      f"{missed} of IFEval's {len(asked)} questions want"
      f" {' or '.join(KINDS)}, which are checked with NLTK's punkt_tab, and that"
      " is not here. Fetch it where there is internet, python -m"
      f" nltk.downloader -d {folder}/nltk_data punkt_tab, and pass"
      f" --data={folder}; or leave those questions out."
    )


def _instructions(task: Any) -> list[list[str]]:
  """The kinds that each question of a task asks for; none: not of IFEval."""
  # As they are: the harness may process questions at random, as those of GPQA.
  questions: Any = (task.dataset or {}).get(task.config.test_split)
  named = getattr(questions, "column_names", ())
  return questions[_FIELD] if _FIELD in named else []


def _is_here() -> bool:
  import nltk  # pyright: ignore[reportMissingImports]

  try:
    nltk.data.find(_MODEL)
  except LookupError:
    return False
  return True
