"""Copies of checkpoints far away: whole or not there, whatever happens."""

import contextlib
import json
import os
import pathlib

import fsspec
import jax
import numpy as np
import pytest

from intellect_jax.checkpoint.durable import DurableCheckpoints
from intellect_jax.checkpoint.remote import MARKER, RemoteCheckpoints
from intellect_jax.errors import UserError

SIZE = 4096
SECONDS = 60  # bound of every wait


def inner(record: int):
  return {"w": jax.numpy.full((64,), record, jax.numpy.float32)}


@contextlib.contextmanager
def island(folder, url: str, name="ada", keep=2):
  """An island's checkpoints, each copied once it is whole."""
  remote = RemoteCheckpoints(url, "run", name, folder, keep)
  here = DurableCheckpoints(folder, "run", keep, remote.copy_soon)
  with contextlib.closing(remote), contextlib.closing(here):
    yield here, remote


def save(here, remote, record: int) -> None:
  theta = np.full(SIZE, record, np.float32)
  here.save(record, theta, -theta, inner(record), {}, files={"chain": b"c"})
  here.wait()
  assert remote.wait(SECONDS)


def assert_has(here, record: int) -> None:
  restored = here.restore(jax.eval_shape(lambda: inner(0)), SIZE, record)
  np.testing.assert_array_equal(restored.theta, np.full(SIZE, record))
  assert float(restored.inner["w"][0]) == record
  assert here.file(record, "chain") == b"c"


def records(remote) -> list[int]:
  return [copy.record for copy in remote.copies()]


@pytest.fixture
def url(tmp_path) -> str:
  return f"file://{tmp_path}/far"


def test_an_empty_workdir_gets_the_newest_copy(tmp_path, url):
  with island(tmp_path / "a", url) as (here, remote):
    for record in (1, 2, 3):
      save(here, remote, record)
    assert records(remote) == [3, 2]  # as many as it keeps itself
  with island(tmp_path / "b", url) as (here, remote):
    assert here.latest() is None
    remote.fetch(remote.copies()[0])
    assert here.numbers() == [3]
    assert_has(here, 3)


def test_another_island_may_read_them_and_prefers_its_own(tmp_path, url):
  for name in ("bo", "ada", "cy"):
    with island(tmp_path / name, url, name) as (here, remote):
      save(here, remote, 7)
  with island(tmp_path / "new", url, "ada") as (_, remote):
    assert ["/ada/" in copy.path for copy in remote.copies()] == [
      True,
      False,
      False,
    ]
    assert records(remote) == [7, 7, 7]


class Dying:
  """A file system that fails after so many files."""

  def __init__(self, system, files: int):
    self._system, self._left = system, files
    self.put = []

  def put_file(self, source, target):
    if self._left == 0:
      raise OSError("the connection is gone")
    self._left -= 1
    self.put.append(os.path.basename(target))
    self._system.put_file(source, target)

  def __getattr__(self, name):
    return getattr(self._system, name)


def test_a_copy_that_was_cut_off_is_none_and_is_taken_up_again(tmp_path, url):
  with island(tmp_path / "a", url) as (here, remote):
    ones = np.ones(SIZE, np.float32)
    here.save(1, ones, ones, inner(1), {})
    here.wait()
    assert remote.wait(SECONDS)
  with island(tmp_path / "a", url.replace("far", "other")) as (here, remote):
    files = sum(1 for path in (tmp_path / "a/1").rglob("*") if path.is_file())
    system = fsspec.filesystem("file")
    for done in (2, files - 1):
      remote._system = Dying(system, done if done == 2 else done - 2)
      with pytest.raises(OSError, match="gone"):
        remote.copy(1)
      assert records(remote) == []
    remote._system = Dying(system, files)
    remote.copy(1)
    assert remote._system.put == ["manifest.json"]
    assert records(remote) == [1]


def test_a_damaged_copy_never_becomes_a_checkpoint(tmp_path, url):
  with island(tmp_path / "a", url) as (here, remote):
    save(here, remote, 1)
    (copy,) = remote.copies()
    marker = json.loads(pathlib.Path(copy.path, MARKER).read_text())
    largest = max(
      marker["files"], key=lambda name: os.path.getsize(f"{copy.path}/{name}")
    )
    with open(f"{copy.path}/{largest}", "r+b") as file:
      file.write(b"\xff" * 8)
  with island(tmp_path / "b", url) as (here, remote):
    with pytest.raises(OSError, match="is damaged"):
      remote.fetch(copy)
    assert here.numbers() == []


def test_a_torn_checkpoint_makes_place_for_its_copy(tmp_path, url):
  with island(tmp_path / "a", url) as (here, remote):
    save(here, remote, 1)
    (tmp_path / "a/1/manifest.json").write_text("")
    assert here.numbers() == []
    remote.fetch(remote.copies()[0])
    assert_has(here, 1)


def test_urls_that_cannot_be_used(tmp_path):
  with pytest.raises(UserError, match="fsspec knows"):
    RemoteCheckpoints("nowhere://x", "run", "ada", tmp_path, 1)
