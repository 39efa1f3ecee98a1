"""A folder of weights, as `from_pretrained` of Hugging Face reads and writes it.

config.json                        the shape of the model
model.safetensors                  all tensors; or, of a large model,
model-00001-of-00003.safetensors   its parts, and
model.safetensors.index.json       which tensor is in which part
"""

from collections.abc import Iterator
import functools
import json
import operator
import pathlib
from typing import Any

from absl import logging
from blake3 import blake3
import jax
from ml_collections import ConfigDict
import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from intellect_jax.data.tokenizer import Tokenizer, tokenizer_of
from intellect_jax.errors import UserError
from intellect_jax.model.huggingface import (
  check_config,
  from_weight,
  tensor_names,
  to_weight,
)
from intellect_jax.model.llama import Params
from intellect_jax.outer.layout import Layout

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


class Weights:
  """The weights in a folder, for a run to start from.

  Attributes:
    folder: where they are.
    digest: hex BLAKE3 over the files of weights, in the order of their names.
  """

  def __init__(self, folder: pathlib.Path):
    """Finds the files and hashes them.

    Raises:
      UserError: if they are not there.
    """
    self.folder = folder
    self._files = _files(folder)
    hasher = blake3(max_threads=blake3.AUTO)
    for file in self._files:
      hasher.update_mmap(file)
    self.digest = hasher.hexdigest()

  def check(self, run: ConfigDict, folder: str = "") -> None:
    """Raises UserError unless `run` starts from these weights.

    Warns if their tokenizer is another one than the run's, which is in
    `folder` if it is a file.
    """
    if run.init_from != self.digest:
      raise UserError(
        f"The weights in {self.folder} have digest {self.digest[:12]}, but this"
        f" run starts from {run.init_from[:12] or 'random weights'}. Pass"
        " --init-from=FOLDER to the coordinator when the run begins, and the"
        " same weights to its islands, or none."
      )
    check_config(run.model, read_json(self.folder / CONFIG))
    if not self._shares_ids(tokenizer_of(run, folder)):
      logging.warning(
        "The tokenizer.json in %s has other ids than run.data.tokenizer=%s:"
        " the model has to learn anew what they mean.",
        self.folder,
        run.data.tokenizer,
      )

  def _shares_ids(self, tokenizer: Tokenizer) -> bool:
    """Whether the folder's ids mean the same, as far as the folder says."""
    path = self.folder / TOKENIZER
    if not path.is_file():
      return True
    ours = tokenizer.files(sequence_length=1).get(TOKENIZER)
    if ours is None:
      return True
    theirs = read_json(path).get("model", {}).get("vocab")
    return theirs == json.loads(ours)["model"]["vocab"]

  def read(self, abstract: Params) -> Params:
    """The weights as new float32 arrays, of the shapes in `abstract`.

    Raises:
      UserError: naming what is missing, unknown or of another shape.
    """
    params = jax.tree.map(lambda a: np.empty(a.shape, np.float32), abstract)
    missing = {tensor.name: tensor for tensor in tensor_names(params)}
    for file in self._files:
      with safe_open(file, "numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118
          tensor = missing.pop(name, None)
          if tensor is None:
            if not _redundant(name, params):
              raise UserError(
                f"{file} has {name}, which is no part of a Llama."
              )
            continue
          leaf = functools.reduce(operator.getitem, tensor.path, params)
          into = leaf if tensor.layer is None else leaf[tensor.layer]
          try:
            weight = tensors.get_tensor(name)
            into[...] = from_weight(tensor.path, weight, into.shape)
          except ValueError as error:
            raise UserError(f"{name} in {file} {error}.") from None
    if missing:
      raise UserError(
        f"{self.folder} lacks {len(missing)} tensors, such as {min(missing)}."
      )
    return params


def write(
  folder: pathlib.Path,
  theta: np.ndarray,
  layout: Layout,
  config: dict[str, Any],
  part_bytes: int,
) -> None:
  """Writes theta, a canonical vector, part by part, in config's dtype.

  Args:
    folder: made if needed.
    theta: float32 [layout.size].
    layout: where in theta each tensor is.
    config: what becomes config.json.
    part_bytes: a file is no larger, unless one tensor is.

  Raises:
    UserError: if the folder is not empty.
  """
  check_empty(folder)
  dtype = DTYPES[config["dtype"]]
  itemsize = np.dtype(dtype).itemsize
  parts = list(_parts(layout, part_bytes // itemsize))
  index = {}
  for number, part in enumerate(parts, 1):
    name = WHOLE
    if len(parts) > 1:
      name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
    weights = {
      tensor.name: np.ascontiguousarray(
        to_weight(tensor.path, tensor.of(theta)), dtype
      )
      for tensor in part
    }
    save_file(weights, folder / name, metadata={"format": "pt"})
    (folder / name).chmod(0o644)  # it would be the owner's alone
    index |= dict.fromkeys(weights, name)
  if len(parts) > 1:
    size = itemsize * sum(tensor.size for tensor in layout.tensors)
    write_json(
      folder / INDEX, dict(metadata=dict(total_size=size), weight_map=index)
    )
  write_json(folder / CONFIG, config)


def check_empty(folder: pathlib.Path) -> None:
  """Makes a folder if needed; raises UserError if there is anything in it."""
  folder.mkdir(parents=True, exist_ok=True)
  if any(folder.iterdir()):
    raise UserError(
      f"{folder} is not empty. Choose another --output, so that files of two"
      " models do not mix."
    )


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _parts(layout: Layout, most: int) -> Iterator[list]:
  """Tensors in order, in lists of `most` values or of one larger tensor."""
  part, values = [], 0
  for tensor in layout.tensors:
    if part and values + tensor.size > most:
      yield part
      part, values = [], 0
    part.append(tensor)
    values += tensor.size
  yield part


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files with weights, sorted."""
  if (folder / INDEX).is_file():
    names = set(read_json(folder / INDEX)["weight_map"].values())
  else:
    names = {WHOLE}
  files = sorted(folder / name for name in names)
  absent = [path for path in (*files, folder / CONFIG) if not path.is_file()]
  if absent:
    raise UserError(
      f"There is no {absent[0].name} in {folder}. To start from weights takes a"
      f" folder with {CONFIG} and {WHOLE} (or its parts and {INDEX}), as"
      " transformers' save_pretrained or intellect_jax.export write it."
    )
  return files


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Raises UserError if it is not JSON."""
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path} is not JSON: {error}.") from None


def _redundant(name: str, params: Params) -> bool:
  """Whether old checkpoints have a tensor that is a function of the rest."""
  tied = name == "lm_head.weight" and "unembed" not in params
  return tied or name.endswith("rotary_emb.inv_freq")
