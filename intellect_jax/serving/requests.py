"""What clients ask for: bodies of /v1/completions and /v1/chat/completions.

Fields and defaults are those of OpenAI's API; top_k is an addition that others
have, too. A field that would change the answer and is not known is an error, so
that nobody believes it counted.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import secrets
from typing import Any

from intellect_jax.data.chat import has_halves
from intellect_jax.errors import UserError
from intellect_jax.inference.engine import Sampling
from intellect_jax.inference.loading import Model

_MOST_CHOICES = 128  # of a request: prompts times n
_MOST_STOP_WORDS = 16
_COMPLETION_TOKENS = 16  # OpenAI's default
# Fields that are known and do nothing here unless they have another value.
_IDLE: dict[str, tuple] = dict(
  best_of=(None, 1),
  echo=(None, False),
  frequency_penalty=(None, 0, 0.0),
  function_call=(None, "none"),
  functions=(None, []),
  logit_bias=(None, {}),
  logprobs=(None, False),
  modalities=(None, ["text"]),
  presence_penalty=(None, 0, 0.0),
  response_format=(None, {"type": "text"}),
  suffix=(None, ""),
  tool_choice=(None, "none"),
  tools=(None, []),
  top_logprobs=(None, 0),
)
_IGNORED = ("metadata", "parallel_tool_calls", "service_tier", "store", "user")


@dataclasses.dataclass(frozen=True)
class Asked:
  """A request that has been read.

  Attributes:
    prompts: ids of each choice; those of n choices are n times there.
    most: tokens of a choice, at most.
    sampling: of each choice.
    stop_words: which end a choice.
    stream: whether pieces are wanted as they come.
    usage: whether a stream tells at its end how many tokens there were.
  """

  prompts: list[list[int]]
  most: int
  sampling: list[Sampling]
  stop_words: list[str]
  stream: bool
  usage: bool


def read_completion(body: bytes, model: Model) -> Asked:
  """Raises UserError, naming the field, if a body is not valid."""
  fields = _object(body)
  _check_fields(fields, {"prompt"}, model)
  prompts = [_ids(prompt, model) for prompt in _prompts(fields)]
  return _asked(fields, prompts, _COMPLETION_TOKENS, model)


def read_chat(body: bytes, model: Model) -> Asked:
  """Raises UserError, naming the field, if a body is not valid."""
  fields = _object(body)
  _check_fields(fields, {"messages", "max_completion_tokens"}, model)
  messages = fields.get("messages")
  if not isinstance(messages, list) or not messages:
    raise UserError("messages must be a list with at least one message.")
  prompt = model.template.prompt([_message(m) for m in messages]).tolist()
  room = max(1, model.context - len(prompt))
  return _asked(fields, [prompt], room, model)


def _asked(
  fields: Mapping[str, Any], prompts: list[list[int]], most: int, model: Model
) -> Asked:
  choices = _value(fields, "n", 1, int, lambda n: 1 <= n <= _MOST_CHOICES)
  if len(prompts) * choices > _MOST_CHOICES:
    raise UserError(f"prompt and n make more than {_MOST_CHOICES} choices.")
  seed = fields.get("seed")
  if seed is None:
    seed = secrets.randbits(32)
  elif type(seed) is not int:
    raise UserError(f"seed is {seed!r}, but must be an integer.")
  drawn = Sampling(
    temperature=_value(fields, "temperature", 1.0, float, lambda t: t >= 0),
    top_k=_value(fields, "top_k", 0, int, lambda k: k >= 0),
    top_p=_value(fields, "top_p", 1.0, float, lambda p: 0 < p <= 1),
  )
  for name in ("max_tokens", "max_completion_tokens"):
    most = _value(fields, name, most, int, lambda tokens: tokens >= 1)
  options = fields.get("stream_options") or {}
  if not isinstance(options, dict):
    raise UserError("stream_options must be an object.")
  return Asked(
    [prompt for prompt in prompts for _ in range(choices)],
    most,
    [drawn.with_seed(seed + i) for i in range(len(prompts) * choices)],
    _stop_words(fields.get("stop")),
    _value(fields, "stream", False, bool),
    bool(options.get("include_usage")),
  )


def _object(body: bytes) -> dict[str, Any]:
  try:
    fields = json.loads(body)
  except (ValueError, RecursionError) as error:
    raise UserError(f"The body is not JSON: {error}") from None
  if not isinstance(fields, dict):
    raise UserError("The body must be a JSON object.")
  return fields


def _check_fields(
  fields: Mapping[str, Any], own: set[str], model: Model
) -> None:
  known = own | {
    *("max_tokens", "model", "n", "seed", "stop", "stream", "stream_options"),
    *("temperature", "top_k", "top_p"),
  }
  for name, value in fields.items():
    if name in known or name in _IGNORED:
      continue
    if name not in _IDLE:
      raise UserError(f"There is no field {name!r} here.")
    if not any(
      type(value) is type(idle) and value == idle for idle in _IDLE[name]
    ):
      raise UserError(f"{name}={value!r} is not served here. Leave it out.")
  if fields.get("model") not in (None, "", model.name):
    raise UserError(
      f"There is no model {fields['model']!r} here; there is {model.name!r}."
    )


def _value(
  fields: Mapping[str, Any],
  name: str,
  default: Any,
  kind: type,
  holds: Callable[[Any], bool] = lambda value: True,
) -> Any:
  value = fields.get(name)
  if value is None:
    return default
  kinds = (int, float) if kind is float else (kind,)
  # JSON has no NaN, but Python's reader does.
  if type(value) not in kinds or value != value or not holds(value):
    raise UserError(f"{name} is {value!r}, which is no valid {kind.__name__}.")
  return kind(value)


def _prompts(fields: Mapping[str, Any]) -> list[Any]:
  """A text, ids, or a list of either, as a list."""
  prompt = fields.get("prompt")
  if prompt is None:
    raise UserError("prompt is missing: a text, or a list of them.")
  if isinstance(prompt, list) and not all(type(i) is int for i in prompt):
    return prompt
  return [prompt]


def _ids(prompt: Any, model: Model) -> list[int]:
  if isinstance(prompt, str):
    if has_halves(prompt):
      raise UserError("prompt has halves of characters, which are no text.")
    return model.encode(prompt) or [model.tokenizer.eos]
  if (
    isinstance(prompt, list)
    and prompt
    and all(type(i) is int and 0 <= i < model.c.vocab_size for i in prompt)
  ):
    return prompt
  raise UserError(
    "prompt must be a text, a list of texts, ids that the model has, or a list"
    " of lists of them."
  )


def _stop_words(stop: Any) -> list[str]:
  words = [stop] if isinstance(stop, str) else stop or []
  if (
    not isinstance(words, list)
    or len(words) > _MOST_STOP_WORDS
    or not all(isinstance(word, str) for word in words)
  ):
    raise UserError(f"stop must be a text or up to {_MOST_STOP_WORDS} texts.")
  return words


def _message(message: Any) -> dict[str, str]:
  """A message whose content is text, also if it came in parts."""
  if not isinstance(message, dict) or not isinstance(message.get("role"), str):
    raise UserError("messages must be objects with a role and a content.")
  content = message.get("content")
  if isinstance(content, list):
    if not all(
      isinstance(p, dict) and p.get("type") == "text" for p in content
    ):
      raise UserError("messages may have content of type text alone.")
    content = "".join(str(part.get("text", "")) for part in content)
  if not isinstance(content, str):
    raise UserError("messages must have a content that is text.")
  return dict(role=message["role"], content=content)
