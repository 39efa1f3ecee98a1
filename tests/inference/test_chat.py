"""A conversation keeps what was said, as far as the context goes."""

import dataclasses

import pytest

from intellect_jax.chat import Conversation
from intellect_jax.errors import UserError
from intellect_jax.inference.engine import GREEDY, Engine
from intellect_jax.inference.text import answer


@pytest.fixture
def roomy(model):
  return dataclasses.replace(model, context=128)


@pytest.fixture
def talk(roomy):
  return Conversation(roomy, tokens=6, sampling=GREEDY, system="Be.")


def roles(talk):
  return [message["role"] for message in talk.messages]


def test_an_answer_goes_on_from_all_that_was_said(talk, roomy):
  pieces = []
  first = talk.say("A?", pieces.append)
  assert "".join(pieces) == first
  before = list(talk.messages)
  second = talk.say("B")
  heard = []
  engine = Engine(roomy, slots=2)
  asked = [*before, dict(role="user", content="B")]
  prompt = roomy.template.prompt(asked).tolist()
  engine.add(
    answer(roomy, prompt, 6, GREEDY, done=lambda text, why: heard.append(text))
  )
  engine.run()
  assert heard == [second]


def test_the_oldest_turns_are_forgotten(talk):
  for _ in range(5):
    talk.say("Say it")
    assert roles(talk)[0] == "system" and roles(talk)[-1] == "assistant"
  assert len(talk.messages) < 11
  talk.forget()
  assert roles(talk) == ["system"]


def test_what_alone_is_too_long_is_not_kept(talk):
  with pytest.raises(UserError, match="context"):
    talk.say("x" * 128)
  assert roles(talk) == ["system"]
