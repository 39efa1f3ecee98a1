"""INTELLECT-1: 10.2B parameters, a trillion tokens (arXiv 2412.01152).

The recipe as published; each island was a host of 8 H100. An island with 8
devices of 80 GB starts with

  python -m intellect_jax.train --coordinator=HOST:PORT --workdir=DIR \\
    --config.island.inner.microbatch=8

and the coordinator with

  python -m intellect_jax.coordinator --config=configs/intellect_1_10b.py \\
    --listen=HOST:PORT --workdir=DIR

The published run took 42 days on 14 hosts. Text and tokenizer are base.py's,
not the published mixture.
"""

import ml_collections

from intellect_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.base()
  run = config.run
  run.name = "intellect_1_10b"
  run.tokens = 1_000_000_000_000
  run.model.update(
    layers=42,
    width=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=14336,
    vocab_size=128_256,
    rope_theta=5e5,
    norm_epsilon=1e-5,
    tied_embeddings=False,
  )
  run.data.update(sequence_length=8192)
  run.inner.update(
    batch_size=128,
    learning_rate=7.5e-5,
    # 1000 steps of 14 islands, and the last fifth of the run.
    warmup_tokens=1000 * 128 * 8192 * 14,
    decay_tokens=200_000_000_000,
    beta1=0.9,
    beta2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
    max_z_loss=2e-4,
  )
  run.outer.update(
    inner_steps=100, learning_rate=0.7, momentum=0.9, codec="int8"
  )
  config.island.model.update(remat="full", attention="cudnn")
  return config
