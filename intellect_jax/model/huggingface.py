"""Names of the tensors as in Hugging Face Llama checkpoints."""

import dataclasses

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
      tensors.append(Tensor(name, ("blocks", key), layer))
  return sorted(tensors, key=lambda tensor: tensor.name)
