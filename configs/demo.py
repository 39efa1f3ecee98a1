"""The main job: a swarm on a laptop, on the text that ships in the package.

  make run

which is

  python -m intellect_jax.swarm --config=configs/demo.py --islands=3 \\
      --workdir=runs/demo
"""

import ml_collections

from intellect_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.base()
  run = config.run
  run.name = "demo"
  run.tokens = 1_228_800  # 20 rounds of 3 islands
  run.model.update(
    layers=4,
    width=128,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=384,
    vocab_size=2048,
    dtype="float32",  # CPUs have no fast bfloat16
  )
  run.data.update(tokenizer="bpe:2048", sequence_length=128)
  run.inner.update(
    batch_size=8,
    learning_rate=4e-3,
    warmup_tokens=40_000,
    decay_tokens=400_000,
  )
  run.outer.update(inner_steps=20, learning_rate=0.6)  # eta for 2-4 islands
  run.elastic.update(lease_seconds=5.0)
  run.evaluation.update(sequences=64)
  # Small batches stay in a core's cache, and unrolled layers fuse better.
  config.island.model.update(remat="none", scan_layers=False)
  config.island.inner.update(microbatch=2)
  return config
