"""Supervised fine-tuning of the demo's model on conversations.

  python experiments/conversations.py --output=runs/instruct
  python -m intellect_jax.finetune --config=configs/instruct.py \\
      --workdir=runs/instruct/sft

or a swarm of it, from what `make run` has trained:

  python -m intellect_jax.export --workdir=runs/demo/island-0 --output=llama
  python -m intellect_jax.swarm --config=configs/instruct.py --init-from=llama \\
      --workdir=runs/instruct/sft

For conversations of your own, prepare them (docs/data.md) and set
run.data.sources and island.data.folder; for weights of your own, run.model and
run.data.tokenizer too. Adapters instead of all weights:
--config.run.model.lora_rank=16.
"""

import ml_collections

from intellect_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.load(config_lib.base_path().with_name("demo.py"))
  run = config.run
  run.name = "instruct"
  run.tokens = 1_228_800
  run.data.update(sources=("talks",))
  run.inner.update(
    learning_rate=2e-3, warmup_tokens=20_000, decay_tokens=600_000
  )
  config.island.data.update(folder="runs/instruct/prepared")
  return config
