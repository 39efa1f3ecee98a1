"""FLOPs of training, from the shapes alone, and the utilization they give.

A multiply-add is two FLOPs. Only matrix products count: norms, RoPE, softmax
and the update of a weight are a few FLOPs a value, where a product with it is
six. What remat computes again does not count either (model FLOPs, not hardware
FLOPs), nor does a causal mask halve the scores: both as INTELLECT-1 and PaLM
(arXiv 2204.02311, appendix B) count, so that figures compare.
"""

import math

import jax

from intellect_jax.model import llama, lora

# Dense bfloat16 FLOP/s of one device, without sparsity, by the makers' data
# sheets; keys are parts of jax.Device.device_kind in lower case, the most
# specific first.
PEAK = {
  "h100 pcie": 756e12,
  "h100 nvl": 835e12,
  "h200": 989e12,
  "h100": 989e12,
  "a100": 312e12,
}


def flops_per_token(
  c: llama.LlamaConfig, sequence_length: int, reference: bool = False
) -> int:
  """FLOPs of forward and backward pass: 6 N + 12 layers * heads * head_dim * L.

  N counts every parameter that is part of a product, and so leaves out the
  embedding when it is a table of its own. Scores and their product with the
  values take 2 * 2 * L * heads * head_dim in the forward pass, three times that
  with the backward pass. Beside adapters N takes 4: it has no gradient. A
  `reference`, as DPO has one, is a forward pass more.
  """
  adapters = sum(
    math.prod(a.shape)
    for a in jax.tree.leaves(lora.adapters(llama.abstract_params(c)))
  )
  params = llama.parameter_count(c) - adapters
  if not c.tied_embeddings:
    params -= c.vocab_size * c.width
  scores = 4 * c.layers * c.heads * c.head_dim * sequence_length
  flops = (4 if c.lora_rank else 6) * params + 6 * adapters + 3 * scores
  return flops + (2 * params + scores if reference else 0)


def peak_flops(device_kind: str) -> float:
  """FLOP/s of a device of this kind; NaN if it is not in the table."""
  kind = device_kind.lower()
  return next((PEAK[key] for key in PEAK if key in kind), math.nan)


def utilization(
  c: llama.LlamaConfig,
  sequence_length: int,
  tokens_per_second: float,
  peak: float,
  reference: bool = False,
) -> float:
  """Model FLOPs utilization (MFU) of devices that reach `peak` together."""
  flops = flops_per_token(c, sequence_length, reference)
  return tokens_per_second * flops / peak
