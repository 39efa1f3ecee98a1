"""Rows of a long measurement, kept as they end: started again, it goes on."""

from collections.abc import Callable
import json
import pathlib
from typing import Any

from benchmarks import machine

Row = dict[str, Any]


class Rows:
  """Figures of runs, each with what it was about.

  Attributes:
    rows: in the order in which they were measured.
  """

  def __init__(self, path: str | None, summary: Callable[[list[Row]], Any]):
    """Takes what the file has; None: nothing is kept."""
    self._path = pathlib.Path(path) if path else None
    self._summary = summary
    self._machine = machine.describe()
    self.rows: list[Row] = []
    if self._path is not None and self._path.exists():
      self.rows = json.loads(self._path.read_text())["rows"]

  def has(self, about: Row) -> bool:
    """Whether there is a row of this."""
    return any(about.items() <= row.items() for row in self.rows)

  def add(self, row: Row) -> None:
    """Keeps a row, with the commit and the load that it was measured at."""
    commit = self._machine["commit"]
    self.rows.append(row | dict(commit=commit, load=machine.load()))
    if self._path is not None:
      summary = self._summary(self.rows)
      figures = dict(machine=self._machine, summary=summary, rows=self.rows)
      self._path.write_text(json.dumps(figures, indent=1) + "\n")
