"""A model that trains in seconds on one CPU core: for tests and first looks.

python -m intellect_jax.train --config=configs/tiny.py --workdir=/tmp/tiny
"""

import ml_collections

from intellect_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.base()
  run = config.run
  run.name = "tiny"
  run.tokens = 12_288  # 6 rounds of one island, 3 of two
  run.model.update(
    layers=2,
    width=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=64,
    vocab_size=512,
    dtype="float32",
  )
  run.data.update(tokenizer="byte", sequence_length=64)
  run.inner.update(batch_size=8, learning_rate=1e-2, warmup_tokens=1024)
  run.outer.update(inner_steps=4)
  run.evaluation.update(sequences=8)
  config.island.model.update(remat="none")
  return config
