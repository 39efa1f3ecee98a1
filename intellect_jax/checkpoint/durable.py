"""Checkpoints on the island's own disk, from which a killed process resumes.

Orbax writes the arrays: in the background, and for any later mesh. Around it
stands what it leaves open, for a power cut may come at any moment: files are
flushed to the disk, listed with their sizes in a manifest, and only then does
the folder get its number. So a numbered folder is either whole or damaged, and
its manifest tells, or else who reads it finds out. (Orbax's CheckpointManager
would take an empty folder for the newest step.)

  12/                     record 12
    manifest.json         run id, record, meta, size of every file
    outer/  inner/        theta and momentum; parameters and optimizer state
    chain                 what the caller gave as `files`, as it is
  13.saving…              not finished; removed by whoever opens the directory
  11.old                  no longer wanted; likewise
  10.torn                 was damaged, moved aside for a new save of record 10
"""

from collections.abc import Callable
import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple
import warnings

import chex
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from intellect_jax.errors import UserError

PyTree = Any

MANIFEST = "manifest.json"


class DamagedError(Exception):
  """A checkpoint has all its files, but what is in them cannot be read."""


class Restored(NamedTuple):
  """What a checkpoint held."""

  record: int  # number of the last record applied to theta and momentum
  theta: np.ndarray  # float32 [size], writable
  momentum: np.ndarray  # float32 [size], writable
  inner: PyTree  # placed as asked for
  meta: dict[str, Any]


class Outer(NamedTuple):
  """The part of a checkpoint that all islands have in common."""

  record: int
  theta: np.ndarray  # float32 [size]
  momentum: np.ndarray  # float32 [size]
  meta: dict[str, Any]


def records(directory: str | os.PathLike) -> list[int]:
  """Records of the whole checkpoints in a directory, the oldest first.

  Raises:
    UserError: if there is none.
  """
  return sorted(_some(pathlib.Path(directory).absolute()))


def read_outer(
  directory: str | os.PathLike, record: int | None = None
) -> Outer:
  """Reads theta and momentum of a whole checkpoint, the newest if none is named.

  Changes nothing on the disk, so it may be used beside who trains.

  Raises:
    UserError: if there is none, or it is damaged.
  """
  folder = pathlib.Path(directory).absolute()
  whole = _some(folder)
  record = max(whole) if record is None else record
  manifest = whole[record]
  path = folder / str(record)
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      outer = checkpointer.restore(
        path / "outer", args=_outer_args(manifest["size"])
      )
  except Exception as error:  # whatever Orbax and its libraries raise
    raise UserError(
      f"The checkpoint {path} has all its files, but cannot be read: it is"
      f" damaged ({_line(error)}). Rename it to {path}.torn to use an older one."
    ) from error
  return Outer(record, outer["theta"], outer["momentum"], manifest["meta"])


def _some(folder: pathlib.Path) -> dict[int, dict[str, Any]]:
  """Manifests of the whole checkpoints; UserError if there is none."""
  whole = _whole(folder, warn=True) if folder.is_dir() else {}
  if not whole:
    raise UserError(
      f"There is no whole checkpoint in {folder}. Pass the --workdir of an"
      " island that has trained: of runs/demo, that is runs/demo/island-0."
    )
  return whole


