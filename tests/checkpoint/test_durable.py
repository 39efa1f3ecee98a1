"""Run as a script, this file saves without end: a process to be killed."""

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple
import warnings

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import intellect_jax
from intellect_jax.checkpoint import durable
from intellect_jax.checkpoint.durable import DurableCheckpoints
from intellect_jax.errors import UserError

SIZE = 256 * 1024


class State(NamedTuple):
  params: dict
  opt_state: optax.OptState


def optimizer():
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.scale_by_adam(),
    optax.add_decayed_weights(0.1, mask={"w": True, "norm": False}),
  )


def shardings(fsdp, tensor):
  """Of a State on the first fsdp * tensor devices."""
  mesh = jax.make_mesh(
    (fsdp, tensor),
    ("fsdp", "tensor"),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[: fsdp * tensor],
  )
  specs = {2: P("fsdp", "tensor"), 1: P("fsdp"), 0: P()}
  return jax.tree.map(
    lambda x: NamedSharding(mesh, specs[x.ndim]), jax.eval_shape(state)
  )


def state(seed=0):
  key = jax.random.key(seed)
  params = {
    "w": jax.random.normal(key, (64, 32)),
    "norm": jax.random.normal(key, (64,)),
  }
  opt_state = optimizer().init(params)
  _, opt_state = optimizer().update(params, opt_state, params)
  return State(params, opt_state)


def abstract(fsdp=1, tensor=1):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    jax.eval_shape(state),
    shardings(fsdp, tensor),
  )


def outer(record):
  theta = np.full(SIZE, record, np.float32)
  return theta, -theta


def save(checkpoints, record):
  checkpoints.save(record, *outer(record), state(record), {"record": record})


def assert_restores(checkpoints, record):
  restored = checkpoints.restore(abstract(), SIZE)
  assert restored.record == record
  assert restored.meta == {"record": record}
  theta, momentum = outer(record)
  np.testing.assert_array_equal(restored.theta, theta)
  np.testing.assert_array_equal(restored.momentum, momentum)
  jax.tree.map(np.testing.assert_array_equal, restored.inner, state(record))


@pytest.fixture
def directory(tmp_path):
  return tmp_path / "checkpoints"


@contextlib.contextmanager
def opened(directory, run_id="run", keep=2):
  with contextlib.closing(
    DurableCheckpoints(directory, run_id, keep)
  ) as checkpoints:
    yield checkpoints


def folders(directory):
  return sorted(path.name for path in directory.iterdir())


def test_an_empty_directory_has_no_latest(directory):
  with opened(directory) as checkpoints:
    assert checkpoints.latest() is None
    with pytest.raises(UserError, match="no whole checkpoint"):
      checkpoints.restore(abstract(), SIZE)


def test_a_state_comes_back_bit_for_bit_on_another_mesh(directory):
  inner = jax.tree.map(jax.device_put, state(7), shardings(4, 1))
  rng = np.random.default_rng(0)
  theta, momentum = rng.standard_normal((2, SIZE), dtype=np.float32)
  meta = {"digest": "ab12", "interval": [3, 99], "run": {"name": "tiny"}}
  with opened(directory) as checkpoints:
    checkpoints.save(5, theta, momentum, inner, meta)
  with opened(directory) as checkpoints:
    restored = checkpoints.restore(abstract(2, 2), SIZE)
  assert restored.record == 5 and restored.meta == meta
  np.testing.assert_array_equal(restored.theta, theta)
  np.testing.assert_array_equal(restored.momentum, momentum)
  jax.tree.map(np.testing.assert_array_equal, restored.inner, inner)
  assert jax.tree.structure(restored.inner) == jax.tree.structure(inner)
  placed = jax.tree.map(lambda x: x.sharding, restored.inner)
  assert placed == shardings(2, 2)
  assert restored.theta.dtype == restored.momentum.dtype == np.float32
  assert restored.theta.flags.writeable and restored.momentum.flags.writeable


def test_what_is_saved_is_what_was_there_when_save_was_called(directory):
  """The next step donates the state and the next round moves theta."""
  inner = jax.tree.map(jax.device_put, state(1), shardings(2, 2))
  theta, momentum = outer(1)
  meta = {"record": 1}
  overwrite = jax.jit(
    lambda tree: jax.tree.map(lambda x: 0 * x - 1, tree), donate_argnums=0
  )
  with opened(directory) as checkpoints:
    checkpoints.save(1, theta, momentum, inner, meta)
    inner = jax.block_until_ready(overwrite(inner))
    theta[:], momentum[:], meta["record"] = np.nan, np.nan, -1
    checkpoints.wait()
    assert_restores(checkpoints, 1)


def test_the_newest_are_kept(directory):
  with opened(directory, keep=2) as checkpoints:
    for record in (1, 2, 10):
      save(checkpoints, record)
    checkpoints.wait()
    assert checkpoints.latest() == 10
  assert folders(directory) == ["10", "2"]


