"""Generate text with theta of a run, also while it is training.

  python -m intellect_jax.generate --workdir=runs/demo/island-0 \\
      --prompt="The function returns"

The words appear as they come. Several --prompt are written at once, and shown
when all are done. `python -m intellect_jax.chat` is a conversation, and
`python -m intellect_jax.serve` answers other programs.
"""

from collections.abc import Callable, Sequence

from absl import flags

from intellect_jax import command
from intellect_jax.inference.engine import Engine, Sampling
from intellect_jax.inference.loading import Model, open_model
from intellect_jax.inference.text import answer

CONFIG = command.define_config()
WORKDIR = command.define_model_folder()
DTYPE, CONTEXT = command.define_model_use()
PROMPT = flags.DEFINE_multi_string(
  "prompt", ["The function"], "Text to go on from; may be repeated."
)
TOKENS, TEMPERATURE, TOP_K, TOP_P, SEED = command.define_sampling()
STOP = flags.DEFINE_multi_string(
  "stop", [], "Words that end the text, and are not shown; may be repeated."
)


def main() -> None:
  island = command.island_of(CONFIG)
  model = open_model(command.path(WORKDIR), island, DTYPE.value, CONTEXT.value)
  prompts = PROMPT.value
  if len(prompts) == 1:
    print(prompts[0], end="", flush=True)
    generate(
      model,
      prompts,
      TOKENS.value,
      sampling(),
      STOP.value,
      show=lambda new: print(new, end="", flush=True),
    )
    print()
    return
  texts = generate(model, prompts, TOKENS.value, sampling(), STOP.value)
  print("\n\n".join(map("".join, zip(prompts, texts, strict=True))))


def sampling() -> Sampling:
  """What the flags say."""
  return Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value, SEED.value)


def generate(
  model: Model,
  prompts: Sequence[str],
  tokens: int,
  sampling: Sampling,
  stop_words: Sequence[str] = (),
  show: Callable[[str], object] = lambda new: None,
) -> list[str]:
  """Returns what the model adds to each of `prompts`.

  A text that fills the model's context goes on from its last half. The n-th
  prompt is drawn with the seed `sampling.seed` + n.

  Args:
    model: see `open_model`.
    prompts: texts to go on from.
    tokens: to add at most, to each.
    sampling: how tokens are drawn.
    stop_words: which end a text.
    show: called with each piece of text as it comes, whichever it is of.

  Raises:
    UserError: if `sampling` is out of range.
  """
  engine = Engine(model, slots=len(prompts), slide=True)
  texts = [""] * len(prompts)
  for n, prompt in enumerate(prompts):

    def done(text: str, why: str, n: int = n) -> None:
      texts[n] = text

    engine.add(
      answer(
        model,
        model.encode(prompt) or [model.tokenizer.eos],
        tokens,
        sampling.with_seed(sampling.seed + n),
        stop_words,
        show=show,
        done=done,
      )
    )
  engine.run()
  return texts


if __name__ == "__main__":
  command.run(main)
