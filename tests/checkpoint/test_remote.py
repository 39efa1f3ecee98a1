"""Copies of checkpoints far away: whole or not there, whatever happens."""

import contextlib
import json
import os

import fsspec
import jax
import numpy as np
import pytest

from intellect_jax.checkpoint import remote as remote_lib
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


@pytest.fixture(scope="session")
def s3_server():
  """A server that speaks S3, on loopback."""
  from moto.server import (  # pyright: ignore[reportMissingImports]
    ThreadedMotoServer,
  )

  server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  yield f"http://{host}:{port}"
  server.stop()


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.remote)])
def url(request, tmp_path, monkeypatch) -> str:
  """A place far away: on this disk, or in a bucket."""
  if request.param == "file":
    return f"file://{tmp_path}/far"
  endpoint = request.getfixturevalue("s3_server")
  monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
  monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
  monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
  bucket = tmp_path.name.replace("_", "-").lower()
  fsspec.filesystem("s3").mkdir(bucket)
  return f"s3://{bucket}/far"


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
  with island(tmp_path / "a", f"file://{tmp_path}/elsewhere") as (here, remote):
    save(here, remote, 1)
  files = sum(path.is_file() for path in (tmp_path / "a/1").rglob("*"))
  with island(tmp_path / "a", url) as (_, remote):
    system = remote._system
    for more in (2, files - 3):  # all but the marker and one
      remote._system = Dying(system, more)
      with pytest.raises(OSError, match="gone"):
        remote.copy(1)
      assert records(remote) == []
    remote._system = Dying(system, files)
    remote.copy(1)
    assert remote._system.put == ["manifest.json"]
    assert records(remote) == [1]


def test_what_was_cut_off_for_good_is_removed(tmp_path, url):
  """A newer checkpoint came first: nobody takes up the older copy."""
  with island(tmp_path / "a", f"file://{tmp_path}/elsewhere") as (here, remote):
    save(here, remote, 1)
  with island(tmp_path / "a", url) as (here, remote):
    system = remote._system
    remote._system = Dying(system, 2)
    with pytest.raises(OSError, match="gone"):
      remote.copy(1)
    remote._system = system
    assert len(remote._folders(remote._own)) == 1
    save(here, remote, 2)
    (whole,) = remote.copies()
    assert remote._folders(remote._own) == [whole.path]


def test_a_remote_that_is_not_there_is_tried_again(tmp_path, monkeypatch):
  """A bucket that is missing is a file that is not found, to fsspec."""
  monkeypatch.setattr(remote_lib, "_BACKOFF", (0.0, 0.0))
  with island(tmp_path / "a", f"file://{tmp_path}/far") as (here, remote):
    system, tries = remote._system, []

    class Missing(Dying):
      def put_file(self, source, target):
        tries.append(target)
        if len(tries) < 3:
          raise FileNotFoundError(target)
        system.put_file(source, target)

    remote._system = Missing(system, 0)
    save(here, remote, 1)
    assert records(remote) == [1]


def test_what_comes_from_afar_is_flushed_before_it_counts(
  tmp_path, url, monkeypatch
):
  with island(tmp_path / "a", url) as (here, remote):
    save(here, remote, 1)
  with island(tmp_path / "b", url) as (here, remote):
    flushed = []
    monkeypatch.setattr(
      remote_lib, "flush", lambda p: flushed.append((p, here.latest()))
    )
    remote.fetch(remote.copies()[0])
    files = [path for path in (tmp_path / "b/1").rglob("*")]
    before = [path for path, latest in flushed if latest is None]
    assert {path.name for path in files} <= {path.name for path in before}


def test_a_damaged_copy_never_becomes_a_checkpoint(tmp_path, url):
  with island(tmp_path / "a", url) as (here, remote):
    save(here, remote, 1)
    (copy,) = remote.copies()
    system = remote._system
    marker = json.loads(system.cat_file(f"{copy.path}/{MARKER}"))
    for name in marker["files"]:
      if name.startswith("outer/"):
        damaged = bytearray(system.cat_file(f"{copy.path}/{name}"))
        damaged[-1] ^= 1
        system.pipe_file(f"{copy.path}/{name}", bytes(damaged))
        break
  with island(tmp_path / "b", url) as (here, remote):
    with pytest.raises(OSError, match="is damaged"):
      remote.fetch(copy)
    assert here.numbers() == []


def test_an_older_copy_is_taken_where_the_newest_is_damaged(tmp_path, url):
  with island(tmp_path / "a", url) as (here, remote):
    save(here, remote, 1)
    save(here, remote, 2)
    newest, _ = remote.copies()
    remote._system.pipe_file(f"{newest.path}/manifest.json", b"damaged")
  with island(tmp_path / "b", url) as (here, remote):
    assert not remote.fetch_newer(lambda: 1, to=None)
    assert remote.fetch_newer(lambda: 0, to=None)
    assert here.numbers() == [1]
    assert_has(here, 1)


def test_a_copy_of_what_was_damaged_is_not_fetched_again(tmp_path, url):
  """Or an island that starts would set it aside and fetch it for ever."""
  with island(tmp_path / "a", url) as (here, remote):
    save(here, remote, 1)
    save(here, remote, 2)
  with island(tmp_path / "b", url) as (here, remote):
    remote.distrust(2)  # what was here was not from there
    for record in (2, 1):
      assert remote.fetch_newer(lambda: 0, to=None)
      assert here.numbers() == [record]
      with pytest.warns(UserWarning, match="Moved the damaged"):
        here.set_aside(record)
      remote.distrust(record)
    assert not remote.fetch_newer(lambda: 0, to=None)


def test_a_torn_checkpoint_makes_place_for_its_copy(tmp_path, url):
  with island(tmp_path / "a", url) as (here, remote):
    save(here, remote, 1)
    (tmp_path / "a/1/manifest.json").write_text("")
    with pytest.warns(UserWarning, match="damaged"):
      assert here.numbers() == []
    remote.fetch(remote.copies()[0])
    assert_has(here, 1)


def test_urls_that_cannot_be_used(tmp_path):
  with pytest.raises(UserError, match="fsspec knows"):
    RemoteCheckpoints("nowhere://x", "run", "ada", tmp_path, 1)
  with pytest.raises(UserError, match=r"adlfs.*intellect_jax\[remote\]"):
    RemoteCheckpoints("abfs://x/y", "run", "ada", tmp_path, 1)
