"""A model as lm-evaluation-harness wants it: its three kinds of requests."""

from collections.abc import Sequence
from typing import Any

from lm_eval import utils  # pyright: ignore[reportMissingImports]
from lm_eval.api.instance import (  # pyright: ignore[reportMissingImports]
  Instance,
)
from lm_eval.api.model import (  # pyright: ignore[reportMissingImports]
  TemplateLM,
)
from lm_eval.models.utils import (  # pyright: ignore[reportMissingImports]
  normalize_gen_kwargs,
)
from tqdm import tqdm  # pyright: ignore[reportMissingModuleSource]

from intellect_jax.inference.engine import Engine, Sampling
from intellect_jax.inference.loading import Model
from intellect_jax.inference.scoring import Scorer
from intellect_jax.inference.text import answer
from intellect_jax.inference.trie import Text

_MOST_TOKENS = 256  # of an answer, if a task does not say; as the harness's hf

Pair = tuple[Any, list[int], list[int]]  # the request, context, continuation


class HarnessModel(TemplateLM):
  """Answers the harness's requests as its own `hf` model would, and faster.

  What a text is in tokens, where it is cut, and what stops an answer is as
  there; tests compare each number. How they are computed is not: texts that
  begin alike share their beginning, logits are made only where they are asked
  for, and answers are written by continuous batching.
  """

  def __init__(
    self, model: Model, batch_tokens: int = 8192, slots: int = 16
  ) -> None:
    """Computes nothing yet.

    Args:
      model: on its mesh.
      batch_tokens: of a batch of texts to score, about.
      slots: answers that are written at once.
    """
    super().__init__()
    self._model = model
    self._slots = slots
    self.scorer = Scorer(model, batch_tokens)

  # ----------------------------------------------------------- tokens

  @property
  def eot_token_id(self) -> int:
    return self._model.tokenizer.eos

  @property
  def prefix_token_id(self) -> int:
    """What a text without a context follows on."""
    return self._model.bos[-1] if self._model.bos else self.eot_token_id

  @property
  def max_length(self) -> int:
    return self._model.context

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs
  ) -> list[int]:
    ids = self._model.encode(string)
    return ids[len(self._model.bos) :] if add_special_tokens is False else ids

  # --------------------------------------------------------- requests

  def _loglikelihood_tokens(
    self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs
  ) -> list[tuple[float, bool]]:
    texts = []
    for _, context, continuation in requests:
      assert 0 < len(continuation) <= self.max_length, len(continuation)
      tokens = [*context, *continuation][-(self.max_length + 1) :]
      texts.append(Text(tokens, len(tokens) - len(continuation)))
    with tqdm(total=len(texts), disable=disable_tqdm, desc="scored") as bar:
      scores = self.scorer.score(texts, bar.update)
    answers = [(score.log_likelihood, score.greedy) for score in scores]
    for (request, _, _), given in zip(requests, answers, strict=True):
      if request is not None:
        self.cache_hook.add_partial("loglikelihood", request, given)
    return answers

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    windows, owners = [], []
    for number, request in enumerate(requests):
      cut = utils.get_rolling_token_windows(
        token_list=self.tok_encode(request.args[0]),
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      )
      for window in map(utils.make_disjoint_window, cut):
        windows.append((None, *window))
        owners.append(number)
    sums = [0.0] * len(requests)
    scores = self._loglikelihood_tokens(windows, disable_tqdm)
    for owner, (log_likelihood, _) in zip(owners, scores, strict=True):
      sums[owner] += log_likelihood
    for request, total in zip(requests, sums, strict=True):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
    return sums

  def generate_until(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[str]:
    answers = [""] * len(requests)
    engine = Engine(self._model, min(self._slots, max(1, len(requests))))
    prompts = [self.tok_encode(request.args[0]) for request in requests]
    with tqdm(total=len(requests), disable=disable_tqdm, desc="written") as bar:

      def add(number: int) -> None:
        request, prompt = requests[number], prompts[number]
        rule = _rule(request)
        most = rule["max_gen_toks"]
        if most >= self.max_length:  # where the harness's hf model gives up
          most = max(1, self.max_length // 2)
        prompt = prompt[-(self.max_length - most) :]

        def done(text: str, why: str) -> None:
          answers[number] = text
          self.cache_hook.add_partial("generate_until", request.args, text)
          bar.update(1)

        engine.add(
          answer(
            self._model, prompt, most, _sampling(rule), rule["until"], done=done
          )
        )

      # In lexical order, so that neighbours share what they begin with.
      for number in sorted(range(len(requests)), key=prompts.__getitem__):
        add(number)
      engine.run()
    return answers

  # ------------------------------------------------------------- chat

  def apply_chat_template(
    self,
    chat_history: list[dict[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    return self._model.template.render(chat_history, add_generation_prompt)

  @property
  def tokenizer_name(self) -> str:
    return self._model.tokenizer.digest

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    return None if chat_template is False else self._model.template.source


def _rule(request: Any) -> dict[str, Any]:
  """How an answer is to be written, all that is not said filled in."""
  return dict(normalize_gen_kwargs(request.args[1], _MOST_TOKENS))


def _sampling(rule: dict[str, Any]) -> Sampling:
  """How the harness wants tokens to be drawn."""
  return Sampling(
    temperature=float(rule.get("temperature", 0.0)),
    top_k=int(rule.get("top_k", 0)),
    top_p=float(rule.get("top_p", 1.0)),
  )
