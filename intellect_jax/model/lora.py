"""Low-rank adapters (LoRA, arXiv 2106.09685): what is trained beside weights.

Each matrix W of the blocks, [in, out], is used as W + alpha / r A B with A of
[in, r] and B of [r, out]. W stays as it was; A and B are parameters of their
own, so theta, deltas and moments are of their size. A tree of parameters has
them beside their matrix, and here are its two halves, one by one and together.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from intellect_jax.model.llama import LlamaConfig

Tree = dict[str, Any]  # like the parameters, of anything

A, B = "_lora_a", "_lora_b"  # ends of their keys
MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


def adapters(params: Tree) -> Tree:
  """The half that is trained."""
  return {"blocks": _blocks(params, True)}


def base(params: Tree) -> Tree:
  """The half that stays as it is: a whole model."""
  return {**params, "blocks": _blocks(params, False)}


def _blocks(params: Tree, adapting: bool) -> Tree:
  return {
    key: leaf
    for key, leaf in params["blocks"].items()
    if key.endswith((A, B)) == adapting
  }


def join(base: Tree, adapters: Tree) -> Tree:
  """The whole tree of two halves."""
  return {**base, "blocks": {**base["blocks"], **adapters["blocks"]}}


def merge(c: "LlamaConfig", base: Tree, adapters: Tree) -> Tree:
  """The base with A B added in: a whole model that needs no adapters.

  Args:
    c: of the model with adapters.
    base, adapters: float32 arrays of numpy; neither is changed.

  Returns:
    A tree like the base, of new arrays where there is something to add.
  """
  blocks = dict(base["blocks"])
  scale = np.float32(c.lora_alpha / c.lora_rank)
  for name in MATRICES:
    a, b = adapters["blocks"][name + A], adapters["blocks"][name + B]
    layers, rank = a.shape[0], c.lora_rank
    added = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
    blocks[name] = blocks[name] + scale * added.reshape(blocks[name].shape)
  return {**base, "blocks": blocks}
