"""The data of a run is the data that the run was started with, and whole."""

import json
import pathlib

import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.data import sources
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.manifest import MANIFEST
from intellect_jax.data.preparation import Preparation, Settings
from intellect_jax.data.texts import identify
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.errors import UserError

STAGES = ((0, (0.5, 0.3, 0.2)), (64_000, (0.1, 0.1, 0.8)))


@pytest.fixture
def config(tmp_path):
  """Of a run on the shipped text and two prepared sources, a and b."""
  documents = sources.documents()
  for name, part in (("a", documents[:60]), ("b", documents[60:90])):
    (tmp_path / f"{name}.jsonl").write_text(
      "\n".join(json.dumps(dict(text=text)) for text in part)
    )
    preparation = Preparation(
      [str(tmp_path / f"{name}.jsonl")],
      Settings("bpe:500", held_out=0.1),
      tmp_path / "prepared" / name,
    )
    preparation.run(0, lambda read: None)
    preparation.finish()
  config = config_lib.base()
  config.run.data.update(
    sources=("python_docs", "a", "b"),
    stages=STAGES,
    tokenizer="bpe:500",
    sequence_length=64,
  )
  config.island.data.folder = str(tmp_path / "prepared")
  config_lib.validate(config)
  return config


def open_index(config):
  run, data = config.run, config.island.data
  return GlobalIndex(run.data, tokenizer_of(run, data.folder), data)


def test_a_mixture_of_shipped_and_prepared_text(config):
  identify(config)
  index = open_index(config)
  for start, stop, weights in ((0, 1000, 0), (1000, 2000, 1)):
    names = [index.source_of(i) for i in range(start, stop)]
    shares = [names.count(name) / 1000 for name in index.sources]
    np.testing.assert_allclose(shares, STAGES[weights][1], atol=0.002)
  # A source comes round in its own epochs, each sample once in each.
  own = [i for i in range(4000) if index.source_of(i) == "b"]
  n = index.samples_per_epoch[2]
  rows = [index[i]["tokens"].tobytes() for i in own[: 2 * n]]
  assert len(rows) == 2 * n and rows[:n] != rows[n:]
  assert sorted(rows[:n]) == sorted(rows[n:])
  held_out = index.held_out(10, 5)
  assert [batch["tokens"].shape for batch in held_out] == [(5, 64)] * 2


def test_who_starts_the_run_notes_what_it_has(config):
  identify(config)
  run = config_lib.from_json(config_lib.to_json(config.run))
  assert len(run.data.digest) == len(run.data.tokenizer_digest) == 64
  identify(config)  # and it is what it was
  assert config_lib.digest(config.run) == config_lib.digest(run)


def test_a_coordinator_needs_the_manifests_alone(config):
  identify(config)
  digest = config.run.data.digest
  for path in folder_of(config, "a").glob("*.tokens"):
    path.unlink()
  identify(config, files=False)
  assert config.run.data.digest == digest
  with pytest.raises(UserError, match=r"train-00000\.tokens is missing"):
    identify(config)


def change(path, at=100):
  content = bytearray(path.read_bytes())
  content[at] ^= 1
  path.write_bytes(content)


def folder_of(config, name):
  return pathlib.Path(config.island.data.folder) / name


def break_manifest(config):
  path = folder_of(config, "a") / MANIFEST
  path.write_text(path.read_text().replace('"documents": ', '"documents": 1'))


def break_format(config):
  (folder_of(config, "a") / MANIFEST).write_text("{}")


def break_shard(config):
  change(folder_of(config, "b") / "train-00000.tokens")


def lose_shard(config):
  (folder_of(config, "b") / "held_out-00000.ends").unlink()


def shorten_shard(config):
  path = folder_of(config, "b") / "train-00000.tokens"
  path.write_bytes(path.read_bytes()[:-2])


def exchange(config):
  a, b = folder_of(config, "a"), folder_of(config, "b")
  a.rename(a.with_name("c"))
  b.rename(a)
  a.with_name("c").rename(b)


@pytest.mark.parametrize(
  "harm, words",
  [
    (break_manifest, r"a/manifest\.json says that its digest is .* changed"),
    (break_format, r"a/manifest\.json is no manifest"),
    (break_shard, r"b/train-00000\.tokens has the BLAKE3 .* damaged"),
    (lose_shard, r"b/held_out-00000\.ends is missing"),
    (shorten_shard, r"b/train-00000\.tokens has \d+ bytes, .* says \d+"),
    (exchange, r"prepared sources here .* run\.data\.digest is .*other data"),
  ],
)
def test_data_that_is_not_the_runs_is_refused(config, harm, words):
  identify(config)
  harm(config)
  with pytest.raises(UserError, match=words):
    open_index(config)


def test_missing_sources_are_explained(config):
  config.run.data.sources = ("python_docs", "a", "nowhere")
  with pytest.raises(UserError, match=r"no prepared source in .*/nowhere"):
    identify(config)
  config.island.data.folder = ""
  with pytest.raises(UserError, match=r"island\.data\.folder is empty"):
    identify(config)


def test_another_tokenizer_than_the_sources_is_refused(config):
  config.run.data.tokenizer = "bpe:501"
  with pytest.raises(UserError, match=r"/a was prepared with .*bpe:501"):
    identify(config)


def test_another_tokenizer_than_the_runs_is_refused(config):
  identify(config)
  config.run.data.tokenizer_digest = "0" * 64
  with pytest.raises(UserError, match=r"run\.data\.tokenizer=bpe:500 has dige"):
    open_index(config)


@pytest.mark.parametrize(
  "stages, words",
  [
    (((0, (0.5, 0.3, 0.1)),), "sum 0.9"),
    (((0, (1.5, -0.3, -0.2)),), "weights from 0 to 1"),
    (((0, (0.5, 0.5)),), "names, 3"),
    (((5, (0.5, 0.3, 0.2)),), "the first at 0"),
    ((*STAGES, (64_000, (0.5, 0.3, 0.2))), "increasing tokens"),
    ((), "a tuple of"),
  ],
)
def test_impossible_stages_are_explained(config, stages, words):
  config.run.data.stages = stages
  with pytest.raises(UserError, match=rf"run\.data\.stages.*{words}"):
    config_lib.validate(config)


def test_impossible_names_and_seeds_are_explained(config):
  config.run.data.seed = -1
  with pytest.raises(UserError, match=r"run\.data\.seed is -1"):
    config_lib.validate(config)
  config.run.data.seed = 0
  config.run.data.sources = ("a", "b", "a")
  with pytest.raises(UserError, match=r"run\.data\.sources .* each once"):
    config_lib.validate(config)
