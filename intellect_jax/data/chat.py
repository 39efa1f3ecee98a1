"""Conversations to text and ids: chat templates in Jinja, as Hugging Face's."""

from collections.abc import Mapping, Sequence
import functools
import json
import pathlib
from typing import Any

import jinja2
from jinja2 import sandbox
import numpy as np

from intellect_jax.data.tokenizer import Tokenizer
from intellect_jax.errors import UserError

Message = Mapping[str, Any]  # "role" and "content"

FILE = "chat_template.jinja"  # its name in a Hugging Face folder

# Tulu's headings (arXiv 2411.15124), for any tokenizer with an eos.
DEFAULT = """\
{% for message in messages %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token -}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
"""


class ChatTemplate:
  """A template and the tokenizer that its text is for.

  Attributes:
    source: the Jinja of the template.
    ends: the ids that end an answer.
  """

  def __init__(self, tokenizer: Tokenizer, source: str = ""):
    """Compiles a template, by default `DEFAULT`.

    Raises:
      UserError: if it is no Jinja.
    """
    self._tokenizer, self._eos = tokenizer, _eos_name(tokenizer)
    self.ends = frozenset({tokenizer.eos})
    self.source = source or DEFAULT
    environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["raise_exception"] = _raise
    try:
      self._template = environment.from_string(self.source)
    except jinja2.TemplateError as error:
      raise UserError(f"The chat template is no Jinja: {error}") from None

  def render(
    self, messages: Sequence[Message], add_generation_prompt: bool = False
  ) -> str:
    """The text of a conversation.

    Raises:
      UserError: if the template does not take these messages.
    """
    try:
      return self._template.render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        eos_token=self._eos,
        bos_token="",
      )
    except Exception as error:  # a template is a program, and may do anything
      raise UserError(
        f"The chat template does not take these messages: {error}"
      ) from None

  def prompt(self, messages: Sequence[Message]) -> np.ndarray:
    """The ids that an answer goes on from, [tokens] int32; raises as render."""
    return tokenize(self._tokenizer, self.render(messages, True))


def tokenize(tokenizer: Tokenizer, text: str) -> np.ndarray:
  """The ids of a text in which the name of eos is that token."""
  first, *others = text.split(_eos_name(tokenizer))
  ids = [tokenizer.encode(first)]
  for part in others:
    ids += [np.array([tokenizer.eos]), tokenizer.encode(part)]
  return np.concatenate(ids).astype(np.int32)


@functools.lru_cache(8)
def _eos_name(tokenizer: Tokenizer) -> str:
  config = tokenizer.files(sequence_length=1)["tokenizer_config.json"]
  return json.loads(config)["eos_token"]


def read_template(path: pathlib.Path) -> str:
  """The template in a file: Jinja, or a tokenizer_config.json that has one.

  Raises:
    UserError: if there is none.
  """
  try:
    text = path.read_text()
    return text if path.suffix != ".json" else json.loads(text)["chat_template"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"There is no chat template in {path}: {error!r}") from None


def _raise(message: str):
  raise jinja2.TemplateError(message)
