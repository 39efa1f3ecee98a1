"""From questions and answers in JSON to a model that gives them as is wished."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.data.chat import ChatTemplate
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.preparation import Preparation, Settings
from intellect_jax.data.readers import Fields
from intellect_jax.data.texts import identify
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.inner.step import EvalStep, TrainStep
from intellect_jax.model import llama, sharding

TOKENIZER = make_tokenizer("byte")
ANSWERS = dict(zip("abcdefgh", "31524867", strict=True))
POLITE, PLAIN = "!", "."


def records():
  """Conversations, answered either way, and preferences for one of them."""
  rng = np.random.default_rng(0)
  talks, pairs = [], []
  for asked in 4 * [*itertools.product(ANSWERS, repeat=2)]:
    messages = []
    for letter in asked:
      answer = ANSWERS[letter] + (POLITE if rng.random() < 0.5 else PLAIN)
      messages.append(dict(role="user", content=letter))
      messages.append(dict(role="assistant", content=answer))
    talks.append(dict(messages=messages))
    answers = [ANSWERS[asked[-1]] + end for end in (POLITE, PLAIN)]
    pairs.append(
      dict(messages=messages[:-1], chosen=answers[0], rejected=answers[1])
    )
  return dict(talks=("chat", talks), pairs=("preference", pairs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("finetune")
  for name, (form, lines) in records().items():
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    settings = Settings("byte", Fields(form=form), held_out=0.1)
    preparation = Preparation([str(path)], settings, folder / "sources" / name)
    preparation.run(0, lambda read: None)
    preparation.finish()
  return folder


def config_of(folder, source, loss, rate):
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  run = config.run
  run.data.update(sources=(source,), sequence_length=128)
  run.inner.update(
    loss=loss, learning_rate=rate, warmup_tokens=0, weight_decay=0.0
  )
  config.island.data.folder = str(folder / "sources")
  config_lib.validate(config)
  identify(config)
  return config


def train(config, params, steps):
  """Parameters after so many steps, and held-out losses before and after."""
  run, island = config.run, config.island
  mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
  index = GlobalIndex(run.data, TOKENIZER, island.data)
  step = TrainStep(run, island, mesh)
  if step.abstract_frozen is not None:
    step.freeze(params)
  if params is None:
    state = step.init(jax.random.key(0))
  else:
    state = step.from_params(params)
  evaluate = EvalStep(run, island, mesh, step.frozen)
  held_out = index.held_out(run.evaluation.sequences, run.inner.batch_size)
  losses = [evaluate(state.params, held_out)]
  for batch in index.batches([(0, steps * run.inner.batch_size)], 8):
    state, _ = step(state, batch, 0.0)
  losses.append(evaluate(state.params, held_out))
  return jax.tree.map(np.array, state.params), losses


def answers(config, params):
  """What the model says to each letter, the likeliest id after the other."""
  template = ChatTemplate(TOKENIZER, config.run.data.chat_template)
  c = llama.LlamaConfig.of(config.run.model, config.island.model)
  prompts = [template.prompt([dict(role="user", content=x)]) for x in ANSWERS]
  length = len(prompts[0])
  ids = np.pad(np.stack(prompts), [(0, 0), (0, 3)])
  places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
  apply = jax.jit(functools.partial(llama.apply, c))
  for at in range(length, length + 3):
    logits = apply(params, ids, places, np.ones_like(ids))
    ids[:, at] = np.argmax(logits[:, at - 1], axis=-1)
  told = ids[:, length:]
  assert (told[:, 2] == TOKENIZER.eos).all(), "each answer ends"
  return [TOKENIZER.decode(answer) for answer in told]


def test_it_learns_to_answer_and_then_to_answer_as_is_preferred(folder):
  talking = config_of(folder, "talks", "cross_entropy", 1e-2)
  params, (before, after) = train(talking, None, 60)
  # What is left is the one choice of three ids that is free: log(2) / 3.
  assert before > 4 and after < 0.35
  right = [*ANSWERS.values()]
  assert [answer[0] for answer in answers(talking, params)] == right

  choosing = config_of(folder, "pairs", "dpo", 1e-3)
  params, (before, after) = train(choosing, params, 20)
  assert before == pytest.approx(np.log(2), rel=1e-5)
  assert after < 0.3
  assert answers(choosing, params) == [answer + POLITE for answer in right]
