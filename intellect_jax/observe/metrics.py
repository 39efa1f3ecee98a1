"""Figures on disk: metrics.jsonl while a command runs, summary.json at its end.

Both are plain JSON, with null where a figure is not finite.
"""

from collections.abc import Mapping
import json
import math
import mmap
import os
import pathlib
import time
from typing import Any

from absl import logging


class MetricsLog:
  """Appends events to a file, one JSON object a line."""

  def __init__(self, path: str | os.PathLike[str]):
    """Opens or makes the file; a line that a killed process tore is cut off."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _cut_torn_line(path)
    # Unbuffered: a line is one write, and a killed process leaves whole lines.
    self._file = open(path, "ab", buffering=0)  # noqa: SIM115
    self._failing = False

  def write(self, event: Mapping[str, Any]) -> None:
    """Appends an event; `time`, in unix seconds, is added if it has none.

    A disk that is full costs the event, and says so once.
    """
    text = json.dumps(_plain({"time": time.time(), **event}), allow_nan=False)
    line = text.encode() + b"\n"
    before = os.fstat(self._file.fileno()).st_size
    try:
      if self._file.write(line) < len(line):
        raise OSError("the disk took a part of a line")
      self._failing = False
    except OSError as error:
      os.ftruncate(self._file.fileno(), before)
      if not self._failing:
        logging.error("Events are missing in %s: %s", self._file.name, error)
      self._failing = True

  def close(self) -> None:
    self._file.close()

  def __enter__(self) -> "MetricsLog":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The events of a file that may still be written to: its whole lines."""
  whole, _, _ = pathlib.Path(path).read_bytes().rpartition(b"\n")
  return [json.loads(line) for line in whole.splitlines()]


def write_summary(
  path: str | os.PathLike[str], summary: Mapping[str, Any]
) -> None:
  """Writes a summary whole or not at all, indented for human eyes."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".partial")
  text = json.dumps(_plain(summary), indent=2, allow_nan=False)
  with open(partial, "w") as file:
    file.write(text + "\n")
    file.flush()
    os.fsync(file.fileno())
  partial.replace(path)


def _cut_torn_line(path: pathlib.Path) -> None:
  if not path.is_file() or path.stat().st_size == 0:
    return
  with open(path, "r+b") as file:
    with mmap.mmap(file.fileno(), 0) as content:
      whole = content.rfind(b"\n") + 1
    file.truncate(whole)


def _plain(value: Any) -> Any:
  """As JSON can hold it: numpy and JAX scalars too, not finite is None."""
  if isinstance(value, Mapping):
    return {str(key): _plain(v) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if hasattr(value, "item"):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
