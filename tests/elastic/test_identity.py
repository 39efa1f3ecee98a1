"""An island's identity: one process a workdir, numbers that only grow."""

import os
from typing import Any
from unittest import mock

import pytest

from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.mesh import ElasticDeviceMesh
from intellect_jax.errors import UserError


def test_each_process_of_a_workdir_is_a_newer_incarnation(tmp_path):
  first = Identity(tmp_path, "a")
  first.joined("run-1")
  first.saw_term(4)
  first.saw_term(3)  # an older coordinator is not obeyed again
  first.close()
  second = Identity(tmp_path, "")
  assert (second.island, second.run_id, second.term) == ("a", "run-1", 4)
  assert second.incarnation == first.incarnation + 1
  assert second.process != first.process
  second.close()


def test_a_workdir_has_one_process_at_a_time(tmp_path):
  held = Identity(tmp_path, "a")
  with pytest.raises(UserError, match="Another process works in"):
    Identity(tmp_path, "a")
  held.close()
  Identity(tmp_path, "a").close()


def test_a_workdir_belongs_to_one_island_and_one_run(tmp_path):
  first = Identity(tmp_path, "a")
  first.joined("run-1")
  first.close()
  with pytest.raises(UserError, match=r"island 'a'.*name is 'b'"):
    Identity(tmp_path, "b")
  again = Identity(tmp_path, "a")  # the refused one holds no lock
  assert again.incarnation == 2  # nor did it count
  again.check_run("run-1")
  with pytest.raises(UserError, match=r"run run-1.*leads run run-2"):
    again.check_run("run-2")
  again.close()


def test_what_is_saved_outlives_a_power_loss(tmp_path, monkeypatch):
  """Else a later process has this one's incarnation, and is refused for ever."""
  synced = []

  def fsync(descriptor: int) -> None:
    found = os.fstat(descriptor)
    synced.append((found.st_ino, sorted(p.name for p in tmp_path.iterdir())))

  monkeypatch.setattr(os, "fsync", fsync)
  identity = Identity(tmp_path, "a")
  identity.joins()
  names = ["identity.json", "lock"]
  assert synced[-1] == (tmp_path.stat().st_ino, names)
  identity.close()


def test_a_start_that_comes_to_nothing_does_not_count(tmp_path):
  """Or each of them would fence the one that trains."""
  mistyped = Identity(tmp_path, "a")
  mistyped.close()  # before it said hello
  refused = Identity(tmp_path, "a")
  refused.joins()
  refused.refused()
  refused.close()
  killed = Identity(tmp_path, "a")
  killed.joins()
  killed.close()
  after = Identity(tmp_path, "a")
  assert [killed.incarnation, after.incarnation] == [1, 2]
  after.close()


@pytest.mark.parametrize(
  ("ending", "counts"), [(UserError("no"), False), (KeyboardInterrupt(), True)]
)
def test_who_may_have_been_let_in_has_had_its_incarnation(
  tmp_path, ending, counts
):
  """A later process with the same one would be taken for a copied workdir."""
  mesh: Any = ElasticDeviceMesh.__new__(ElasticDeviceMesh)
  mesh._identity = identity = Identity(tmp_path, "a")
  mesh._agent = mock.Mock()
  mesh._news = mock.Mock(welcome=None)
  mesh._news.wait.side_effect = ending
  with pytest.raises(type(ending)):
    mesh._say_hello()
  identity.close()
  after = Identity(tmp_path, "a")
  assert after.incarnation == 1 + counts
  after.close()
