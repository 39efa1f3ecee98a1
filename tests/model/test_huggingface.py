"""Names are those of a transformers LlamaForCausalLM."""

import jax

from intellect_jax import config
from intellect_jax.model import huggingface, llama


def tiny(**model):
  tiny = config.load(config.base_path().parent / "tiny.py")
  tiny.run.model.update(model)
  c = llama.LlamaConfig.of(tiny.run.model, tiny.island.model)
  return llama.abstract_params(c)


def test_names_of_one_layer():
  assert [t.name for t in huggingface.tensor_names(tiny(layers=1))] == [
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.norm.weight",
  ]


def test_names_cover_every_parameter_once():
  params = tiny(layers=12, tied_embeddings=True)
  tensors = huggingface.tensor_names(params)
  assert len({t.name for t in tensors}) == len(tensors) == 12 * 9 + 2
  for path, leaf in jax.tree.leaves_with_path(params):
    path = tuple(key.key for key in path)
    layers = {t.layer for t in tensors if t.path == path}
    assert layers == (set(range(12)) if "blocks" in path else {None}), leaf
