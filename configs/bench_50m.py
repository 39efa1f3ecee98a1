"""50M parameters, for benchmarks on CPUs: see benchmarks/inner_step.py.

  python -m benchmarks.inner_step

52,179,456 parameters, a third of them in the two embeddings; float32, because
CPUs have no fast bfloat16. The documents are those of the shipped text.
"""

import ml_collections

from intellect_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.base()
  run = config.run
  run.name = "bench_50m"
  run.tokens = 100_000_000
  run.model.update(
    layers=12,
    width=512,
    heads=8,
    kv_heads=4,
    head_dim=64,
    ffn=1408,
    vocab_size=16_384,
    dtype="float32",
  )
  run.data.update(tokenizer="bpe:16384", sequence_length=256)
  run.inner.update(batch_size=4, learning_rate=1e-3)
  run.outer.update(inner_steps=1000)
  run.evaluation.update(sequences=0)
  config.island.model.update(remat="none")
  return config
