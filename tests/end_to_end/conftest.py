"""Worlds of processes that share what they compile."""

import fcntl
import os

from processes import ALONE, Workdir, World
import pytest


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
  """A lone island that nobody has disturbed; its programs are kept beside."""
  base = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    base = base.parent  # of all workers
  done = base / "undisturbed.done"
  with open(base / "undisturbed.lock", "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not done.exists():
      world = World(base, base / "compiled")
      world.start("undisturbed", *ALONE).must_end_well()
      done.touch()
  return Workdir(base / "undisturbed")


@pytest.fixture
def world(tmp_path, undisturbed):
  world = World(tmp_path, undisturbed.workdir.with_name("compiled"))
  yield world
  world.end()
