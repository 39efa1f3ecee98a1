"""However texts share the engine, each is what it would be alone."""

import random

import numpy as np
import pytest

from intellect_jax.errors import UserError
from intellect_jax.inference.engine import GREEDY, Engine, Request, Sampling

WARM = Sampling(temperature=1.0, top_k=0, top_p=0.9, seed=3)


class Writer:
  """Takes the tokens of one request."""

  def __init__(self, prompt, most, sampling=GREEDY, until=lambda token: False):
    self.tokens, self.why = [], None
    self.logprobs = []

    def take(token, logprob):
      assert self.why is None
      self.tokens.append(token)
      self.logprobs.append(logprob)
      return not until(token)

    def done(why):
      assert self.why is None
      self.why = why

    self.request = Request(prompt, most, sampling, take, done)


def run(engine, *writers):
  for writer in writers:
    engine.add(writer.request)
  engine.run()
  return [writer.tokens for writer in writers]


@pytest.fixture(scope="module")
def greedy(log_probabilities):
  """What the plain forward pass takes for the likeliest, one after another."""

  def write(prompt, most):
    text = list(prompt)
    for _ in range(most):
      text.append(int(log_probabilities(text)[-1].argmax()))
    return text[len(prompt) :]

  return write


def prompts(count):
  """Of many lengths; some go on from others."""
  rng = random.Random(0)
  shared = [rng.randrange(512) for _ in range(40)]
  for _ in range(count):
    end = [rng.randrange(512) for _ in range(rng.randint(1, 12))]
    yield shared[: rng.choice((0, 0, 33, 40))] + end


@pytest.mark.parametrize("which, count", [("model", 9), ("sharded", 3)])
def test_greedy_texts_are_those_of_the_plain_forward_pass(
  which, count, greedy, request
):
  writers = [Writer(p, 3 + n % 4) for n, p in enumerate(prompts(count))]
  engine = Engine(request.getfixturevalue(which), slots=2)
  for writer, tokens in zip(writers, run(engine, *writers), strict=True):
    assert tokens == greedy(writer.request.prompt, writer.request.most)
    assert writer.why == "length"


def test_log_probabilities_are_the_models(model, log_probabilities):
  writer = Writer([5, 300, 17], 4, WARM)
  (tokens,) = run(Engine(model, slots=2), writer)
  logp = log_probabilities([5, 300, 17, *tokens])
  expected = [logp[2 + n, token] for n, token in enumerate(tokens)]
  np.testing.assert_allclose(writer.logprobs, expected, atol=1e-4)


def test_a_conversation_is_read_from_where_it_goes_on(model, greedy):
  engine = Engine(model, slots=2)
  prompt = list(range(30))
  (first,) = run(engine, Writer(prompt, 3))
  before = engine.tokens_read
  longer = [*prompt, *first, 9]
  assert run(engine, Writer(longer, 3)) == [greedy(longer, 3)]
  assert engine.tokens_read - before < 10


def test_who_begins_alike_at_the_same_time_reads_it_once(model, greedy):
  shared = list(range(100, 140))
  engine = Engine(model, slots=2)
  first = Writer([*shared, 1], 8)
  engine.add(first.request)
  engine.step()
  before = engine.tokens_read
  second = Writer([*shared, 2, 3], 8)
  run(engine, second)
  assert engine.tokens_read - before < 20
  for writer in (first, second):
    assert writer.tokens == greedy(writer.request.prompt, 8)


def test_a_draw_does_not_depend_on_the_company(model):
  (alone,) = run(Engine(model, slots=2), Writer([1, 2, 3], 6, WARM))
  company = [Writer(p, 5, Sampling(seed=8)) for p in prompts(5)]
  writer = Writer([1, 2, 3], 6, WARM)
  assert run(Engine(model, slots=2), *company, writer)[-1] == alone
  (other,) = run(
    Engine(model, slots=2), Writer([1, 2, 3], 6, WARM.with_seed(4))
  )
  assert other != alone


def test_a_text_ends_when_its_taker_says(model, greedy):
  expected = greedy([5, 300, 17], 6)
  writer = Writer([5, 300, 17], 6, until=lambda token: token == expected[2])
  run(Engine(model, slots=2), writer)
  assert writer.tokens == expected[: expected.index(expected[2]) + 1]
  assert writer.why == "stop"


def test_a_text_ends_with_the_context(model):
  writer = Writer([1] * (model.context - 3), 100)
  (tokens,) = run(Engine(model, slots=2), writer)
  assert len(tokens) == 4 and writer.why == "length"


def test_a_sliding_text_goes_on_from_its_last_half(model, greedy):
  prompt = list(range(model.context - 2))
  (tokens,) = run(Engine(model, slots=2, slide=True), Writer(prompt, 20))
  assert tokens[:3] == greedy(prompt, 3)
  seen = [*prompt, *tokens[:3]][-model.context // 2 :]
  assert tokens[3:] == greedy(seen, 17)


def test_who_is_cancelled_makes_room(model, greedy):
  engine = Engine(model, slots=2)
  slots = engine.slots
  first = [Writer([n], 50) for n in range(slots)]
  waiting, last = Writer([8], 50), Writer([9], 3)
  for writer in (*first, waiting, last):
    engine.add(writer.request)
  engine.step()
  for writer in (first[0], waiting):
    engine.cancel(writer.request)
    engine.cancel(writer.request)
  engine.run()
  assert first[0].why == waiting.why == "cancelled"
  assert last.tokens == greedy([9], 3)


def test_what_cannot_be_written_is_refused(model):
  engine = Engine(model, slots=2)
  with pytest.raises(UserError, match="context"):
    engine.add(Writer([1] * model.context, 1).request)
  with pytest.raises(UserError, match="top_p"):
    engine.add(Writer([1], 1, Sampling(top_p=0.0)).request)
  with pytest.raises(UserError, match="token to go on from"):
    engine.add(Writer([], 1).request)
