"""Chat with a trained model, in a terminal.

  python -m intellect_jax.chat --workdir=runs/tuned/island-0

What is said goes to the model by its chat template: that of the tokenizer in
the workdir, or a plain one. A model that has not been tuned on conversations
goes on as it does with any text. When a conversation is longer than the model's
context, its oldest turns are forgotten. /new forgets all of it; Ctrl-D ends.
"""

from collections.abc import Callable

from absl import flags

from intellect_jax import command
from intellect_jax.data.chat import Message
from intellect_jax.errors import UserError
from intellect_jax.inference.engine import Engine, Sampling
from intellect_jax.inference.loading import Model, open_model
from intellect_jax.inference.text import answer

CONFIG = command.define_config()
WORKDIR = command.define_model_folder()
DTYPE, CONTEXT = command.define_model_use()
TOKENS, TEMPERATURE, TOP_K, TOP_P, SEED = command.define_sampling()
SYSTEM = flags.DEFINE_string("system", "", "What the model is told beforehand.")


def main() -> None:
  island = command.island_of(CONFIG)
  model = open_model(command.path(WORKDIR), island, DTYPE.value, CONTEXT.value)
  sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value, SEED.value)
  sampling.check()
  talk = Conversation(model, TOKENS.value, sampling, SYSTEM.value)
  while (said := _heard()) is not None:
    if said == "/new":
      talk.forget()
    elif said:
      try:
        talk.say(said, lambda new: print(new, end="", flush=True))
        print()
      except UserError as error:
        print(error)


def _heard() -> str | None:
  """A line of the user's; None at the end."""
  try:
    return input("> ").strip()
  except EOFError:
    print()
    return None


class Conversation:
  """What has been said, and who answers.

  Attributes:
    messages: so far, in order.
  """

  def __init__(
    self, model: Model, tokens: int, sampling: Sampling, system: str = ""
  ):
    """Nothing has been said yet.

    Args:
      model: see `open_model`.
      tokens: of an answer at most.
      sampling: how they are drawn; each answer with another seed.
      system: what the model is told beforehand.
    """
    self._model, self._sampling = model, sampling
    self._tokens = min(tokens, max(1, model.context // 2))
    self._engine = Engine(model)
    self._system: list[Message] = []
    if system:
      self._system.append(dict(role="system", content=system))
    self._answers = 0
    self.messages: list[Message] = list(self._system)

  def forget(self) -> None:
    """Begins anew."""
    self.messages = list(self._system)

  def say(
    self, content: str, show: Callable[[str], object] = lambda new: None
  ) -> str:
    """Says something; returns the answer, and shows it as it comes.

    Raises:
      UserError: if this alone is too long for the model's context, or the
        template does not take it; then it was not said.
    """
    self.messages.append(dict(role="user", content=content))
    try:
      prompt = self._prompt()
    except UserError:
      self.messages.pop()
      raise
    heard: list[str] = []
    seed = self._sampling.seed + self._answers
    self._engine.add(
      answer(
        self._model,
        prompt,
        self._tokens,
        self._sampling.with_seed(seed),
        stops=self._model.template.ends,
        show=show,
        done=lambda text, why: heard.append(text),
      )
    )
    self._engine.run()
    self._answers += 1
    self.messages.append(dict(role="assistant", content=heard[0]))
    return heard[0]

  def _prompt(self) -> list[int]:
    """The ids of the newest messages that leave room for an answer."""
    first = len(self._system)
    while True:
      prompt = self._model.template.prompt(self.messages).tolist()
      if len(prompt) + self._tokens <= self._model.context:
        return prompt
      if len(self.messages) <= first + 1:
        raise UserError(
          f"This message takes {len(prompt)} tokens, and the model's context of"
          f" {self._model.context} must hold an answer of {self._tokens} too."
          " Say less, or start with a smaller --tokens."
        )
      del self.messages[first : first + 2]  # a question and its answer


if __name__ == "__main__":
  command.run(main)
