"""Conversations and preferences out of JSON: ids, and which are trained on.

    {"messages": [{"role": "user", "content": "…"}, …]}
    {"prompt": …, "chosen": …, "rejected": …}

Of a preference, the prompt is a text of the user's, or messages (then also as
"messages"); both answers are a text of the assistant's, or messages that follow
the prompt. Without a prompt both are whole conversations.
"""

from collections.abc import Mapping
import itertools
import json
from typing import Any, NamedTuple

import numpy as np

from intellect_jax.data.chat import ChatTemplate, Message
from intellect_jax.errors import UserError

FORMS = ("text", "chat", "preference")  # of a source
DOCUMENTS = {"chat": 1, "preference": 2}  # that stay together in a sample


class Masked(NamedTuple):
  """A document of which a part is trained on."""

  ids: np.ndarray  # [tokens] int32
  mask: np.ndarray  # [tokens] bool


def documents(
  form: str, value: Mapping[str, Any], field: str, template: ChatTemplate
) -> list[Masked]:
  """The documents of a record: one conversation, or chosen and rejected.

  Args:
    form: "chat" or "preference".
    value: the JSON object.
    field: that has the messages; empty: "messages".
    template: writes them.

  Raises:
    UserError: that says what is wrong with the record.
  """
  if form == "chat":
    field = field or "messages"
    if field not in value:
      raise UserError(f"It has no field {field!r}; --field names another.")
    return [_said(Masked(*template.encode(value[field])), "It")]
  return _pair(value, field, template)


def key(form: str, value: Mapping[str, Any], field: str) -> bytes:
  """What decides whether it is held out: one prompt is never on both sides."""
  prompt = None
  if form == "preference":
    prompt = value.get(field or "prompt", value.get("messages"))
  return json.dumps(prompt or value, sort_keys=True).encode()


def _pair(
  value: Mapping[str, Any], field: str, template: ChatTemplate
) -> list[Masked]:
  prompt = value.get(field or "prompt", value.get("messages", []))
  before = _messages(prompt, "user")
  answers = []
  for name in ("chosen", "rejected"):
    if name not in value:
      raise UserError(f"It has no field {name!r}.")
    answers.append(_messages(value[name], "assistant"))
  pair = [Masked(*template.encode([*before, *after])) for after in answers]
  # All of an answer counts. What two answers begin with cancels out of what is
  # compared, in exact arithmetic, but not out of the NLL of the chosen one.
  same = itertools.takewhile(
    lambda two: two[0] == two[1], zip(*answers, strict=False)
  )
  before = [*before, *(message for message, _ in same)]
  asked = template.prompt(before) if before else np.zeros(0, np.int32)
  common = _common(pair[0].ids, pair[1].ids)
  for document, name in zip(pair, ("Chosen", "Rejected"), strict=True):
    differs = np.arange(len(document.ids)) >= common
    _said(document._replace(mask=document.mask & differs), name)
    document.mask[: _common(asked, document.ids)] = False
  return pair


def _common(first: np.ndarray, second: np.ndarray) -> int:
  """How many ids both begin with."""
  shortest = min(len(first), len(second))
  differ = first[:shortest] != second[:shortest]
  return int(np.argmax(differ)) if differ.any() else shortest


def _messages(value: Any, role: str) -> list[Message]:
  if isinstance(value, str):
    return [dict(role=role, content=value)]
  if not isinstance(value, list):
    raise UserError(f"It has neither text nor messages of the {role}.")
  return value


def _said(document: Masked, name: str) -> Masked:
  if not document.mask[1:].any():
    raise UserError(f"{name} has no words of an assistant to train on.")
  return document
