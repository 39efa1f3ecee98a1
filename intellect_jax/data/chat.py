"""Conversations to text and ids: chat templates in Jinja, as Hugging Face's.

A template sees what `apply_chat_template` of transformers shows it, in the same
sandbox, so the one of any model can be used as it is. Which words are the
assistant's, and so are trained on, it says by {% generation %}; of one that
does not say so, they are what it adds for an assistant's message to what it has
for the messages before with `add_generation_prompt`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import datetime
import functools
import json
import pathlib
import re
from typing import Any, ClassVar

import jinja2
from jinja2 import ext, nodes, sandbox
import numpy as np

from intellect_jax.data.tokenizer import Tokenizer, any_of
from intellect_jax.errors import UserError

Message = Mapping[str, Any]  # "role" and "content", and what else there is
Span = tuple[int, int]  # characters, the second one exclusive

FILE = "chat_template.jinja"  # its name in a Hugging Face folder

# Tulu's headings (arXiv 2411.15124), for any tokenizer with an eos. It ends
# every message: no content has one, so no content can pass for a heading.
DEFAULT = """\
{% for message in messages %}
{{ '<|' + message['role'] + '|>\\n' -}}
{% if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] | trim + eos_token -}}{% endgeneration %}
{% else %}
{{ message['content'] | trim + eos_token -}}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
"""

# Around what an assistant says, while a template is rendered. Unicode keeps
# these two for uses inside a program; a content that has them is refused.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")
_SAYS_WHO = re.compile(r"{%-?\s*generation\s*-?%}")


class ChatTemplate:
  """A template and the tokenizer that its text is for.

  Attributes:
    source: the Jinja of the template.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    source: str = "",
    now: Callable[[], datetime.datetime] | None = None,
  ):
    """Compiles the template.

    Args:
      tokenizer: makes the ids, and has the names of eos_token and the like.
      source: Jinja; empty: `DEFAULT`.
      now: for templates that tell the date by `strftime_now`. Without it they
        have no such function, and a text is the same on every day.

    Raises:
      UserError: if it is no Jinja.
    """
    self.source = source or DEFAULT
    self._tokenizer = tokenizer
    environment = _environment()
    if now is not None:
      environment.globals["strftime_now"] = lambda form: now().strftime(form)
    try:
      self._template = environment.from_string(self.source)
    except jinja2.TemplateError as error:
      raise UserError(f"The chat template is no Jinja: {error}") from None

  def render(
    self, messages: Sequence[Message], add_generation_prompt: bool = False
  ) -> str:
    """The text of a conversation.

    Args:
      messages: in order; of each its "role" and its "content".
      add_generation_prompt: end with what an answer begins after.

    Raises:
      UserError: if these are no messages, or the template does not take them.
    """
    return _MARKS.sub("", self._marked(messages, add_generation_prompt))

  def prompt(self, messages: Sequence[Message]) -> np.ndarray:
    """The ids that an answer goes on from, [tokens] int32; raises as render."""
    return self._tokenizer.tokenize(self.render(messages, True)).ids

  def encode(
    self, messages: Sequence[Message]
  ) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a conversation, and which of them are the assistant's.

    Returns:
      [tokens] int32, and [tokens] bool: whether any character of the token is
      of what the assistant says, its end of turn included.

    Raises:
      UserError: as render; or if the template does not say which they are.
    """
    text, spans = self._spans(messages)
    ids, offsets = self._tokenizer.tokenize(text)
    mask = np.zeros(len(ids), bool)
    for start, stop in spans:
      mask |= (offsets[:, 0] < stop) & (offsets[:, 1] > start)
    return ids, mask

  @functools.cached_property
  def ends(self) -> frozenset[int]:
    """The ids that end an answer: eos, and what the template ends it with."""
    user, assistant = (dict(role=r, content="x") for r in ("user", "assistant"))
    ids, mask = self.encode([user, assistant])
    special = set(self._tokenizer.special.values())
    return frozenset({self._tokenizer.eos, *special.intersection(ids[mask])})

  def _spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """The text of a conversation, and where in it the assistant speaks."""
    if _SAYS_WHO.search(self.source):
      return _unmarked(self._marked(messages))
    text = self.render(messages)
    return text, list(self._added(messages, text))

  def _added(self, messages: Sequence[Message], text: str) -> Iterator[Span]:
    """What each message of the assistant adds to the text before it."""
    for i, message in enumerate(messages):
      if message["role"] != "assistant":
        continue
      before = self.render(messages[:i], add_generation_prompt=True)
      up_to = self.render(messages[: i + 1])
      if not (up_to.startswith(before) and text.startswith(up_to)):
        raise UserError(
          f"The chat template writes messages[{i}] in another way when others"
          " follow, so that what the assistant says in it cannot be told. Put"
          " {% generation %} and {% endgeneration %} around it in the template."
        )
      yield len(before), len(up_to)

  def _marked(
    self, messages: Sequence[Message], add_generation_prompt: bool = False
  ) -> str:
    check_messages(messages, self._tokenizer.special)
    try:
      return self._template.render(
        messages=messages,
        tools=None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **self._tokenizer.special_tokens_map,
      )
    except Exception as error:  # a template is a program, and may do anything
      raise UserError(
        f"The chat template does not take these messages: {error}"
      ) from None


def check_messages(messages: Any, special: Mapping[str, int]) -> None:
  """Checks that these are messages whose contents are words, and no more.

  Args:
    messages: what somebody sent or wrote.
    special: names of special tokens; a content that has one would become it.

  Raises:
    UserError: that names the message.
  """
  if not isinstance(messages, Sequence) or isinstance(messages, str):
    raise UserError("The messages are no list.")
  for i, message in enumerate(messages):
    where = f"messages[{i}]"
    if not isinstance(message, Mapping):
      raise UserError(f"{where} is no object with a role and a content.")
    for field in ("role", "content"):
      if not isinstance(message.get(field), str):
        raise UserError(f"{where} has no {field!r} that is text.")
    if not re.fullmatch(r"\w+", message["role"]):
      raise UserError(f"The role of {where} is {message['role']!r}, no word.")
    content = message["content"]
    if has_halves(content):
      raise UserError(f"The content of {where} has halves of characters.")
    found = any_of(tuple(special)).search(content) or _MARKS.search(content)
    if found:
      raise UserError(
        f"The content of {where} has {found.group()!r}, which is no text: it"
        " would become a special token."
      )


def has_halves(text: str) -> bool:
  """Whether a text has surrogates, halves of characters: no UTF-8 has them."""
  return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)


def read_template(path: pathlib.Path) -> str:
  """The template in a file: Jinja, or a tokenizer_config.json that has one.

  Raises:
    UserError: if there is none.
  """
  try:
    text = path.read_text()
    if path.suffix != ".json":
      return text
    return json.loads(text)["chat_template"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"There is no chat template in {path} ({error!r}). It must be a file of"
      " Jinja, or a tokenizer_config.json with a chat_template."
    ) from None


# ------------------------------------------------------------------ Jinja


class _Generation(ext.Extension):
  """{% generation %} … {% endgeneration %}: the assistant says this."""

  tags: ClassVar = {"generation"}

  def parse(self, parser) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    marked = self.call_method("_mark")
    return nodes.CallBlock(marked, [], [], body).set_lineno(line)

  def _mark(self, caller) -> str:
    return f"{_OPEN}{caller()}{_CLOSE}"


def _environment() -> sandbox.ImmutableSandboxedEnvironment:
  """What transformers gives to templates, and no way out of it."""
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, ext.loopcontrols],
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = _raise
  return environment


def _to_json(
  value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
  """jinja2's own would write < as \\u003c, for web pages."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _raise(message: str):
  raise jinja2.TemplateError(message)


def _unmarked(text: str) -> tuple[str, list[Span]]:
  """A text without its marks, and what was between them."""
  parts = _MARKS.split(text)
  ends = np.cumsum([len(part) for part in parts]).tolist()
  return "".join(parts), list(zip(ends[:-1:2], ends[1::2], strict=True))
