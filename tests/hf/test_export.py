"""An exported run is, to transformers and to a hub, a model like any other."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.checkpoint import adapters, exported
from intellect_jax.data import chat
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.observe.card import card
from intellect_jax.observe.provenance import gather

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
huggingface_hub = pytest.importorskip("huggingface_hub")

TOKENS = 24
PROMPT = "The function returns"


def run(module, *flags):
  """What a command of ours prints."""
  command = [sys.executable, "-m", f"intellect_jax.{module}", *flags]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Of a lone island that has trained for six records, keeping them all."""
  workdir = tmp_path_factory.mktemp("island")
  run(
    "train",
    "--config=configs/tiny.py",
    "--config.run.model.tied_embeddings=True",
    "--config.run.data.tokenizer=bpe:500",
    "--config.island.checkpoint.keep=9",
    f"--workdir={workdir}",
  )
  return workdir


@pytest.fixture(scope="module")
def release(workdir):
  """In several parts."""
  folder = workdir / "exported"
  told = run("export", f"--workdir={workdir}", f"--output={folder}",
             "--part=0.0001", "--name=Ada", "--license=mit")  # fmt: skip
  assert told == f"theta of record 6 is in {folder}\n"
  return folder


def load(folder: pathlib.Path):
  return (
    transformers.AutoTokenizer.from_pretrained(folder),
    transformers.AutoModelForCausalLM.from_pretrained(folder),
  )


def test_greedy_text_is_the_same(workdir, release):
  tokenizer, model = load(release)
  greedy = ["--temperature=0", f"--tokens={TOKENS}", f"--prompt={PROMPT}"]
  told = run("generate", f"--workdir={workdir}", *greedy)
  ids = tokenizer(PROMPT, return_tensors="pt")
  with torch.no_grad():
    (written,) = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
  added = written[ids["input_ids"].shape[1] :].tolist()
  ours = make_tokenizer("bpe:500").decode(added)
  theirs = tokenizer.decode(added, skip_special_tokens=True)
  assert PROMPT + ours == PROMPT + theirs == told.removesuffix("\n")


def test_the_folder_is_whole(release):
  index = json.loads((release / "model.safetensors.index.json").read_text())
  parts = {path.name for path in release.glob("model-*-of-*.safetensors")}
  assert parts == set(index["weight_map"].values()) and len(parts) > 1
  told = transformers.GenerationConfig.from_pretrained(release)
  assert told.eos_token_id == told.pad_token_id == 499
  config = transformers.AutoConfig.from_pretrained(release)
  assert config.tie_word_embeddings and config.num_hidden_layers == 2


def test_a_hub_reads_the_card(release):
  model_card = huggingface_hub.ModelCard.load(release / "README.md")
  assert model_card.data.license == "mit"
  assert model_card.data.library_name == "transformers"
  assert "diloco" in model_card.data.tags
  assert model_card.text.lstrip().startswith("# Ada")
  training = json.loads((release / "training.json").read_text())
  (island,) = training["islands"].values()
  assert island["tokens"] == training["tokens"] == 12_288
  assert 0 < island["hours"] < 1
  evaluated = [record for record, _ in training["evaluations"]]
  assert len(evaluated) > 1 and evaluated[-1] == 6
  assert training["run"]["model"]["layers"] == 2


def test_a_model_that_chats_says_so(tmp_path):
  run = config_lib.load(config_lib.base_path().with_name("tiny.py")).run
  run.data.chat_template = chat.DEFAULT
  _, layout = adapters.layout_of(run)
  theta = np.random.default_rng(0).normal(0, 0.02, layout.size)
  exported.write(
    tmp_path, run, tmp_path, theta.astype(np.float32), "float32", 10**9
  )
  tokenizer, model = load(tmp_path)
  messages = [dict(role="user", content="Hi!")]
  told = tokenizer.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
  )
  ours = chat.ChatTemplate(make_tokenizer("byte"), run.data.chat_template)
  assert told == ours.render(messages, add_generation_prompt=True)
  assert model.generation_config.eos_token_id == tokenizer.eos_token_id
  told = gather(tmp_path, run, "a-run", record=0)
  meta = {"run_id": "a-run", "record_hash": "", "exported by": "0.1"}
  text = card(run, told, "theta", "float32", meta)
  assert "apply_chat_template" in text and "The run evaluated nothing" in text


def test_the_mean_of_records_and_a_merge_of_exports(workdir, tmp_path):
  """The mean over two records is that of the models of both, merged."""
  here = f"--workdir={workdir}"
  mean, newest, before, merged = (tmp_path / n for n in "abcd")
  run("export", here, f"--output={mean}", "--last=2")
  run("export", here, f"--output={newest}")
  kept = tmp_path / "kept" / "checkpoints"
  kept.mkdir(parents=True)
  (kept / "5").symlink_to(workdir / "checkpoints" / "5")
  run("export", f"--workdir={kept.parent}", f"--output={before}")
  run("merge", f"--model={newest}", f"--model={before}", f"--output={merged}")
  (_, a), (_, b) = load(mean), load(merged)
  for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7, msg=name)
