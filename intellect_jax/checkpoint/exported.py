"""The model of a run, as a folder that any program of Hugging Face's reads."""

import pathlib

from ml_collections import ConfigDict
import numpy as np

from intellect_jax.checkpoint import pretrained, tensors
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.model.huggingface import config_json


def write(
  folder: pathlib.Path,
  run: ConfigDict,
  workdir: pathlib.Path,
  theta: np.ndarray,
  dtype: str,
  part_bytes: int,
) -> None:
  """Writes theta, and its tokenizer and configs beside.

  Args:
    folder: made if needed.
    run: the run half of the config.
    workdir: of an island, where the tokenizer's file is.
    theta: canonical vector, float32.
    dtype: of the weights, "float32" or "bfloat16".
    part_bytes: a file is no larger, unless one tensor is.

  Raises:
    UserError: if the folder is not empty.
  """
  tokenizer = tokenizer_of(run, workdir)
  length = run.data.sequence_length
  config = config_json(run.model, dtype, length, tokenizer.eos)
  layout = pretrained.layout_of(run)
  pretrained.write(folder, theta, layout, config, part_bytes)
  ids = dict(eos_token_id=tokenizer.eos, pad_token_id=tokenizer.eos)
  tensors.write_json(folder / "generation_config.json", ids)
  for name, content in tokenizer.files(length).items():
    (folder / name).write_bytes(content)
