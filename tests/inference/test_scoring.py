"""Packed or not, a text is as likely."""

import random

import numpy as np
import pytest

from intellect_jax.errors import UserError
from intellect_jax.inference.scoring import Scorer
from intellect_jax.inference.trie import Text


def some_texts(context):
  rng = random.Random(0)
  shared = [rng.randrange(512) for _ in range(context)]
  for _ in range(40):
    tokens = shared[: rng.randrange(context // 2)]
    tokens = tokens + [rng.randrange(3) for _ in range(rng.randint(2, 30))]
    yield Text(tokens, rng.randint(1, len(tokens) - 1))
  yield Text([*shared, 1], 1)  # as long as may be


@pytest.mark.parametrize(
  "which, batch_tokens", [("model", 1), ("sharded", 4096)]
)
def test_scores_are_those_of_the_plain_forward_pass(
  which, batch_tokens, log_probabilities, request
):
  model = request.getfixturevalue(which)
  texts = list(some_texts(model.context))
  done = []
  scores = Scorer(model, batch_tokens).score(texts, done.append)
  assert sum(done) >= len(texts)
  for text, score in zip(texts, scores, strict=True):
    logp = log_probabilities(text.tokens)
    following = range(text.first, len(text.tokens))
    expected = sum(logp[i - 1, text.tokens[i]] for i in following)
    np.testing.assert_allclose(score.log_likelihood, expected, atol=1e-4)
    greedy = all(logp[i - 1].argmax() == text.tokens[i] for i in following)
    assert score.greedy == greedy


def test_the_likeliest_is_known(model, log_probabilities):
  text = [5, 300, 17]
  likeliest = int(log_probabilities(text)[-1].argmax())
  others = Text([*text, 1 - min(likeliest, 1)], 3)
  scores = Scorer(model).score([others, Text([*text, likeliest], 3)])
  assert [score.greedy for score in scores] == [False, True]


def test_what_begins_alike_is_read_once(model):
  shared = list(range(60))
  texts = [Text([*shared, k, k + 1], 60) for k in range(100)]
  scorer = Scorer(model)
  scorer.score(texts)
  assert scorer.tokens_read < 10 * len(shared)


def test_no_texts(model):
  assert Scorer(model).score([]) == []


def test_a_text_beyond_the_context_is_refused(model):
  with pytest.raises(UserError, match="context"):
    Scorer(model).score([Text([0] * (model.context + 2), 1)])
