"""The model of a run, as a folder that any program of Hugging Face's reads."""

import pathlib

from ml_collections import ConfigDict
import numpy as np

from intellect_jax.checkpoint import adapters, pretrained, tensors
from intellect_jax.data import chat
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.model.huggingface import config_json, tensor_names
from intellect_jax.outer.layout import Layout


def write(
  folder: pathlib.Path,
  run: ConfigDict,
  workdir: pathlib.Path,
  theta: np.ndarray,
  dtype: str,
  part_bytes: int,
  init_from: pathlib.Path | None = None,
) -> None:
  """Writes theta, and its tokenizer, chat template and configs beside.

  Args:
    folder: made if needed.
    run: the run half of the config.
    workdir: of an island, which has the tokenizer's file, and knows where the
      weights are that adapters are merged into.
    theta: canonical vector, float32.
    dtype: of the weights, "float32" or "bfloat16".
    part_bytes: a file is no larger, unless one tensor is.
    init_from: folder of those weights, in place of what the workdir says.

  Raises:
    UserError: if the folder is not empty, or those weights are not found.
  """
  tokenizer = tokenizer_of(run, workdir)
  length = run.data.sequence_length
  config = config_json(run.model, dtype, length, tokenizer.eos)
  c, layout = adapters.layout_of(run)
  if c.lora_rank:
    _, params = adapters.whole(run, theta, workdir, init_from)
    layout = Layout.of(params, tensor_names(params))
    theta = layout.flatten(params)
  pretrained.write(folder, theta, layout, config, part_bytes)
  ends = {tokenizer.eos}
  if run.data.chat_template:
    (folder / chat.FILE).write_text(run.data.chat_template)
    ends = chat.ChatTemplate(tokenizer, run.data.chat_template).ends
  eos = sorted(ends) if len(ends) > 1 else tokenizer.eos
  ids = dict(eos_token_id=eos, pad_token_id=tokenizer.eos)
  tensors.write_json(folder / "generation_config.json", ids)
  for name, content in tokenizer.files(length).items():
    (folder / name).write_bytes(content)
