"""An exported run writes in transformers what it writes here."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.checkpoint.durable import DurableCheckpoints
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.model import llama, sharding
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer.layout import Layout

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = 24


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Of an island that has stopped at record 3, on random parameters."""
  workdir = tmp_path_factory.mktemp("island")
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  run = config.run
  run.model.update(tied_embeddings=True)
  run.data.update(tokenizer="bpe:500")
  c = llama.LlamaConfig.of(run.model, config.island.model)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  params = llama.init_params(c, jax.random.key(0), mesh)
  theta = Layout.of(params, tensor_names(params)).flatten(params)
  checkpoints = DurableCheckpoints(workdir / "checkpoints", "a-run", keep=1)
  meta = dict(run=run.to_dict())
  checkpoints.save(3, theta, np.zeros_like(theta), params, meta)
  checkpoints.close()
  return workdir


def run(module, *flags):
  """What a command of ours prints."""
  command = [sys.executable, "-m", f"intellect_jax.{module}", *flags]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_greedy_text_is_the_same(workdir, tmp_path):
  here = f"--workdir={workdir}"
  run("export", here, f"--output={tmp_path / 'llama'}")
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama")
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
  prompt = "The function returns"
  greedy = ["--temperature=0", f"--tokens={TOKENS}", f"--prompt={prompt}"]
  expected = run("generate", here, *greedy).removesuffix("\n")
  ids = tokenizer(prompt, return_tensors="pt")
  with torch.no_grad():
    (written,) = model.generate(
      **ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
    )
  added = written[ids["input_ids"].shape[1] :].tolist()
  ours = make_tokenizer("bpe:500").decode(added)
  theirs = tokenizer.decode(added, skip_special_tokens=True)
  assert prompt + ours == prompt + theirs == expected
