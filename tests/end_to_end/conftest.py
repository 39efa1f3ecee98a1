"""Worlds of processes that share what they compile."""

import fcntl
import os

from processes import ALONE, World
import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  """XLA programs for all processes of all workers; filled by a first run."""
  base = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    base = base.parent
  with open(base / "compiling", "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (base / "compiled").exists():
      first = World(base, base / "compiled")
      first.start("first", *ALONE, "--config.run.tokens=2048").must_end_well()
  return base / "compiled"


@pytest.fixture
def world(tmp_path, cache):
  world = World(tmp_path, cache)
  yield world
  world.end()
