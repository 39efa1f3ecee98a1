"""The model as Hugging Face has it: names, orientation, config.json.

Their matrices are [out, in], ours [in, out], with heads as axes of their own.
RoPE rotates the same pairs (i, i + head_dim / 2) in both, so that nothing is
permuted. Adapters have the names that the library PEFT gives them.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from intellect_jax.errors import UserError
from intellect_jax.model import lora
from intellect_jax.model.llama import Params

_OUTSIDE = {
  "embed": "model.embed_tokens.weight",
  "final_norm": "model.norm.weight",
  "unembed": "lm_head.weight",
}
_IN_BLOCK = {
  "attention_norm": "input_layernorm.weight",
  "query": "self_attn.q_proj.weight",
  "key": "self_attn.k_proj.weight",
  "value": "self_attn.v_proj.weight",
  "output": "self_attn.o_proj.weight",
  "mlp_norm": "post_attention_layernorm.weight",
  "gate": "mlp.gate_proj.weight",
  "up": "mlp.up_proj.weight",
  "down": "mlp.down_proj.weight",
}
# The modules whose weights the matrices are, by our names.
MODULES = {name: _IN_BLOCK[name].split(".")[-2] for name in lora.MATRICES}
_IN_BLOCK |= {
  name + end: _IN_BLOCK[name].replace("weight", f"lora_{letter}.weight")
  for name in lora.MATRICES
  for end, letter in ((lora.A, "A"), (lora.B, "B"))
}
_PEFT = "base_model.model."  # before the names of adapters
_AS_IT_IS = ("embed", "final_norm", "attention_norm", "mlp_norm")
_FIELDS = {  # of run.model, and their names in config.json
  "layers": "num_hidden_layers",
  "width": "hidden_size",
  "heads": "num_attention_heads",
  "kv_heads": "num_key_value_heads",
  "head_dim": "head_dim",
  "ffn": "intermediate_size",
  "vocab_size": "vocab_size",
  "norm_epsilon": "rms_norm_eps",
  "tied_embeddings": "tie_word_embeddings",
}
# What Llama is in every checkpoint that this model can be.
_ALWAYS = {
  "model_type": "llama",
  "hidden_act": "silu",
  "attention_bias": False,
  "mlp_bias": False,
}


@dataclasses.dataclass(frozen=True)
class Tensor:
  name: str  # in a Hugging Face checkpoint
  path: tuple[str, ...]  # in Params
  layer: int | None  # index into the leading axis of that leaf, if stacked


def tensor_names(params: Params) -> list[Tensor]:
  """Every tensor of `params` (arrays or shapes), a stacked leaf once a layer.

  Sorted by name, which is the order of the canonical vector.
  """
  tensors = [
    Tensor(_OUTSIDE[key], (key,), None) for key in params if key != "blocks"
  ]
  for key, leaf in params["blocks"].items():
    for layer in range(leaf.shape[0]):
      name = f"model.layers.{layer}.{_IN_BLOCK[key]}"
      if key.endswith((lora.A, lora.B)):
        name = _PEFT + name
      tensors.append(Tensor(name, ("blocks", key), layer))
  return sorted(tensors, key=lambda tensor: tensor.name)


def to_weight(path: tuple[str, ...], values: np.ndarray) -> np.ndarray:
  """What Hugging Face stores for one tensor; a view where that can be.

  Args:
    path: of the leaf in Params.
    values: of one layer.
  """
  if path[-1] in _AS_IT_IS:
    return values
  inner = _inner_axes(path)
  return values.reshape(math.prod(values.shape[:inner]), -1).T


def from_weight(
  path: tuple[str, ...], weight: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  """The other way: one layer's tensor in our `shape`.

  Raises:
    ValueError: if the weight has another shape than `to_weight` would give.
  """
  expected = to_weight(path, np.broadcast_to(np.float32(0), shape)).shape
  if weight.shape != expected:
    raise ValueError(f"has shape {weight.shape}, not {expected}")
  return weight if path[-1] in _AS_IT_IS else weight.T.reshape(shape)


def _inner_axes(path: tuple[str, ...]) -> int:
  """How many first axes of a matrix are contracted with its input."""
  return 2 if path[-1] in ("output", "output" + lora.A) else 1


def config_json(
  model: ConfigDict, dtype: str, sequence_length: int, eos: int
) -> dict[str, Any]:
  """The config.json of a LlamaForCausalLM.

  Some fields are there twice: transformers 5 reads rope_parameters and dtype;
  transformers 4, vLLM and llama.cpp's converter read or have read rope_theta
  and torch_dtype.

  Args:
    model: run.model.
    dtype: of the weights, "float32" or "bfloat16".
    sequence_length: in tokens, that it was trained on.
    eos: the id that ends a document.
  """
  theta = model.rope_theta
  return dict(
    architectures=["LlamaForCausalLM"],
    **_ALWAYS,
    **{theirs: model[ours] for ours, theirs in _FIELDS.items()},
    max_position_embeddings=sequence_length,
    rope_theta=theta,
    rope_parameters=dict(rope_theta=theta, rope_type="default"),
    dtype=dtype,
    torch_dtype=dtype,
    bos_token_id=None,
    eos_token_id=eos,
    attention_dropout=0.0,
    initializer_range=0.02,
    use_cache=True,
  )


def model_fields(theirs: dict[str, Any]) -> dict[str, Any]:
  """The fields of run.model that a config.json describes.

  Raises:
    UserError: if it is of another kind of model than a plain Llama.
  """
  value = _reader(theirs)
  missing = [name for name in _FIELDS.values() if value(name) is None]
  if missing:
    raise UserError(
      f"The config.json lacks {', '.join(missing)}: it is of no Llama that"
      " this program can read."
    )
  dtype = value("dtype") or value("torch_dtype")
  fields = {ours: value(name) for ours, name in _FIELDS.items()}
  fields["rope_theta"] = float(_rope(theirs)[0])
  fields["dtype"] = (
    "bfloat16" if dtype in ("bfloat16", "float16") else "float32"
  )
  check_config(ConfigDict(fields), theirs)
  return fields


def _reader(theirs: dict[str, Any]) -> Callable[[str], Any]:
  """What a config.json says of a field, or means where it is silent."""
  heads = theirs.get("num_attention_heads") or 32
  silent = dict(
    _ALWAYS,
    num_key_value_heads=heads,
    head_dim=(theirs.get("hidden_size") or 4096) // heads,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
  )

  def value(name: str) -> Any:
    given = theirs.get(name)
    return silent.get(name) if given is None else given

  return value


def _rope(theirs: dict[str, Any]) -> tuple[float, str]:
  """The base and the kind of the rotary positions."""
  rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
  theta = rope.get("rope_theta", theirs.get("rope_theta", 1e4))
  return theta, rope.get("rope_type", rope.get("type", "default"))


def check_config(model: ConfigDict, theirs: dict[str, Any]) -> None:
  """Checks that a config.json describes this very model.

  Args:
    model: run.model; its dtype is of compute, and may differ.
    theirs: the config.json, with defaults of LlamaConfig where it is silent.

  Raises:
    UserError: naming each field that differs.
  """
  value = _reader(theirs)
  rope_theta, rope_type = _rope(theirs)
  differing = [
    f"{name} {value(name)!r}, but must be {expected!r}"
    for name, expected in _ALWAYS.items()
    if value(name) != expected
  ]
  if rope_type != "default":
    differing.append(f"rope_type {rope_type!r}, but must be 'default'")
  if rope_theta != model.rope_theta:
    differing.append(
      f"rope_theta {rope_theta}, but run.model.rope_theta is {model.rope_theta}"
    )
  differing += [
    f"{name} {value(name)}, but run.model.{ours} is {model[ours]}"
    for ours, name in _FIELDS.items()
    if value(name) != model[ours]
  ]
  if differing:
    raise UserError(
      f"The config.json to start from has {'; '.join(differing)}. A run can"
      " start only from weights of its own shape: set the fields of run.model"
      " to those of config.json."
    )