def test_what_a_save_under_way_will_cost_counts_as_gone(directory):
  """So who is told of a checkpoint finds it for one more save."""
  told = []
  with opened(directory, keep=2) as checkpoints:
    for record in (1, 2, 3):
      checkpoints.wait()
      checkpoints.save(
        record,
        *outer(record),
        state(record),
        {"record": record},
        before=lambda: told.append((checkpoints.kept(), checkpoints.numbers())),
      )
    checkpoints.wait()
    assert told == [([], []), ([1], [1]), ([2], [2, 1])]
    assert checkpoints.kept() == [2, 3]


def test_a_record_can_be_saved_again(directory):
  with opened(directory) as checkpoints:
    checkpoints.save(3, *outer(0), state(0), {"record": 0})
    save(checkpoints, 3)
    assert_restores(checkpoints, 3)
  assert folders(directory) == ["3"]


def test_an_older_record_can_be_restored(directory):
  with opened(directory) as checkpoints:
    save(checkpoints, 1)
    save(checkpoints, 2)
    restored = checkpoints.restore(abstract(), SIZE, record=1)
    assert restored.record == 1 and restored.theta[0] == 1
    with pytest.raises(UserError, match=r"record 9; it has those of: \[1, 2\]"):
      checkpoints.restore(abstract(), SIZE, record=9)


