"""What needs lm-eval, torch and transformers: `make test-extras` runs it."""

import os

import jax
import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.checkpoint import pretrained
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.inference.loading import open_model
from intellect_jax.model import huggingface, llama
from intellect_jax.outer.layout import Layout

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here comes from a hub

HERE = os.path.dirname(__file__)
CONTEXT = 96


def pytest_collection_modifyitems(items):
  for item in items:
    if str(item.path).startswith(HERE):
      item.add_marker(pytest.mark.eval)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  """A small Llama as Hugging Face has it, every tensor random."""
  folder = tmp_path_factory.mktemp("llama")
  run = config_lib.load(config_lib.base_path().with_name("tiny.py")).run
  tokenizer = make_tokenizer("bpe:512")
  c = llama.LlamaConfig.of(run.model, config_lib.base().island.model)
  random = np.random.default_rng(0)

  def values(path, leaf):
    mean, std = (1.0, 0.2) if path[-1].key.endswith("norm") else (0.0, 0.3)
    return random.normal(mean, std, leaf.shape).astype(np.float32)

  params = jax.tree.map_with_path(values, llama.abstract_params(c))
  layout = Layout.of(params, huggingface.tensor_names(params))
  config = huggingface.config_json(run.model, "float32", CONTEXT, tokenizer.eos)
  pretrained.write(folder, layout.flatten(params), layout, config, 10**9)
  for name, content in tokenizer.files(CONTEXT).items():
    (folder / name).write_bytes(content)
  return folder


@pytest.fixture(scope="session")
def model(folder):
  """The same here, on a mesh of 2 x 2 devices."""
  island = config_lib.base().island
  island.mesh.update(fsdp=2, tensor=2)
  return open_model(folder, island)
