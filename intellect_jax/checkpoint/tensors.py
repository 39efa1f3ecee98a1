"""Safetensors, read and written a piece at a time.

A file is a length, a header in JSON (the dtype, shape and place of each
tensor), and the tensors' bytes end to end. So whoever knows the shapes can
write tensors of any size without ever holding one.

config.json                        the shape of the model
model.safetensors                  all tensors; or, of a large model,
model-00001-of-00003.safetensors   its parts, and
model.safetensors.index.json       which tensor is in which part
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import json
import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from intellect_jax.errors import UserError

CONFIG = "config.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
PIECE = 2**18  # values at a time: 1 MiB of float32, for the cache

_CODES = {"float32": "F32", "bfloat16": "BF16"}  # in the header

Shape = tuple[int, ...]


class Folder:
  """The tensors in a folder.

  Attributes:
    path: the folder.
    files: those with tensors, sorted.
    shapes: of each tensor by its name.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the headers.

    Raises:
      UserError: if files are missing, or cannot be read.
    """
    self.path = path
    self.files = files_of(path)
    self.shapes: dict[str, Shape] = {}
    self._slices: dict[str, Any] = {}
    for file in self.files:
      try:
        tensors = safe_open(file, "numpy")  # maps it: no bytes yet
      except SafetensorError as error:
        raise UserError(
          f"{file} is damaged, or no safetensors: {error}."
        ) from None
      for name in tensors.keys():  # noqa: SIM118
        self._slices[name] = tensors.get_slice(name)
        self.shapes[name] = tuple(self._slices[name].get_shape())

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    """Rows of a tensor, along its first axis, as new float32."""
    if not self.shapes[name]:
      return np.asarray(self._slices[name][...], np.float32)
    return np.asarray(self._slices[name][rows], np.float32)


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files with tensors, sorted.

  Raises:
    UserError: if one of them is missing, or config.json is.
  """
  if (folder / INDEX).is_file():
    names = set(read_json(folder / INDEX)["weight_map"].values())
  else:
    names = {WHOLE}
  files = sorted(folder / name for name in names)
  absent = [path for path in (*files, folder / CONFIG) if not path.is_file()]
  if absent:
    raise UserError(
      f"There is no {absent[0].name} in {folder}. Weights are a folder with"
      f" {CONFIG} and {WHOLE} (or its parts and {INDEX}), as transformers'"
      " save_pretrained or intellect_jax.export write it."
    )
  return files


def row_pieces(shape: Shape, most: int = PIECE) -> Iterator[slice]:
  """Rows of a tensor, in slices of `most` values or of one longer row."""
  rows, *rest = shape or (1,)
  step = max(1, most // max(1, math.prod(rest)))
  for start in range(0, rows, step):
    yield slice(start, min(start + step, rows))


def write(
  folder: pathlib.Path,
  shapes: Mapping[str, Shape],
  pieces: Callable[[str], Iterable[np.ndarray]],
  dtype: str,
  part_bytes: int,
) -> None:
  """Writes tensors to a folder, in files of `part_bytes` at most.

  Args:
    folder: made if needed.
    shapes: of each tensor by its name, in the order to write them.
    pieces: yields the values of a tensor, float32, in order.
    dtype: to write, "float32" or "bfloat16": rounded to nearest even.
    part_bytes: a file is no larger, unless one tensor is.

  Raises:
    UserError: if the folder is not empty.
  """
  check_empty(folder)
  itemsize = np.dtype(DTYPES[dtype]).itemsize
  sizes = {name: itemsize * math.prod(s) for name, s in shapes.items()}
  parts = list(_parts(sizes, part_bytes))
  index: dict[str, str] = {}
  for number, names in enumerate(parts, 1):
    file = WHOLE
    if len(parts) > 1:
      file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
    index |= dict.fromkeys(names, file)
    with open(folder / file, "wb") as out:
      out.write(_header({name: shapes[name] for name in names}, sizes, dtype))
      for name in names:
        for piece in pieces(name):
          out.write(np.ascontiguousarray(piece, DTYPES[dtype]).tobytes())
  if len(parts) > 1:
    total = dict(total_size=sum(sizes.values()))
    write_json(folder / INDEX, dict(metadata=total, weight_map=index))


def check_empty(folder: pathlib.Path) -> None:
  """Makes a folder. Raises UserError if it has anything."""
  folder.mkdir(parents=True, exist_ok=True)
  if any(folder.iterdir()):
    raise UserError(
      f"{folder} is not empty. Choose another --output, so that files of two"
      " models do not mix."
    )


def _parts(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
  """Names in order, in lists of `most` bytes or of one larger tensor."""
  part: list[str] = []
  for name, size in sizes.items():
    if part and sum(sizes[n] for n in part) + size > most:
      yield part
      part = []
    part.append(name)
  yield part


def _header(
  shapes: Mapping[str, Shape], sizes: Mapping[str, int], dtype: str
) -> bytes:
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  start = 0
  for name, shape in shapes.items():
    stop = start + sizes[name]
    header[name] = dict(
      dtype=_CODES[dtype], shape=list(shape), data_offsets=[start, stop]
    )
    start = stop
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # so that what follows is aligned
  return len(text).to_bytes(8, "little") + text


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Raises UserError if it is not JSON."""
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path} is not JSON: {error}.") from None


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
