"""Shipped configs: valid, of the published sizes, and where all of it goes."""

import math
import os
import pathlib

import jax
from jax.sharding import AbstractMesh
import pytest

from intellect_jax import config
from intellect_jax.errors import UserError
from intellect_jax.model import llama, sharding

GOLDEN = pathlib.Path(__file__).parent / "golden"
DEVICES = 8
SIZES = dict(
  bench_50m=52_179_456,
  intellect_1_150m=219_702_272,
  intellect_1_1b=1_544_628_224,
  intellect_1_10b=10_211_381_248,
)


def load(name):
  loaded = config.load(config.base_path().parent / f"{name}.py")
  return llama.LlamaConfig.of(loaded.run.model, loaded.island.model)


@pytest.mark.parametrize("file", config.shipped())
def test_every_config_is_valid(file):
  config.validate(config.load(config.base_path().parent / file))


def test_intellect_1_anneals_rate_and_mixture_together():
  """Both are functions of tokens, and change for the last fifth."""
  run = config.load(config.base_path().with_name("intellect_1_10b.py")).run
  (_, first), (start, last) = run.data.stages
  assert start == run.tokens - run.inner.decay_tokens == 0.8 * run.tokens
  assert dict(zip(run.data.sources, last, strict=True)) == dict(
    fineweb_edu=0.8, fineweb=0.1, stack_v1=0.1, dclm=0, openwebmath=0
  )
  assert first[0] < last[0]


def test_sparse2_says_what_else_it_needs():
  run = config.base().run
  run.outer.codec = "sparse2"
  with pytest.raises(UserError) as raised:
    config.validate_run(run)
  assert "learning_rate 0.7 and momentum 0.9" in str(raised.value)
  wanted = "run.outer.learning_rate=1 --config.run.outer.momentum=0"
  assert str(raised.value).endswith(f"--config.{wanted}")
  run.outer.update(learning_rate=1, momentum=0.0)
  config.validate_run(run)
  run.outer.merge = "rda"
  with pytest.raises(UserError, match=r"run\.outer\.merge=mean"):
    config.validate_run(run)


@pytest.mark.parametrize("name, size", SIZES.items())
def test_models_have_their_published_sizes(name, size):
  assert llama.parameter_count(load(name)) == size
  text = (config.base_path().parent / f"{name}.py").read_text()
  assert f"{size:,}" in text


def layout(c):
  """A line for every parameter: path, shape, PartitionSpec, a device's part."""
  mesh = AbstractMesh((DEVICES, 1), ("fsdp", "tensor"))
  shardings = jax.tree.leaves(sharding.param_shardings(c, mesh))
  lines, held = [], 0
  for (path, leaf), place in zip(
    jax.tree.leaves_with_path(llama.abstract_params(c)), shardings, strict=True
  ):
    name = "/".join(key.key for key in path)
    part = place.shard_shape(leaf.shape)
    held += math.prod(part)
    spec = tuple(place.spec)
    lines.append(f"{name:22} {leaf.shape!s:24} {spec!s:32} {part}")
  count = llama.parameter_count(c)
  lines.append(f"{count:,} parameters, {held:,} on each of {DEVICES} devices")
  return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", SIZES)
def test_every_parameter_has_its_path_shape_and_place(name):
  golden = GOLDEN / f"{name}.txt"
  seen = layout(load(name))
  if os.environ.get("RENEW_GOLDEN"):
    golden.write_text(seen)
  assert seen == golden.read_text(), (
    "Parameters or their places changed. Checkpoints and the canonical vector"
    " hang on paths and shapes. If they should have changed, say why in the"
    " commit and run: RENEW_GOLDEN=1 python -m pytest tests/model/test_configs.py"
  )
