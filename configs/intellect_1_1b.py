"""1B parameters in the blocks: PRIME's Llama 3 of that size.

  python -m intellect_jax.coordinator --config=configs/intellect_1_1b.py \\
    --listen=HOST:PORT --workdir=DIR
  python -m intellect_jax.train --coordinator=HOST:PORT --workdir=DIR

1,544,628,224 parameters with both embeddings. An island is a host of 8 GPUs; by
`python -m intellect_jax.plan` a device holds 16 GB, so 24 GB are enough.

To expect: 2.5 s a step on 8 H100 (the plan, at INTELLECT-1's MFU of 43.3 %).
OpenDiLoCo (arXiv 2407.07852) kept 90 to 95 % of the compute busy with a model
of this size, on four islands in three countries over 127 to 935 Mbit/s. Text
and tokenizer here are base.py's; nobody has run this config to its end.
"""

import ml_collections

from intellect_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.base()
  run = config.run
  run.name = "intellect_1_1b"
  run.tokens = 31_000_000_000  # 20 a parameter (arXiv 2203.15556)
  batch, length = 1024, 1024  # PRIME's
  run.model.update(
    layers=18,
    width=2048,
    heads=16,
    kv_heads=8,
    head_dim=128,
    ffn=7168,
    vocab_size=128_256,
    rope_theta=5e5,
    norm_epsilon=1e-5,
    tied_embeddings=False,
  )
  run.data.update(sequence_length=length)
  run.inner.update(
    batch_size=batch,
    learning_rate=7e-4,  # PRIME's
    warmup_tokens=1000 * batch * length,
    decay_tokens=run.tokens // 5,
    max_z_loss=2e-4,
  )
  config.island.inner.update(microbatch=64, loss_chunk=256)
  return config
