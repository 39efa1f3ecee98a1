"""A trained model writes here what it writes in transformers, token for token."""

import json
import shutil

import jax
import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.checkpoint import exported
from intellect_jax.checkpoint.durable import DurableCheckpoints, read_outer
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.inference.engine import GREEDY, Engine, Request
from intellect_jax.inference.loading import open_model
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import sharding
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer.layout import Layout

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

STEPS, TOKENS = 120, 256
PROMPTS = ("The function returns", "import", "When a module is")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Of an island that has learned how the shipped text goes."""
  workdir = tmp_path_factory.mktemp("island")
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  run = config.run
  run.data.update(tokenizer="bpe:512")
  run.tokens = STEPS * run.inner.batch_size * run.data.sequence_length
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  step = TrainStep(run, config.island, mesh)
  index = GlobalIndex(run.data, tokenizer_of(run))
  state, losses = step.init(jax.random.key(0)), []
  size = run.inner.batch_size
  for n, batch in enumerate(index.batches([(0, STEPS * size)], size)):
    seen = n * size * run.data.sequence_length
    state, metrics = step(state, batch, float(seen))
    losses.append(float(metrics["loss"]))
  assert losses[-1] < losses[0] - 1.5
  theta = Layout.of(state.params, tensor_names(state.params)).flatten(
    state.params
  )
  checkpoints = DurableCheckpoints(workdir / "checkpoints", "a-run", keep=1)
  meta = dict(run=run.to_dict())
  checkpoints.save(1, theta, np.zeros_like(theta), state.params, meta)
  checkpoints.close()
  return workdir


@pytest.fixture(scope="module")
def folder(workdir):
  folder = workdir / "llama"
  outer = read_outer(workdir / "checkpoints")
  run = config_lib.from_dict(outer.meta["run"])
  exported.write(folder, run, workdir, outer.theta, "float32", 10**9)
  return folder


def opened(path):
  """With room for all that is written, unlike in training."""
  return open_model(path, config_lib.base().island, context=2 * TOKENS)


def written(model):
  """What the engine adds to all prompts, at once."""
  texts = [[] for _ in PROMPTS]
  engine = Engine(model, slots=len(PROMPTS))
  for text, prompt in zip(texts, PROMPTS, strict=True):

    def take(token, logprob, text=text):
      text.append(token)
      return True

    engine.add(Request(model.encode(prompt), TOKENS, GREEDY, take))
  engine.run()
  return texts


def test_greedy_tokens_are_those_of_transformers(workdir, folder):
  ours = written(opened(workdir))
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  assert theirs.dtype == torch.float32
  for prompt, text in zip(PROMPTS, ours, strict=True):
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
      (tokens,) = theirs.generate(
        **ids,
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,  # all 256, whatever they are
        pad_token_id=0,
      )
    assert text == tokens[ids["input_ids"].shape[1] :].tolist()
    assert len(text) == TOKENS and len(set(text)) > 5


def test_a_folder_is_the_same_model(workdir, folder):
  a, b = opened(workdir), opened(folder)
  assert a.c == b.c and a.stops == b.stops and a.bos == b.bos == ()
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
  assert a.encode("naïve") == b.encode("naïve")


def test_ids_of_prompts_and_conversations_are_those_of_transformers(
  folder, tmp_path
):
  """Of a tokenizer that begins each text with a token, and has a template."""
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
  (token,) = tokenizer["added_tokens"]
  name, number = token["content"], token["id"]
  single = [
    dict(SpecialToken=dict(id=name, type_id=0)),
    dict(Sequence=dict(id="A", type_id=0)),
  ]
  special = dict(id=name, ids=[number], tokens=[name])
  tokenizer["post_processor"] = dict(
    type="TemplateProcessing",
    single=single,
    pair=[*single, dict(Sequence=dict(id="B", type_id=1))],
    special_tokens={name: special},
  )
  (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
  (tmp_path / "chat_template.jinja").write_text(
    "{{ eos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}> {% endif %}"
  )
  model = opened(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert model.bos == (number,)
  for prompt in PROMPTS:
    assert model.encode(prompt) == theirs(prompt)["input_ids"]
  said = [
    dict(role="user", content="Hello"),
    dict(role="assistant", content="."),
  ]
  ids = theirs.apply_chat_template(said, add_generation_prompt=True)
  ids = ids if isinstance(ids, list) else ids["input_ids"]
  assert model.template.prompt(said).tolist() == ids
  # The template's first token is the one that texts begin with, and is not
  # put before it again.
  assert model.encode(model.template.render(said, True)) == ids