def empty(folder):
  for path in sorted(folder.rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()


def truncate(folder):
  largest = max(
    (path for path in folder.rglob("*") if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  os.truncate(largest, largest.stat().st_size - 1)


def lose_a_file(folder):
  next((folder / "inner").rglob("_METADATA")).unlink()


def cut_the_manifest(folder):
  os.truncate(folder / "manifest.json", 100)


@pytest.mark.parametrize(
  "damage", [empty, truncate, lose_a_file, cut_the_manifest]
)
def test_a_damaged_folder_is_skipped_with_a_warning(directory, damage):
  with opened(directory) as checkpoints:
    save(checkpoints, 1)
    save(checkpoints, 2)
  damage(directory / "2")
  with (
    pytest.warns(match=f"{directory / '2'} is empty or damaged"),
    opened(directory) as checkpoints,
  ):
    assert checkpoints.latest() == 1
    assert_restores(checkpoints, 1)
    with pytest.raises(UserError, match="record 2"):
      checkpoints.restore(abstract(), SIZE, record=2)
  with (
    pytest.warns(match=f"Moved the damaged .* to {directory / '2.torn'}"),
    opened(directory) as checkpoints,
  ):
    save(checkpoints, 2)
    assert_restores(checkpoints, 2)
  assert folders(directory) == ["1", "2", "2.torn"]


# Orbax's reader threads outlive the event loop of a restore that failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
  "name", ["outer/manifest.ocdbt", "outer/_METADATA", "inner/_METADATA"]
)
def test_bytes_that_are_damaged_are_named_and_set_aside(directory, name):
  """Their sizes are right, so that only who reads them finds out."""
  with opened(directory) as checkpoints:
    save(checkpoints, 1)
    save(checkpoints, 2)
  damaged = directory / "2" / name
  damaged.write_bytes(bytes(damaged.stat().st_size))
  named = f"{directory / '2'} .* is damaged"
  if name.startswith("outer"):
    with pytest.raises(UserError, match=named):
      durable.read_outer(directory)
  with opened(directory) as checkpoints:
    with pytest.raises(durable.DamagedError, match=named):
      checkpoints.restore(abstract(), SIZE)
    with pytest.warns(match=f"Moved the damaged .* to {directory / '2.torn'}"):
      checkpoints.set_aside(2)
    assert_restores(checkpoints, 1)
    assert checkpoints.outer(SIZE, 1).theta[0] == 1
  assert folders(directory) == ["1", "2.torn"]


def test_an_empty_folder_made_while_open_stops_no_save(directory):
  with opened(directory) as checkpoints:
    save(checkpoints, 1)
    checkpoints.wait()
    (directory / "3").mkdir()
    with pytest.warns(match=f"{directory / '3'} is empty or damaged"):
      assert checkpoints.latest() == 1
    with pytest.warns(match="Moved the damaged"):
      save(checkpoints, 3)
    assert_restores(checkpoints, 3)


def test_a_directory_of_another_run_is_refused_and_left_alone(directory):
  with opened(directory, run_id="red") as checkpoints:
    save(checkpoints, 1)
  before = folders(directory)
  with pytest.raises(UserError, match=r"of run red, but this is run blue.*--w"):
    DurableCheckpoints(directory, "blue", keep=2)
  assert folders(directory) == before


def test_a_model_of_another_size_is_refused(directory):
  with opened(directory) as checkpoints:
    save(checkpoints, 1)
    with pytest.raises(UserError, match=f"{SIZE} values, but this model has 9"):
      checkpoints.restore(abstract(), 9)


def test_nothing_is_kept_is_refused(directory):
  with pytest.raises(UserError, match=r"island\.checkpoint\.keep is 0"):
    DurableCheckpoints(directory, "run", keep=0)


def test_a_whole_save_that_has_no_number_yet_gets_it(directory):
  """Killed between the two renames that replace record 1."""
  with opened(directory) as checkpoints:
    save(checkpoints, 1)
  shutil.copytree(directory / "1", directory / "1.old")
  (directory / "1").rename(directory / "1.saving")
  with opened(directory) as checkpoints:
    assert_restores(checkpoints, 1)
  assert folders(directory) == ["1"]


def test_what_gets_its_number_later_is_on_the_disk_too(directory, monkeypatch):
  """Killed, or not able to, before it flushed what it had listed."""
  with opened(directory) as checkpoints:
    save(checkpoints, 1)
  (directory / "1").rename(directory / "1.saving")
  flushed = []
  monkeypatch.setattr(durable, "flush", flushed.append)
  with opened(directory) as checkpoints:
    assert checkpoints.numbers() == [1]
  files = {path.name for path in (directory / "1").rglob("*")}
  assert files <= {path.name for path in flushed}


# Orbax's writer threads outlive the event loop of a save that failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_says_so_and_the_next_one_works(directory):
  """No file may grow past 64 KiB: as good as a full disk."""
  with opened(directory) as checkpoints:
    save(checkpoints, 1)
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
      save(checkpoints, 2)
      with pytest.raises(OSError, match="File too large"):
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.latest() == 1
    save(checkpoints, 3)
    assert_restores(checkpoints, 3)


@pytest.mark.parametrize(
  "moment",
  [
    "{}.saving.orbax-checkpoint-tmp",
    "{}.saving/manifest.json",
    "{}",
  ],
  ids=["orbax_writes", "listed", "in_place"],
)
def test_kill_9_in_a_save_leaves_the_last_whole_one(directory, moment):
  directory.mkdir()
  root = pathlib.Path(intellect_jax.__file__).parents[1]
  process = subprocess.Popen(
    [sys.executable, __file__, str(directory)],
    env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
  )
  assert process.stdout is not None
  try:
    assert process.stdout.readline() == b"records 1 and 2 are whole\n"
    # A stage may pass between two looks; then the next save has it again.
    record = 3
    while not (directory / moment.format(record)).exists():
      assert process.poll() is None, "the saving process ended by itself"
      done = [int(name) for name in folders(directory) if name.isdigit()]
      record = max([3, *(n + 1 for n in done)])
  finally:
    process.send_signal(signal.SIGKILL)
    process.communicate()
  with warnings.catch_warnings(), opened(directory) as checkpoints:
    warnings.simplefilter("error")
    latest = checkpoints.latest()
    assert latest is not None and latest >= record - 1
    assert_restores(checkpoints, latest)
    save(checkpoints, latest + 1)
    assert_restores(checkpoints, latest + 1)
  assert folders(directory) == sorted([str(latest), str(latest + 1)])


def test_what_must_come_before_comes_before(directory):
  """Such as the record it stands on: a checkpoint without it is of no use."""
  seen = []
  with opened(directory) as checkpoints:
    before = lambda: seen.append(checkpoints.latest())  # noqa: E731
    checkpoints.save(1, *outer(1), state(1), {"record": 1}, before)
    checkpoints.wait()
    assert (seen, checkpoints.latest()) == ([None], 1)

    def fails():
      raise OSError("the disk is full")

    checkpoints.save(2, *outer(2), state(2), {"record": 2}, fails)
    with pytest.raises(OSError, match="full"):
      checkpoints.wait()
    assert checkpoints.latest() == 1
    save(checkpoints, 3)
    assert_restores(checkpoints, 3)


def test_old_checkpoints_make_room(directory):
  with opened(directory, keep=9) as checkpoints:
    for record in (1, 2, 3):
      save(checkpoints, record)
    checkpoints.wait()
    sizes = checkpoints.sizes()
    assert sorted(sizes) == [1, 2, 3] and min(sizes.values()) > 8 * SIZE
    checkpoints.keep_within(sum(sizes.values()))
    assert checkpoints.numbers() == [3, 2, 1]
    checkpoints.keep_within(sum(sizes.values()) - 1)
    assert checkpoints.numbers() == [3, 2]
    checkpoints.keep_within(0)
    assert checkpoints.numbers() == [3]  # there is always one to go back to
    assert_restores(checkpoints, 3)


if __name__ == "__main__":
  checkpoints = DurableCheckpoints(sys.argv[1], "run", keep=2)
  for number in range(1, 1000):
    save(checkpoints, number)
    if number == 2:
      checkpoints.wait()
      print("records 1 and 2 are whole", flush=True)
