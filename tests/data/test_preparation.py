"""A prepared source: the same for the same input, whatever happened on the way.

The files that a preparation leaves are compared byte for byte.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from intellect_jax.data import sources
from intellect_jax.data.files import find
from intellect_jax.data.manifest import MANIFEST, Prepared
from intellect_jax.data.preparation import Preparation, Settings
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.errors import UserError

DOCUMENTS = sources.documents()
TOKENIZER = make_tokenizer("bpe:2048")
SETTINGS = Settings("bpe:2048", held_out=0.1, part_bytes=50_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """120 documents as files, and the name of each is its number."""
  folder = tmp_path_factory.mktemp("texts")
  for number, document in enumerate(DOCUMENTS[:120]):
    path = folder / f"{number // 50}" / f"{number:03d}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(document.encode())
  return folder


def prepare(inputs, output, settings=SETTINGS, workers=0) -> Prepared:
  inputs = [str(inputs)] if isinstance(inputs, pathlib.Path) else inputs
  preparation = Preparation(inputs, settings, output)
  preparation.run(workers, lambda read: None)
  return preparation.finish()


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
  return prepare(folder, tmp_path_factory.mktemp("prepared") / "texts")


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_documents(prepared, split):
  """The texts of a split, in order."""
  tokens = prepared.tokens(split)
  ends = [*tokens.ends(0, len(tokens)), len(tokens)]
  ids = np.split(tokens.read(0, len(tokens)), ends[:-1])
  assert all(document[-1] == TOKENIZER.eos for document in ids)
  return [TOKENIZER.decode(document) for document in ids]


def test_every_document_is_in_one_split_in_order(whole):
  expected = {"train": [], "held_out": []}
  for document in DOCUMENTS[:120]:
    held_out = sources.is_held_out(document.encode(), 0.1)
    expected["held_out" if held_out else "train"].append(document)
  for split, documents in expected.items():
    assert read_documents(whole, split) == documents
  assert whole.contents.count("train", "documents") == len(expected["train"])
  assert len(whole.contents.splits["train"]) > 5, "it has shards"


def test_processes_and_place_make_no_difference(folder, whole, tmp_path):
  moved = tmp_path / "moved"
  moved.symlink_to(folder)
  other = prepare(moved, tmp_path / "output", workers=2)
  assert contents(other.folder) == contents(whole.folder)


def test_another_tokenizer_split_or_text_has_another_digest(folder, tmp_path):
  digests = {
    prepare(folder, tmp_path / name, settings).digest
    for name, settings in {
      "same": SETTINGS,
      "tokenizer": Settings("bpe:2049", held_out=0.1, part_bytes=50_000),
      "split": Settings("bpe:2048", held_out=0.2, part_bytes=50_000),
      "less": Settings("bpe:2048", pattern="[0-9]*[0-8].txt", held_out=0.1),
    }.items()
  }
  assert len(digests) == 4


def test_killed_and_started_again(tmp_path):
  """kill -9 in the middle: what was done is kept, the rest is the same."""
  text = tmp_path / "text"
  text.mkdir()
  for number in range(12):  # most of a second's work
    (text / f"{number}.txt").write_text("\n".join(DOCUMENTS[number::8]))
  output = tmp_path / "output"
  command = [
    *(sys.executable, "-m", "intellect_jax.data.prepare"),
    *(f"--input={text}", f"--output={output}", "--tokenizer=bpe:2048"),
    *("--part_mb=0.2", "--held_out=0.2", "--workers=1"),
  ]
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  process = subprocess.Popen(command, env=environment)
  bound = time.monotonic() + 120
  while not list(output.glob("part-*.json")):
    assert process.poll() is None and time.monotonic() < bound
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  kept = {path: path.stat() for path in output.glob("part-*.json")}
  assert not (output / MANIFEST).exists() and 0 < len(kept) < 12
  shards = {
    path: path.stat().st_mtime_ns
    for note in kept
    for path in output.glob(f"*{note.stem[5:]}.tokens")
  }

  done = subprocess.run(command, env=environment, capture_output=True)
  assert done.returncode == 0, done.stderr
  assert {path: path.stat().st_mtime_ns for path in shards} == shards
  settings = Settings("bpe:2048", held_out=0.2, part_bytes=200_000)
  undisturbed = prepare(text, tmp_path / "undisturbed", settings)
  assert contents(output) == contents(undisturbed.folder)


def test_a_preparation_that_is_done_is_left_alone(folder, whole):
  before = contents(whole.folder)
  again = Preparation([str(folder)], SETTINGS, whole.folder)
  assert again.finished and contents(whole.folder) == before


def test_an_output_with_something_else_is_refused(folder, whole, tmp_path):
  other = Settings("bpe:2048", held_out=0.3, part_bytes=50_000)
  with pytest.raises(UserError, match=r"other settings.*another --output"):
    Preparation([str(folder)], other, whole.folder)
  (tmp_path / "thesis.txt").touch()
  with pytest.raises(UserError, match="not empty"):
    Preparation([str(folder)], SETTINGS, tmp_path)


def broken_input(tmp_path):
  """A file of JSON lines, of which the second and fourth are broken."""
  lines = [json.dumps(dict(text=text)) for text in DOCUMENTS[:30]]
  lines[1], lines[3] = "{]", '{"words": "no text"}'
  path = tmp_path / "some.jsonl"
  path.write_text("\n".join(lines))
  return path, len(lines[0].encode()) + 1


def test_broken_records_are_skipped_and_counted(tmp_path, caplog):
  path, second = broken_input(tmp_path)
  settings = Settings("bpe:2048", held_out=0.1, max_broken=2)
  prepared = prepare(path, tmp_path / "output", settings)
  assert prepared.about["broken_records"] == 2
  assert prepared.about["documents"] == 28
  assert f"{path}, byte {second}: it is not JSON" in caplog.text
  assert "no field 'text'" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_records_are_an_error(tmp_path, workers):
  path, _ = broken_input(tmp_path)
  settings = Settings("bpe:2048", held_out=0.1, max_broken=1)
  preparation = Preparation([str(path)], settings, tmp_path / "output")
  with pytest.raises(UserError, match=r"2 records are broken.*some\.jsonl, by"):
    preparation.run(workers, lambda read: None)
  # The setting is not part of the plan: with more patience it goes on.
  patient = Settings("bpe:2048", held_out=0.1, max_broken=2)
  assert prepare(path, tmp_path / "output", patient).digest


def test_bad_input_is_named(tmp_path):
  with pytest.raises(UserError, match=r"no file or folder --input=.*nowhere"):
    find([str(tmp_path / "nowhere")])
  with pytest.raises(UserError, match=r"no file that matches '\*\.txt'"):
    find([str(tmp_path)], "*.txt")
  (tmp_path / "empty.txt").touch()
  preparation = Preparation(
    [str(tmp_path / "empty.txt")], SETTINGS, tmp_path / "output"
  )
  preparation.run(0, lambda read: None)
  with pytest.raises(UserError, match=r"Of 0 documents none .* 'train'"):
    preparation.finish()


def test_what_was_read_is_told(folder, tmp_path):
  told = []
  preparation = Preparation([str(folder)], SETTINGS, tmp_path / "output")
  done = preparation.run(0, told.append)
  assert sum(told) == preparation.input_bytes == preparation.done_bytes
  assert done.text_bytes == preparation.input_bytes
  assert 0 < done.timed_seconds < done.seconds
  assert 0 < done.timed_bytes < done.text_bytes
