"""Who an island is, across its processes: kept in its workdir."""

import dataclasses
import fcntl
import json
import os
import pathlib
import socket

from intellect_jax.errors import UserError

_FILE = "identity.json"


class Identity:
  """The island of one workdir; one process at a time holds it.

  Attributes:
    workdir: what it holds.
    island: its name, unique in the run.
    incarnation: counts the processes that began to join a run from this workdir.
    process: random bytes of this process, so that a copied workdir shows.
    run_id: of the run that the workdir belongs to; empty before it joined.
    term: the highest coordinator's term that it has seen.
  """

  def __init__(self, workdir: pathlib.Path, name: str):
    """Takes the workdir; `name` counts when it is new.

    Raises:
      UserError: if another process holds it, or it has another name.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    self.workdir = workdir
    self._path = workdir / _FILE
    self._lock = open(workdir / "lock", "w")  # noqa: SIM115, held until close
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._lock.close()
      raise UserError(
        f"Another process works in {workdir}. End it first, or choose another"
        " --workdir."
      ) from error
    known = _saved(self._path)
    if name and known.island not in ("", name):
      self._lock.close()
      raise UserError(
        f"The workdir {workdir} belongs to island {known.island!r}, but"
        f" --config.island.name is {name!r}. Choose another --workdir."
      )
    default = f"{socket.gethostname()}-{os.getpid()}"
    self._saved = dataclasses.replace(
      known,
      island=known.island or name or default,
      incarnation=known.incarnation + 1,
    )
    self.process = os.urandom(16)

  @property
  def island(self) -> str:
    return self._saved.island

  @property
  def incarnation(self) -> int:
    return self._saved.incarnation

  @property
  def run_id(self) -> str:
    return self._saved.run_id

  @property
  def term(self) -> int:
    return self._saved.term

  def check_run(self, run_id: str) -> None:
    """Raises UserError if the workdir belongs to another run."""
    if self.run_id not in ("", run_id):
      raise UserError(
        f"The workdir {self.workdir} belongs to run {self.run_id}, but the"
        f" coordinator leads run {run_id}. Choose another --workdir."
      )

  def joins(self) -> None:
    """This process is about to say hello: no later one has its incarnation."""
    self._save()

  def refused(self) -> None:
    """It was turned away at the door: as if it had never been started."""
    self._saved = dataclasses.replace(
      self._saved, incarnation=self._saved.incarnation - 1
    )
    self._save()

  def joined(self, run_id: str) -> None:
    """Remembers the run that this workdir belongs to."""
    self._saved = dataclasses.replace(self._saved, run_id=run_id)
    self._save()

  def saw_term(self, term: int) -> None:
    """Remembers the highest term; lower ones are no longer obeyed."""
    term = max(term, self.term)
    self._saved = dataclasses.replace(self._saved, term=term)
    self._save()

  def close(self) -> None:
    self._lock.close()

  def _save(self) -> None:
    partial = self._path.with_suffix(".partial")
    with open(partial, "w") as file:
      json.dump(dataclasses.asdict(self._saved), file)
      file.flush()
      os.fsync(file.fileno())
    partial.rename(self._path)
    folder = os.open(self.workdir, os.O_RDONLY)
    try:  # or a power loss takes the name back, and with it the incarnation
      os.fsync(folder)
    finally:
      os.close(folder)


@dataclasses.dataclass(frozen=True)
class _Saved:
  island: str = ""
  incarnation: int = 0
  run_id: str = ""
  term: int = 0


def _saved(path: pathlib.Path) -> _Saved:
  return _Saved(**json.loads(path.read_text())) if path.exists() else _Saved()


def run_of(workdir: pathlib.Path) -> str:
  """The run that a workdir belongs to, whoever holds it; empty: none yet."""
  return _saved(workdir / _FILE).run_id
