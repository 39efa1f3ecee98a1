"""Preference tuning (DPO) of what configs/instruct.py has trained.

  python -m intellect_jax.export --workdir=runs/instruct/sft \\
      --output=runs/instruct/sft-llama
  python -m intellect_jax.finetune --config=configs/preference.py \\
      --init-from=runs/instruct/sft-llama --workdir=runs/instruct/dpo

The model starts from these weights and is compared with them; every island
needs their folder. The loss begins at log 2 = 0.69 nats a pair.
"""

import ml_collections

from intellect_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.load(config_lib.base_path().with_name("instruct.py"))
  run = config.run
  run.name = "preference"
  run.tokens = 102_400
  run.data.update(sources=("pairs",))
  # Gently: four times the rate makes a small model say nothing else.
  run.inner.update(
    loss="dpo",
    dpo_beta=0.5,
    # Without it every second of the answers that were right becomes wrong: those
    # of experiments/answers.py were 31 % instead of 58 % (59 % before DPO).
    dpo_nll_weight=1.0,
    learning_rate=5e-5,
    warmup_tokens=20_000,
    decay_tokens=51_200,
  )
  run.outer.update(inner_steps=10)
  return config
