"""The adapter gives the numbers of the harness's own `hf` model, each of them."""

import importlib
import random
from typing import Any

import numpy as np
import pytest

from intellect_jax.data import sources

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

HFLM: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
Instance: Any = importlib.import_module("lm_eval.api.instance").Instance

from intellect_jax.evaluation.harness import HarnessModel  # noqa: E402

TEXT = sources.documents()[0]


@pytest.fixture(scope="module")
def theirs(folder):
  torch.set_num_threads(1)
  return HFLM(str(folder), device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def ours(model):
  return HarnessModel(model, batch_tokens=1024, slots=3)


def requests(kind, arguments):
  return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


def piece(rng, least, most):
  start = rng.randrange(len(TEXT) - most)
  return TEXT[start : start + rng.randint(least, most)]


def pairs():
  """Questions with choices that share what is before them, as benchmarks have.

  And no context at all, contexts with a space at their end, choices of one
  token, the same twice, and texts longer than the model's context.
  """
  rng = random.Random(0)
  examples = piece(rng, 60, 90)
  for _ in range(12):
    question = examples + piece(rng, 10, 60)
    yield from ((question, " " + piece(rng, 2, 30)) for _ in range(4))
    yield from ((question, choice) for choice in (" A", " B", " A"))
  yield from (("", piece(rng, 5, 40)) for _ in range(4))
  yield from ((piece(rng, 5, 20) + " ", piece(rng, 5, 20)) for _ in range(4))
  yield from ((piece(rng, 400, 500), piece(rng, 20, 40)) for _ in range(4))


def test_log_likelihoods_are_the_same(ours, theirs):
  asked = requests("loglikelihood", pairs())
  expected = theirs.loglikelihood(asked, disable_tqdm=True)
  actual = ours.loglikelihood(asked, disable_tqdm=True)
  assert [greedy for _, greedy in actual] == [g for _, g in expected]
  assert_close([x for x, _ in actual], [x for x, _ in expected])


def test_what_is_likeliest_is_said_to_be(ours, theirs):
  """Random text never is: here the model's own word is asked for."""
  rule = dict(until=[], max_gen_toks=1, do_sample=False)
  contexts = [piece(random.Random(i), 20, 60) for i in range(24)]
  asked = requests("generate_until", [(c, rule) for c in contexts])
  words = ours.generate_until(asked, disable_tqdm=True)
  asked = requests("loglikelihood", zip(contexts, words, strict=True))
  asked = [request for request in asked if request.args[1]]
  expected = theirs.loglikelihood(asked, disable_tqdm=True)
  actual = ours.loglikelihood(asked, disable_tqdm=True)
  assert any(greedy for _, greedy in expected)
  assert [greedy for _, greedy in actual] == [g for _, g in expected]
  assert_close([x for x, _ in actual], [x for x, _ in expected])


def test_rolling_log_likelihoods_are_the_same(ours, theirs):
  rng = random.Random(1)
  texts = [piece(rng, 1, 900) for _ in range(12)] + ["", "x"]
  asked = requests("loglikelihood_rolling", [(text,) for text in texts])
  expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
  assert_close(ours.loglikelihood_rolling(asked, disable_tqdm=True), expected)


def test_answers_are_the_same(ours, theirs):
  rng = random.Random(2)
  examples = piece(rng, 60, 90)
  free = dict(until=[], max_gen_toks=24, do_sample=False)
  contexts = [examples + piece(rng, 10, 40) for _ in range(5)]
  contexts += [piece(rng, 300, 400) for _ in range(2)]  # are cut on the left
  asked = requests("generate_until", [(c, free) for c in contexts])
  expected = theirs.generate_until(asked, disable_tqdm=True)
  assert ours.generate_until(asked, disable_tqdm=True) == expected
  assert len(set(expected)) > 1
  # The middle of each answer now stops it.
  words = [text[len(text) // 2 :][:2] for text in expected]
  asked = requests(
    "generate_until",
    [(c, dict(free, until=[w])) for c, w in zip(contexts, words, strict=True)],
  )
  stopped = theirs.generate_until(asked, disable_tqdm=True)
  assert ours.generate_until(asked, disable_tqdm=True) == stopped
  assert all(len(s) < len(e) for s, e in zip(stopped, expected, strict=True))


def assert_close(actual, expected):
  assert len(actual) == len(expected) > 0
  np.testing.assert_allclose(actual, expected, atol=1e-3, rtol=0)
