"""The weights of a Llama, from a folder of Hugging Face's and to one.

See tensors.py for its files.
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
import numpy as np

from intellect_jax.checkpoint import tensors
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

CONFIG = tensors.CONFIG
TOKENIZER = "tokenizer.json"


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
    self._tensors = tensors.Folder(folder)
    hasher = blake3(max_threads=blake3.AUTO)
    for file in self._tensors.files:
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
    check_config(run.model, tensors.read_json(self.folder / CONFIG))
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
    theirs = tensors.read_json(path).get("model", {}).get("vocab")
    return theirs == json.loads(ours)["model"]["vocab"]

  def read(self, abstract: Params) -> Params:
    """The weights as new float32 arrays, of the shapes in `abstract`.

    Raises:
      UserError: naming what is missing, unknown or of another shape.
    """
    params = jax.tree.map(lambda a: np.empty(a.shape, np.float32), abstract)
    missing = {tensor.name: tensor for tensor in tensor_names(params)}
    for name in self._tensors.shapes:
      tensor = missing.pop(name, None)
      if tensor is None:
        if not _redundant(name, params):
          raise UserError(
            f"{self.folder} has {name}, which is no part of a Llama."
          )
        continue
      leaf = functools.reduce(operator.getitem, tensor.path, params)
      into = leaf if tensor.layer is None else leaf[tensor.layer]
      try:
        weight = self._tensors.read(name)
        into[...] = from_weight(tensor.path, weight, into.shape)
      except ValueError as error:
        raise UserError(f"{name} in {self.folder} {error}.") from None
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
  """Writes theta, a canonical vector, in config's dtype.

  Args:
    folder: made if needed.
    theta: float32 [layout.size].
    layout: where in theta each tensor is.
    config: what becomes config.json.
    part_bytes: a file is no larger, unless one tensor is.

  Raises:
    UserError: if the folder is not empty.
  """
  weights = {t.name: to_weight(t.path, t.of(theta)) for t in layout.tensors}

  def pieces(name: str) -> Iterator[np.ndarray]:
    weight = weights[name]
    return (weight[rows] for rows in tensors.row_pieces(weight.shape))

  shapes = {name: weight.shape for name, weight in weights.items()}
  tensors.write(folder, shapes, pieces, config["dtype"], part_bytes)
  tensors.write_json(folder / CONFIG, config)


def _redundant(name: str, params: Params) -> bool:
  """Whether old checkpoints have a tensor that is a function of the rest."""
  tied = name == "lm_head.weight" and "unembed" not in params
  return tied or name.endswith("rotary_emb.inv_freq")
