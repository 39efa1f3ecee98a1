"""What a run has trained beside weights: as one model, or as PEFT's folder.

Theta of such a run is its adapters alone. The workdir notes where the weights
are, so that its model can be used as any other.

adapter_config.json           rank, alpha, which matrices
adapter_model.safetensors     A and B of each
"""

import dataclasses
import pathlib

from ml_collections import ConfigDict
import numpy as np
from safetensors.numpy import save_file

from intellect_jax import config as config_lib
from intellect_jax.checkpoint import pretrained, tensors
from intellect_jax.errors import UserError
from intellect_jax.model import llama, lora
from intellect_jax.model.huggingface import MODULES, tensor_names, to_weight
from intellect_jax.outer.codec import make_codec
from intellect_jax.outer.layout import Layout

NOTE = "init_from.json"  # in a workdir
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def note(weights: pretrained.Weights, workdir: pathlib.Path) -> None:
  """Notes in a workdir where the weights are that its run starts from."""
  content = dict(folder=str(weights.folder), digest=weights.digest)
  tensors.write_json(workdir / NOTE, content)


def layout_of(run: ConfigDict) -> tuple[llama.LlamaConfig, Layout]:
  """The model of a run, and the canonical vector of what it trains."""
  c = llama.LlamaConfig.of(run.model, config_lib.base().island.model)
  trained = llama.trained(c, llama.abstract_params(c))
  block = make_codec(run.outer.codec).block
  return c, Layout.of(trained, tensor_names(trained), block)


def whole(
  run: ConfigDict,
  theta: np.ndarray,
  workdir: pathlib.Path,
  init_from: pathlib.Path | None = None,
) -> tuple[llama.LlamaConfig, llama.Params]:
  """The model of a run, adapters merged if that is what theta is.

  Args:
    run: its config.
    theta: float32, the canonical vector.
    workdir: of an island, which knows where the weights are.
    init_from: folder with the weights, in place of what the workdir says.

  Returns:
    The model, without adapters, and its parameters: new arrays.

  Raises:
    UserError: if the weights are not found, or not those of the run.
  """
  c, layout = layout_of(run)
  params = layout.unflatten(theta)
  if not c.lora_rank:
    return c, params
  weights = pretrained.Weights(init_from or _noted(workdir))
  weights.check(run, str(workdir))
  plain = dataclasses.replace(c, lora_rank=0)
  base = weights.read(llama.abstract_params(plain))
  return plain, lora.merge(c, base, params)


def _noted(workdir: pathlib.Path) -> pathlib.Path:
  path = workdir / NOTE
  if not path.is_file():
    raise UserError(
      f"This run has trained adapters, and {workdir} does not say where the"
      " weights are beside which it did: name their folder with --init-from."
    )
  return pathlib.Path(tensors.read_json(path)["folder"])


def write_peft(
  folder: pathlib.Path,
  run: ConfigDict,
  theta: np.ndarray,
  dtype: str,
  workdir: pathlib.Path,
) -> None:
  """Writes adapters as the library PEFT reads them.

  Args:
    folder: made if needed.
    run: the config of the run.
    theta: float32, the canonical vector.
    dtype: of the file.
    workdir: of an island, which may say where the weights are.

  Raises:
    UserError: if the run has trained no adapters, or the folder is not empty.
  """
  c, layout = layout_of(run)
  if not c.lora_rank:
    raise UserError(
      "This run has trained all weights and no adapters: export without"
      " --adapter."
    )
  tensors.check_empty(folder)
  weights = {
    tensor.name: np.ascontiguousarray(
      to_weight(tensor.path, tensor.of(theta)), tensors.DTYPES[dtype]
    )
    for tensor in layout.tensors
  }
  save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
  (folder / WEIGHTS).chmod(0o644)  # it would be the owner's alone
  known = (workdir / NOTE).is_file()
  config = dict(
    peft_type="LORA",
    task_type="CAUSAL_LM",
    base_model_name_or_path=str(_noted(workdir)) if known else None,
    r=c.lora_rank,
    lora_alpha=c.lora_alpha,
    lora_dropout=0.0,
    target_modules=[MODULES[name] for name in lora.MATRICES],
    bias="none",
    fan_in_fan_out=False,
    use_rslora=False,
    use_dora=False,
    modules_to_save=None,
    inference_mode=True,
  )
  tensors.write_json(folder / CONFIG, config)
