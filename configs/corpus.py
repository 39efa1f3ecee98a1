"""A real mixture: Python's documentation, WordNet, the standard library's code.

  make corpus      # fetches and prepares about 30 MB, see experiments/corpus.py
  python -m intellect_jax.swarm --config=configs/corpus.py --islands=3 \\
      --workdir=runs/corpus/run

A small Llama, a few minutes on two cores. The last fifth of the run is on more
prose, as INTELLECT-1's was on more of its best source.
"""

import ml_collections

from intellect_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.load(config_lib.base_path().with_name("demo.py"))
  run = config.run
  run.name = "corpus"
  run.model.update(vocab_size=8192)
  run.data.update(
    sources=("docs", "words", "code"),
    stages=(
      (0, (0.4, 0.2, 0.4)),
      (run.tokens * 4 // 5, (0.6, 0.3, 0.1)),
    ),
    tokenizer="bpe:8192",
  )
  config.island.data.update(folder="runs/corpus/prepared")
  return config
