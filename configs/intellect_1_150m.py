"""150M parameters beside the embeddings: PRIME's and DiLoCo's smallest size.

  python -m intellect_jax.coordinator --config=configs/intellect_1_150m.py \\
    --listen=HOST:PORT --workdir=DIR
  python -m intellect_jax.train --coordinator=HOST:PORT --workdir=DIR

219,702,272 parameters with both embeddings. An island is one GPU; by `python -m
intellect_jax.plan` it holds 21 GB with microbatches of 32 sequences, most of it
activations: on less memory take island.inner.microbatch=16.

To expect: 1.6 s a step on one H100 (the plan, at INTELLECT-1's MFU of 43.3 %).
DiLoCo's model of about this size (arXiv 2311.08105: 8 islands, H=500, C4)
reached a perplexity of 15.02. Text and tokenizer here are base.py's; nobody has
run this config to its end.

Muon instead of AdamW, with MuLoCo's outer step (arXiv 2505.23725):

  --config.run.inner.optimizer=muon --config.run.outer.momentum=0.6
"""

import ml_collections

from intellect_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.base()
  run = config.run
  run.name = "intellect_1_150m"
  steps, batch, length = 88_000, 512, 1024  # PRIME's, DiLoCo's
  run.tokens = steps * batch * length
  run.model.update(
    layers=12,
    width=1024,
    heads=16,
    kv_heads=16,
    head_dim=64,
    ffn=2816,
    vocab_size=32_000,
    rope_theta=1e4,
    norm_epsilon=1e-5,
    tied_embeddings=False,
  )
  run.data.update(sequence_length=length)
  run.inner.update(
    batch_size=batch,
    learning_rate=4e-4,
    warmup_tokens=1000 * batch * length,
    decay_tokens=run.tokens // 5,
    max_z_loss=2e-4,
  )
  config.island.inner.update(microbatch=32, loss_chunk=256)
  return config
