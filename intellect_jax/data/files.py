"""Files that a source is read from: on this machine, or by an fsspec URL."""

from collections.abc import Sequence
import fnmatch
import os
import pathlib
from typing import Any, BinaryIO, NamedTuple

from intellect_jax.errors import UserError


class File(NamedTuple):
  """A file of some input.

  Attributes:
    url: path, or fsspec URL such as s3://bucket/key.
    name: its path below the input: what stays when a folder is moved.
    size: in bytes.
  """

  url: str
  name: str
  size: int


def is_remote(url: str) -> bool:
  return "://" in url


def find(inputs: Sequence[str], pattern: str = "*") -> list[File]:
  """Returns the files of all inputs, each input's sorted by name.

  Args:
    inputs: files, folders (with all that is below them), or URLs of such.
      Files and folders whose names begin with a dot are left out.
    pattern: shell pattern of the names (without folders) to take.

  Raises:
    UserError: if an input is not there or has no such file.
  """
  found = []
  for given in inputs:
    files = _remote(given) if is_remote(given) else _local(given)
    kept = [
      file
      for file in sorted(files, key=lambda file: file.name)
      if fnmatch.fnmatch(os.path.basename(file.name), pattern)
    ]
    if not kept:
      raise UserError(
        f"There is no file that matches {pattern!r} in --input={given}."
      )
    found += kept
  return found


def _local(given: str) -> list[File]:
  path = pathlib.Path(given).expanduser().absolute()
  if path.is_file():
    return [File(str(path), path.name, path.stat().st_size)]
  if not path.is_dir():
    raise UserError(f"There is no file or folder --input={given}.")
  return [
    File(str(file), str(file.relative_to(path)), file.stat().st_size)
    for file in path.rglob("*")
    if file.is_file() and not _hidden(file.relative_to(path).parts)
  ]


def _remote(given: str) -> list[File]:
  files, path = file_system(given)
  try:
    if files.isfile(path):
      size = int(files.size(path) or 0)
      return [File(given, path.rpartition("/")[2], size)]
    listed = files.find(path, detail=True)
  except (OSError, ValueError) as error:
    raise UserError(f"--input={given} cannot be listed: {error!r}") from error
  if not listed:
    raise UserError(f"There is no file or folder --input={given}.")
  root = path.rstrip("/") + "/"
  return [
    File(files.unstrip_protocol(name), name.removeprefix(root), info["size"])
    for name, info in listed.items()
    if not _hidden(name.removeprefix(root).split("/"))
  ]


def _hidden(parts: Sequence[str]) -> bool:
  return any(part.startswith(".") for part in parts)


def file_system(url: str) -> tuple[Any, str]:
  """The fsspec file system of a URL, and the path in it.

  Raises:
    UserError: if its scheme is unknown or its package is not installed.
  """
  try:
    import fsspec

    return fsspec.core.url_to_fs(url)
  except (ImportError, ValueError) as error:
    raise UserError(
      f"{url} cannot be opened: {error}. What it takes is in the extra"
      " `remote`: pip install 'intellect_jax[remote]', from a checkout"
      " '.[remote]'."
    ) from error


def open_file(url: str) -> BinaryIO:
  """Opens a file for reading, anywhere in it."""
  if not is_remote(url):
    return open(url, "rb")
  files, path = file_system(url)
  return files.open(path, "rb")
