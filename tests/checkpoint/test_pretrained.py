"""Folders of weights: what is written is read, and what is wrong is named."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from intellect_jax import config as config_lib
from intellect_jax.checkpoint import pretrained, tensors
from intellect_jax.checkpoint.pretrained import Weights
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.errors import UserError
from intellect_jax.model import huggingface, llama
from intellect_jax.outer.layout import Layout

CONFIG = config_lib.load(config_lib.base_path().with_name("tiny.py"))
RUN = CONFIG.run
ABSTRACT = llama.abstract_params(
  llama.LlamaConfig.of(RUN.model, CONFIG.island.model)
)
LAYOUT = Layout.of(ABSTRACT, huggingface.tensor_names(ABSTRACT))


def random_theta():
  random = np.random.default_rng(0)
  return LAYOUT.flatten(
    jax.tree.map(
      lambda a: random.standard_normal(a.shape, np.float32), ABSTRACT
    )
  )


@pytest.fixture
def write(tmp_path):
  def write(dtype="float32", part_bytes=10**9):
    config = huggingface.config_json(RUN.model, dtype, 64, eos=256)
    pretrained.write(tmp_path, THETA, LAYOUT, config, part_bytes)
    return tmp_path

  return write


THETA = random_theta()


@pytest.mark.parametrize("part_bytes", [10**9, 40_000, 1])
def test_the_bits_come_back(write, part_bytes):
  folder = write(part_bytes=part_bytes)
  np.testing.assert_array_equal(
    LAYOUT.flatten(Weights(folder).read(ABSTRACT)), THETA
  )
  files = list(folder.glob("*.safetensors"))
  values = [load_file(file) for file in files]
  sizes = [sum(a.nbytes for a in weights.values()) for weights in values]
  largest = 4 * max(tensor.size for tensor in LAYOUT.tensors)
  assert max(sizes) <= max(part_bytes, largest)
  if len(files) > 1:
    index = json.loads((folder / tensors.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert set(index["weight_map"]) == {t.name for t in LAYOUT.tensors}


def test_bfloat16_rounds_to_nearest_even(write):
  read = LAYOUT.flatten(Weights(write("bfloat16")).read(ABSTRACT))
  rounded = THETA.astype(ml_dtypes.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(read, rounded)


def test_matrices_are_transposed():
  values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
  query = huggingface.to_weight(("blocks", "query"), values)
  assert query.shape == (12, 2) and query[5, 1] == values[1, 1, 1]
  output = huggingface.to_weight(("blocks", "output"), values)
  assert output.shape == (4, 6) and output[3, 4] == values[1, 1, 3]
  for path, weight in ((("query",), query), (("output",), output)):
    back = huggingface.from_weight(path, weight, (2, 3, 4))
    np.testing.assert_array_equal(back, values)


def test_the_digest_is_of_the_weights(write):
  folder = write()
  before = Weights(folder).digest
  weights = load_file(folder / tensors.WHOLE)
  weights["model.norm.weight"][0] += 1
  save_file(weights, folder / tensors.WHOLE)
  assert Weights(folder).digest != before


def run_from(weights, tokenizer="byte", **model):
  run = config_lib.base().run
  run.update(model=RUN.model, init_from=weights.digest)
  run.data.update(tokenizer=tokenizer)
  run.model.update(model)
  return run


def test_a_run_of_another_shape_is_refused(write):
  weights = Weights(write())
  weights.check(run_from(weights))
  with pytest.raises(UserError) as refused:
    weights.check(run_from(weights, layers=3, rope_theta=5e5))
  assert "num_hidden_layers 2, but run.model.layers is 3" in str(refused.value)
  assert "rope_theta 10000.0, but" in str(refused.value)


@pytest.mark.parametrize(
  "field, value, words",
  [
    ("model_type", "qwen2", "model_type 'qwen2', but must be 'llama'"),
    ("attention_bias", True, "attention_bias True"),
    ("rope_parameters", dict(rope_type="llama3"), "rope_type 'llama3'"),
    ("head_dim", None, None),  # width / heads, which is 8 here as well
    ("num_key_value_heads", None, "num_key_value_heads 4"),
  ],
)
def test_other_models_than_ours_are_refused(write, field, value, words):
  weights = Weights(write())
  path = weights.folder / tensors.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
  if words is None:
    weights.check(run_from(weights))
  else:
    with pytest.raises(UserError, match=words):
      weights.check(run_from(weights))


def test_weights_of_another_run_are_refused(write):
  weights = Weights(write())
  with pytest.raises(UserError, match="starts from random weights"):
    weights.check(RUN)


def test_ids_that_mean_other_text_are_warned_of(write, caplog):
  weights = Weights(write())
  for name, warnings in (("byte", 0), ("bpe:300", 1)):
    content = make_tokenizer(name).files(64)[pretrained.TOKENIZER]
    (weights.folder / pretrained.TOKENIZER).write_bytes(content)
    weights.check(run_from(weights, tokenizer="byte"))
    assert caplog.text.count("other ids than run.data.tokenizer") == warnings


def test_damaged_folders_say_what_they_lack(write, tmp_path):
  with pytest.raises(UserError, match=r"no model\.safetensors in .*nowhere"):
    Weights(tmp_path / "nowhere")
  file = write() / tensors.WHOLE
  whole = load_file(file)
  for change, words in (
    (lambda w: w.pop("lm_head.weight"), "lacks 1 tensors, such as lm_head"),
    (
      lambda w: w.update({"model.norm.weight": np.zeros(7, np.float32)}),
      r"model.norm.weight in .* has shape \(7,\), not \(32,\)",
    ),
    (lambda w: w.update(extra=np.zeros(1)), "has extra, which is no part"),
  ):
    weights = dict(whole)
    change(weights)
    save_file(weights, file)
    with pytest.raises(UserError, match=words):
      Weights(file.parent).read(ABSTRACT)


def test_an_output_that_is_not_empty_is_left_alone(write, tmp_path):
  (tmp_path / "something").touch()
  with pytest.raises(UserError, match="not empty"):
    write()
  assert [path.name for path in tmp_path.iterdir()] == ["something"]
