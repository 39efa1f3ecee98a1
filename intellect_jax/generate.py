"""Generate text with theta of a run, also while it is training.

  python -m intellect_jax.generate --workdir=runs/demo/island-0 \\
      --prompt="The function returns"
"""

import pathlib

from absl import flags
import jax

from intellect_jax import command
from intellect_jax import config as config_lib
from intellect_jax.checkpoint import adapters
from intellect_jax.checkpoint.durable import read_outer
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.model.sampling import sample

WORKDIR = command.define_workdir("an island that has trained")
PROMPT = flags.DEFINE_string("prompt", "The function", "Text to go on from.")
TOKENS = flags.DEFINE_integer("tokens", 100, "Most tokens to add.", 1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.7, "0: the likeliest.", 0.0)
TOP_K = flags.DEFINE_integer("top_k", 40, "Likeliest tokens; 0: all.", 0)
SEED = flags.DEFINE_integer("seed", 0, "Another seed, another text.")


def main() -> None:
  text = generate(
    command.path(WORKDIR),
    PROMPT.value,
    TOKENS.value,
    TEMPERATURE.value,
    TOP_K.value,
    SEED.value,
  )
  print(PROMPT.value + text)


def generate(
  workdir: pathlib.Path,
  prompt: str,
  tokens: int,
  temperature: float,
  top_k: int,
  seed: int,
) -> str:
  """Returns what the model in an island's workdir adds to `prompt`."""
  outer = read_outer(workdir / "checkpoints")
  run = config_lib.from_dict(outer.meta["run"])
  c, params = adapters.whole(run, outer.theta, workdir)
  tokenizer = tokenizer_of(run, workdir)
  ids = sample(
    c,
    params,
    tokenizer.encode(prompt).tolist() or [tokenizer.eos],
    tokens,
    temperature,
    top_k,
    jax.random.key(seed),
    stop=tokenizer.eos,
    window=run.data.sequence_length,
  )
  return tokenizer.decode(ids)


if __name__ == "__main__":
  command.run(main)
