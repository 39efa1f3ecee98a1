"""Rows hold texts, each token once, and know who follows on whom."""

import random

import pytest

from intellect_jax.inference import trie


def some_texts(seed, count=60):
  """Texts over few letters, so that many begin alike, and some are equal."""
  rng = random.Random(seed)
  for _ in range(count):
    tokens = [rng.randrange(3) for _ in range(rng.randint(2, 12))]
    yield trie.Text(tokens, rng.randint(1, len(tokens) - 1))


def ancestors(row, place):
  return [m for m in range(place + 1) if place < row.ends[m]]


@pytest.mark.parametrize("most", [11, 24, 1000])
def test_texts_can_be_read_off_the_rows(most):
  texts = list(some_texts(most))
  found = {}
  for row in trie.rows(texts, most):
    assert len(row) <= most
    assert len(row.tokens) == len(row.depths) == len(row.ends)
    paths = set()
    for place, depth in enumerate(row.depths):
      path = ancestors(row, place)
      assert [row.depths[m] for m in path] == list(range(depth + 1))
      paths.add(tuple(row.tokens[m] for m in path))
    assert len(paths) == len(row), "a beginning is there twice"
    for place, token, number in row.asked:
      read = [row.tokens[m] for m in ancestors(row, place)]
      found.setdefault(number, []).append((read, token))
  for number, text in enumerate(texts):
    assert found[number] == [
      (list(text.tokens[:i]), text.tokens[i])
      for i in range(text.first, len(text.tokens))
    ]


def test_choices_of_one_token_cost_nothing():
  question = list(range(20))
  texts = [trie.Text([*question, choice], 20) for choice in (7, 3, 5, 7)]
  (row,) = trie.rows(texts, 20)
  assert row.tokens == question


def test_no_texts_are_no_rows():
  assert not list(trie.rows([], 8))
