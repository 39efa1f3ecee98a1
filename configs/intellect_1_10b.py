"""INTELLECT-1: 10.2B parameters, a trillion tokens (arXiv 2412.01152).

  python -m intellect_jax.coordinator --config=configs/intellect_1_10b.py \\
    --listen=HOST:PORT --workdir=DIR
  python -m intellect_jax.train --coordinator=HOST:PORT --workdir=DIR

10,211,381,248 parameters. An island is a host of 8 GPUs of 80 GB, with 250 GB of
its own. By `python -m intellect_jax.plan` with --devices=8 --device=h100, a
device holds 34 GB: 26 of parameters, moments and gradients, the rest for one
sequence of 8192 tokens. The host holds 82 GB of outer state, 62 more in a round.

To expect, from the report (tables 2 and 3): 100 steps in 38 minutes on 8 H100,
46,000 tokens/s, 43.3 % MFU; rounds of 103 s in the USA and 469 s around the
world, 95.7 and 83.0 % of the compute busy; 42 days on up to 14 hosts; then
MMLU 37.5, HellaSwag 72.3. Nobody has run this config on GPUs yet.

It takes Llama 3's tokenizer.model and five prepared sources (docs/data.md) in
the folder that --config.island.data.folder names. To look at the rest without:
--config.run.data.sources="('python_docs',)" and
--config.run.data.stages="((0,(1.0,)),)" --config.run.data.tokenizer=bpe:32000.
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
  run.data.update(
    sources=("fineweb_edu", "fineweb", "stack_v1", "dclm", "openwebmath"),
    stages=(
      (0, (0.55, 0.10, 0.20, 0.10, 0.05)),
      (800_000_000_000, (0.80, 0.10, 0.10, 0.0, 0.0)),
    ),
    tokenizer="tokenizer.model",
    sequence_length=8192,
  )
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
  config.island.inner.update(microbatch=8, loss_chunk=1024)
  return config