class DurableCheckpoints:
  """The checkpoints of one island in one directory."""

  def __init__(
    self,
    directory: str | os.PathLike,
    run_id: str,
    keep: int,
    published: Callable[[int], None] = lambda record: None,
  ):
    """Opens `directory`, makes it if needed, and clears unfinished saves.

    All processes of an island call everything here, in the same order; each
    writes its part of the arrays, and process 0 the rest.

    Args:
      directory: of one island at a time; all its processes see it.
      run_id: of the run that the checkpoints belong to.
      keep: newest checkpoints to keep, at least 1.
      published: called in the background with each record that is now whole.

    Raises:
      UserError: if the directory has checkpoints of another run.
    """
    if keep < 1:
      raise UserError(
        f"island.checkpoint.keep is {keep}, but must be at least 1. Change it"
        " with --config.island.checkpoint.keep=…"
      )
    self._directory = pathlib.Path(directory).absolute()
    self._run_id = run_id
    self._keep = keep
    self._published = published
    self._directory.mkdir(parents=True, exist_ok=True)
    for manifest in self._whole().values():
      if manifest["run_id"] != run_id:
        raise UserError(
          f"{self._directory} has checkpoints of run {manifest['run_id']}, but"
          f" this is run {run_id}. Choose another --workdir, or remove this"
          " one if you no longer need it."
        )
    # Trained float32 values hardly compress, and to try costs a core that
    # would rather train: 177 MB instead of 191 for four times the CPU time.
    self._handler = _Handler(
      outer=ocp.PyTreeCheckpointHandler(use_compression=False),
      inner=ocp.PyTreeCheckpointHandler(use_compression=False),
    )
    self._orbax = ocp.AsyncCheckpointer(self._handler)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._publishing: concurrent.futures.Future | None = None
    self._saving: int | None = None  # the newest that was begun
    if _leads():
      self._clear_unfinished()

  def save(
    self,
    record: int,
    theta: np.ndarray,
    momentum: np.ndarray,
    inner: PyTree,
    meta: dict[str, Any],
    before: Callable[[], None] = lambda: None,
    files: dict[str, bytes | memoryview] | None = None,
  ) -> None:
    """Starts to save; returns when everything has been copied.

    The caller may then change `theta` and `momentum` in place and donate
    `inner`. Waits first for the save before. A whole checkpoint of the same
    record is replaced when the new one is whole; a damaged one is moved aside.

    Args:
      record: number of the last record applied; names the folder.
      theta: outer parameters, float32 [size].
      momentum: of the outer optimizer, float32 [size].
      inner: tree of jax arrays: parameters and optimizer state.
      meta: what else belongs to the state, as JSON.
      before: called in the background when all is written; what it does is
        done before the checkpoint counts.
      files: that belong to it, by name; see `file`. They are written in the
        background, from where they are.

    Raises:
      OSError: what stopped the save before, such as a full disk.
    """
    self.wait()
    chex.assert_equal_shape([theta, momentum])
    chex.assert_type([theta, momentum], np.float32)
    manifest = dict(run_id=self._run_id, record=record, size=theta.size)
    manifest["meta"] = json.loads(json.dumps(meta))  # a copy of our own
    if _leads():
      self._clear_unfinished()
      self._move_torn_aside(record)
    saving, self._saving = self._directory / f"{record}.saving", record
    with _as_os_error():
      self._orbax.save(
        saving,
        args=ocp.args.Composite(
          outer=ocp.args.PyTreeSave(dict(theta=theta, momentum=momentum)),
          inner=ocp.args.PyTreeSave(inner),
        ),
      )
    self._publishing = self._thread.submit(
      self._publish, saving, manifest, before, dict(files or {})
    )

  def meta(self, record: int) -> dict[str, Any]:
    """What was saved beside the state, in a whole checkpoint."""
    return self._whole()[record]["meta"]

  def latest(self) -> int | None:
    """Number of the newest whole checkpoint by now; None if there is none.

    Warns of every damaged folder, by name, and skips it.
    """
    return max(self._whole(warn=True), default=None)

  def oldest(self) -> int | None:
    """Number of the oldest whole checkpoint; None if there is none."""
    return min(self._whole(), default=None)

  def kept(self) -> list[int]:
    """Numbers of those that outlive the save under way, the oldest first."""
    whole = set(self._whole())
    if self._saving is not None:
      older = sorted(n for n in whole | {self._saving} if n <= self._saving)
      whole -= set(older[: -self._keep])
    return sorted(whole)

  def numbers(self) -> list[int]:
    """Numbers of the whole checkpoints, the newest first."""
    return sorted(self._whole(warn=True), reverse=True)

  def sizes(self) -> dict[int, int]:
    """Size of each whole checkpoint, by record."""
    return {n: sum(m["files"].values()) for n, m in self._whole().items()}

  def keep_within(self, room: int) -> None:
    """Drops the oldest while all take more than `room` bytes; never the newest.

    Waits first for the save before.
    """
    self.wait()
    sizes = self.sizes() if _leads() else {}
    for number in sorted(sizes)[:-1]:
      if sum(sizes.values()) <= room:
        return
      self.drop(number)
      del sizes[number]

  def restore(
    self, abstract_inner: PyTree, size: int, record: int | None = None
  ) -> Restored:
    """Reads a whole checkpoint, the newest or the one of `record`.

    Args:
      abstract_inner: tree of jax.ShapeDtypeStruct with the shardings wanted,
        which need not be those it was saved with.
      size: length of theta and of momentum.
      record: number; None: the newest.

    Raises:
      UserError: if there is no such whole checkpoint, or `size` is not its.
      DamagedError: if a process of the island cannot read it; see `set_aside`.
    """
    self.wait()
    if record is None:
      record = max(self._whole(), default=-1)
    manifest = self._manifest_of(record, size)
    restored = self._read(
      record, outer=_outer_args(size), inner=_restore_args(abstract_inner)
    )
    return Restored(
      record, **restored.outer, inner=restored.inner, meta=manifest["meta"]
    )

  def outer(self, size: int, record: int) -> Outer:
    """Reads theta and momentum alone; all processes, the same one.

    Raises:
      UserError, DamagedError: as `restore`.
    """
    self.wait()
    manifest = self._manifest_of(record, size)
    restored = self._read(record, outer=_outer_args(size))
    return Outer(record, **restored.outer, meta=manifest["meta"])

  def _read(self, record: int, **items: ocp.args.PyTreeRestore) -> Any:
    """What Orbax has saved. All processes hear if one of them cannot read it."""
    folder = self._directory / str(record)
    restored = self._orbax.restore(folder, args=ocp.args.Composite(**items))
    failure = self._handler.failure
    if _anywhere(failure is not None):
      reason = "another process says so" if failure is None else _line(failure)
      raise DamagedError(
        f"The checkpoint {folder} has all its files, but cannot be read:"
        f" it is damaged ({reason})."
      ) from failure
    return restored

  def _manifest_of(self, record: int, size: int) -> dict[str, Any]:
    """Of a whole checkpoint of this model. Raises UserError if it is not."""
    whole = self._whole(warn=True)
    if record not in whole:
      raise UserError(
        f"{self._directory} has no whole checkpoint of record {record};"
        f" it has those of: {sorted(whole) or 'none'}."
      )
    manifest = whole[record]
    if manifest["size"] != size:
      raise UserError(
        f"The checkpoint of record {record} in {self._directory} has"
        f" {manifest['size']} values, but this model has {size}. It is another"
        " model: check run.model, or choose another --workdir."
      )
    return manifest

  def wait(self) -> None:
    """Waits until the last save is whole; raises OSError if it will not be."""
    publishing, self._publishing = self._publishing, None
    if publishing is not None:
      with _as_os_error():
        publishing.result()

  def close(self) -> None:
    """Waits for the last save and ends the threads."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
      with _as_os_error():
        self._orbax.close()

  def _publish(
    self,
    saving: pathlib.Path,
    manifest: dict[str, Any],
    before: Callable[[], None],
    extra: dict[str, bytes | memoryview],
  ) -> None:
    """Completes a save: from `N.saving` to `N`, then drops old ones."""
    self._orbax.wait_until_finished()  # all parts are there
    if not _leads():
      before()
      return
    for name, data in extra.items():
      (saving / name).write_bytes(data)
    files = [path for path in saving.rglob("*") if path.is_file()]
    manifest["files"] = {
      str(path.relative_to(saving)): path.stat().st_size for path in files
    }
    (saving / MANIFEST).write_text(json.dumps(manifest, indent=2))
    before()
    self._put_in_place(saving)
    older = sorted(n for n in self._whole() if n <= manifest["record"])
    for number in older[: -self._keep]:
      self.drop(number)
    self._published(manifest["record"])

  def file(self, record: int, name: str) -> bytes | None:
    """One of the `files` of a checkpoint, if it has that."""
    path = self._directory / str(record) / name
    return path.read_bytes() if path.exists() else None

  def drop(self, number: int) -> None:
    """Removes a checkpoint."""
    folder = self._directory / str(number)
    # Renamed first: a folder that is half removed must not have a number.
    shutil.rmtree(folder.rename(folder.with_suffix(".old")))

  def set_aside(self, record: int) -> None:
    """A checkpoint was found to be damaged: it has no number any more."""
    folder = self._directory / str(record)
    names = (folder.with_suffix(f".torn{n or ''}") for n in itertools.count())
    torn = next(name for name in names if not name.exists())
    folder.rename(torn)
    warnings.warn(f"Moved the damaged {folder} to {torn}.", stacklevel=3)

  def _put_in_place(self, saving: pathlib.Path) -> None:
    final, old = saving.with_suffix(""), saving.with_suffix(".old")
    for path in (*saving.rglob("*"), saving):
      flush(path)
    if final.exists():
      final.rename(old)
    saving.rename(final)
    flush(self._directory)
    if old.exists():
      shutil.rmtree(old)

  def _clear_unfinished(self) -> None:
    """Finishes or removes what a process left when it was killed."""
    for folder in self._directory.glob("*.saving*"):
      if _manifest(folder) is not None:
        self._put_in_place(folder)
      else:
        shutil.rmtree(folder)
    for folder in self._directory.glob("*.old"):
      shutil.rmtree(folder)

  def _move_torn_aside(self, record: int) -> None:
    folder = self._directory / str(record)
    if folder.exists() and _manifest(folder) is None:
      self.set_aside(record)

  def _whole(self, warn: bool = False) -> dict[int, dict[str, Any]]:
    return _whole(self._directory, warn)


class _Handler(ocp.CompositeCheckpointHandler):
  """Keeps what stops a restore: all processes of an island meet after it."""

  failure: Exception | None = None

  def restore(self, directory: Any, args: Any = None) -> Any:
    self.failure = None
    try:
      return super().restore(directory, args)
    except (MemoryError, jax.errors.JaxRuntimeError):
      raise  # no fault of the disk
    except Exception as error:  # whatever Orbax and its libraries raise
      self.failure = error
      return None


ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)(
  ocp.args.Composite
)


def _anywhere(here: bool) -> bool:
  """Whether it is so on any process of the island. All of them call it."""
  if jax.process_count() == 1:
    return here
  return bool(np.any(multihost_utils.process_allgather(np.array(here))))


def _line(error: Exception) -> str:
  """The beginning of what an error says: TensorStore adds all its settings."""
  return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


@contextlib.contextmanager
def _as_os_error():
  """Of a full disk Orbax raises what its libraries do, a ValueError too."""
  try:
    yield
  except OSError:
    raise
  except Exception as error:
    raise OSError(f"it was not saved: {error}") from error


def _leads() -> bool:
  """Whether this process tidies up after the others."""
  return jax.process_index() == 0


def _whole(directory: pathlib.Path, warn: bool) -> dict[int, dict[str, Any]]:
  """Manifests of the whole checkpoints, by record."""
  whole = {}
  for folder in directory.iterdir():
    if folder.name.isdigit():
      manifest = _manifest(folder)
      if manifest is not None:
        whole[int(folder.name)] = manifest
      elif warn:
        warnings.warn(
          f"Checkpoint {folder} is empty or damaged, and is skipped.",
          stacklevel=4,
        )
  return whole


def _manifest(folder: pathlib.Path) -> dict[str, Any] | None:
  """The manifest of `folder` if all it lists is there, else None."""
  try:
    manifest = json.loads((folder / MANIFEST).read_text())
    sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
  except (OSError, ValueError):
    return None
  return manifest if sizes == manifest["files"] else None


def flush(path: pathlib.Path) -> None:
  """Waits until a file's bytes, or a folder's names, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _outer_args(size: int) -> ocp.args.PyTreeRestore:
  """Arguments that restore theta and momentum."""
  values = jax.ShapeDtypeStruct((size,), np.float32)
  return _restore_args(dict(theta=values, momentum=values))


def _restore_args(abstract: PyTree) -> ocp.args.PyTreeRestore:
  """Arguments that restore into the shapes, dtypes and shardings given."""
  return ocp.args.PyTreeRestore(
    item=abstract,
    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
  )
