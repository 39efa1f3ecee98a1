"""Folders merged a piece at a time, against the whole of them at once."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from intellect_jax import config as config_lib
from intellect_jax import merge
from intellect_jax.checkpoint import adapters, exported, tensors
from intellect_jax.checkpoint.durable import DurableCheckpoints
from intellect_jax.checkpoint.merged import METHODS, Merged, Recipe
from intellect_jax.errors import UserError
from intellect_jax.model import merging

# One longer than a piece, one with rows longer than a piece.
SHAPES = {
  "embed": (1200, 300),
  "up": (2, tensors.PIECE + 3),
  "norm": (64,),
}
WEIGHTS = [1.0, 2.0, 0.5]


def write(folder, values, part_bytes=10**9, model_type="llama"):
  tensors.write(
    folder,
    {name: v.shape for name, v in values.items()},
    lambda name: [values[name]],
    "float32",
    part_bytes,
  )
  config = dict(model_type=model_type, dtype="float32")
  tensors.write_json(folder / tensors.CONFIG, config)
  return folder


def values(seed, near=None):
  random = np.random.default_rng(seed)
  noise = {
    name: random.standard_normal(shape, np.float32)
    for name, shape in SHAPES.items()
  }
  if near is None:
    return noise
  return {name: near[name] + 0.1 * noise[name] for name in SHAPES}


BASE = values(0)
TUNED = [values(seed, BASE) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """The base, and those tuned from it; in several parts."""
  root = tmp_path_factory.mktemp("models")
  return [
    write(root / f"{i}", v, part_bytes=1_000_000)
    for i, v in enumerate((BASE, *TUNED))
  ]


def at_once(recipe, name):
  """A tensor merged whole."""
  models, base = [t[name] for t in TUNED], BASE[name]
  deltas = [model - base for model in models]
  if recipe.method == "linear":
    return merging.linear(models, recipe.weights)
  if recipe.method == "ties":
    names = [name] if recipe.trim == "tensor" else list(SHAPES)
    for i, tuned in enumerate(TUNED):
      learnt = np.concatenate([(tuned[n] - BASE[n]).ravel() for n in names])
      rank = int(recipe.density * learnt.size)
      deltas[i] = merging.trim(deltas[i], np.sort(np.abs(learnt))[-rank])
  if recipe.method.startswith("dare"):
    generators = [merging.generator_of(recipe.seed, i, name) for i in range(3)]
    deltas = [
      merging.drop(d, recipe.density, generator)
      for d, generator in zip(deltas, generators, strict=True)
    ]
  elects = recipe.method.endswith("ties")
  combine = merging.elect if elects else merging.task_arithmetic
  return combine(base, deltas, recipe.weights, recipe.scale)


@pytest.mark.parametrize(
  "method, trim",
  [(m, "tensor") for m in METHODS if m != "slerp"] + [("ties", "model")],
)
def test_pieces_are_the_whole(folders, tmp_path, method, trim):
  recipe = Recipe(method, WEIGHTS, 0.3, 0.8, trim=trim)
  base, *models = folders
  base = None if method == "linear" else base
  merge.merge(recipe, models, base, tmp_path / "out", "float32", 10**9)
  merged = load_file(tmp_path / "out" / tensors.WHOLE)
  for name in SHAPES:
    np.testing.assert_array_equal(merged[name], at_once(recipe, name))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_of_tensors(folders, t):
  """The arc is that of a tensor as a whole, as mergekit has it."""
  _, a, b, _ = map(tensors.Folder, folders)
  merged = Merged(Recipe("slerp", [1, 1], t=t), [a, b], None)
  for name in SHAPES:
    x, y = (np.float64(v[name]) for v in TUNED[:2])
    angle = np.arccos(np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y))
    expected = np.sin((1 - t) * angle) * x + np.sin(t * angle) * y
    found = np.concatenate(list(merged.pieces(name)))
    np.testing.assert_allclose(found, expected / np.sin(angle), atol=1e-5)


def test_memory_holds_pieces_and_no_tensor(tmp_path):
  big = {"big": np.ones((64, tensors.PIECE // 2), np.float32)}  # 32 MiB
  paths = [write(tmp_path / name, big) for name in "abcd"]
  recipe = Recipe("ties", [1.0, 1.0, 1.0])
  tracemalloc.start()
  try:
    merge.merge(recipe, paths[1:], paths[0], tmp_path / "out", "float32", 10**9)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < big["big"].nbytes


def test_a_workdir_is_merged_with_a_folder(tmp_path):
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  run, workdir = config.run, tmp_path / "island"
  # Which has blocks of its own, and so another canonical vector.
  run.outer.update(codec="sparse2", learning_rate=1.0, momentum=0.0)
  size = adapters.layout_of(run)[1].size
  theta = np.random.default_rng(0).standard_normal(size, np.float32)
  checkpoints = DurableCheckpoints(workdir / "checkpoints", "a-run", keep=1)
  meta = dict(run=run.to_dict())
  checkpoints.save(3, theta, theta, dict(x=jnp.zeros(1)), meta)
  checkpoints.close()
  folder, out = tmp_path / "twice", tmp_path / "out"
  exported.write(folder, run, workdir, 2 * theta, "float32", 10**9)
  recipe = Recipe("linear", [3, 1])
  merge.merge(recipe, [workdir, folder], None, out, "float32", 10**9)
  merged, twice = (load_file(f / tensors.WHOLE) for f in (out, folder))
  assert merged.keys() == twice.keys()
  for name, values in merged.items():
    np.testing.assert_allclose(values, 1.25 / 2 * twice[name], rtol=1e-6)
  assert {"tokenizer.json", "generation_config.json"} < {
    path.name for path in out.iterdir()
  }
  assert not list(tmp_path.glob("merge-*"))


def test_everything_else_is_of_the_first_model(folders, tmp_path):
  first, second = folders[1:3]
  (first / "chat_template.jinja").write_text("{{ messages }}")
  (second / "chat_template.jinja").write_text("another")
  (first / "training.json").write_text("{}")
  recipe = Recipe("linear", [1, 3])
  merge.merge(recipe, [first, second], None, tmp_path, "bfloat16", 10**9)
  assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"
  assert tensors.read_json(tmp_path / "config.json")["dtype"] == "bfloat16"
  card = (tmp_path / "README.md").read_text()
  assert "| 1 | 0.25 |" in card and "linear" in card
  for name in (tensors.INDEX, "training.json"):
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
  "method, models, base, weights, words",
  [
    ("linear", 1, False, [1], "two models or more"),
    ("slerp", 3, False, [1, 1, 1], "lies between two models"),
    ("ties", 2, False, [1, 1], "--base=FOLDER"),
    ("linear", 2, True, [1, 1], "takes no --base"),
    ("linear", 3, False, [1, 1], "for 3 models"),
    ("linear", 2, False, [0, 0], "not all 0"),
  ],
)
def test_what_cannot_be_merged_so_is_said(method, models, base, weights, words):
  with pytest.raises(UserError, match=words):
    Recipe(method, weights).check(models, base)


def test_models_of_another_kind_are_refused(folders, tmp_path):
  good = tensors.Folder(folders[1])
  recipe = Recipe("linear", [1, 1])
  other = dict(TUNED[0], norm=np.zeros(32, np.float32))
  for name, tuned, kind, words in (
    ("a", other, "llama", r"norm has shape \(64,\) there and \(32,\) here"),
    ("b", TUNED[0], "qwen2", "model_type is llama there"),
    ("c", other | dict(bias=np.zeros(1)), "llama", "bias has shape none there"),
  ):
    bad = tensors.Folder(write(tmp_path / name, tuned, model_type=kind))
    with pytest.raises(UserError, match=words):
      Merged(recipe, [good, bad], None)
  words_ = tensors.Folder(write(tmp_path / "d", TUNED[0]))
  for folder, vocabulary in ((good, {"a": 0}), (words_, {"b": 0})):
    model = dict(model=dict(vocab=vocabulary))
    tensors.write_json(folder.path / "tokenizer.json", model)
  with pytest.raises(UserError, match="another vocabulary"):
    Merged(recipe, [good, words_], None)


def test_a_damaged_file_is_named(tmp_path):
  folder = write(tmp_path, {"a": np.zeros(8, np.float32)})
  (folder / tensors.WHOLE).write_bytes(b"no tensors")
  with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
    tensors.Folder(folder)
