"""Copies of an island's checkpoints, far away: on any file system of fsspec.

Whole checkpoints are copied in the background, file by file, the marker last:
a folder without it is a copy that has not come to its end. Its name has the
hash of what is in it, so a copy that was cut off is taken up again, and never
mixed with another of the same record.

  URL/RUN/ISLAND/000000012-3f2a…/   record 12
    outer/…  inner/…  manifest.json  as on the island's own disk
    copied.json                      the marker: BLAKE3 of every file
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import threading
import time
from typing import Any

from absl import logging
from blake3 import blake3

from intellect_jax.checkpoint.durable import MANIFEST, flush
from intellect_jax.errors import UserError

MARKER = "copied.json"
_BACKOFF = 1.0, 60.0  # seconds between tries, while the remote is not there
_PIECE = 8 << 20  # bytes read at a time


@dataclasses.dataclass(frozen=True, order=True)
class Copy:
  """A whole copy of a checkpoint."""

  record: int
  path: str


class RemoteCheckpoints:
  """The copies of one island; other islands' may be read too."""

  def __init__(
    self, url: str, run_id: str, island: str, directory: pathlib.Path, keep: int
  ):
    """Starts a thread that copies.

    Args:
      url: such as s3://bucket/folder or file:///mnt/backup.
      run_id: of the run.
      island: whose copies are written.
      directory: of the island's own checkpoints.
      keep: newest copies to keep.

    Raises:
      UserError: if the URL cannot be used here.
    """
    self._system, root = _open(url)
    self._run = f"{root.rstrip('/')}/{run_id}"
    self._own = f"{self._run}/{island}"
    self._directory = directory
    self._keep = keep
    self._brought: dict[int, str] = {}  # by record, the copy that is here
    self._distrusted: set[str] = set()  # copies of what was damaged already
    self._changed = threading.Condition()
    self._wanted: int | None = None  # record to copy next
    self._busy = False
    self._closing = False
    self._thread = threading.Thread(
      target=self._work, name="remote", daemon=True
    )
    self._thread.start()

  # ------------------------------------------------------------- to write

  def copy_soon(self, record: int) -> None:
    """Copies this checkpoint, instead of one that has not been begun."""
    with self._changed:
      self._wanted = record
      self._changed.notify_all()

  def wait(self, seconds: float) -> bool:
    """Waits until the newest is copied. Returns whether it is, by then."""
    with self._changed:
      return self._changed.wait_for(
        lambda: self._wanted is None and not self._busy, seconds
      )

  def close(self) -> None:
    """Ends the thread; a copy that is cut off is taken up by the next one."""
    with self._changed:
      self._closing = True
      self._changed.notify_all()

  def _work(self) -> None:
    pause = _BACKOFF[0]
    while (record := self._next()) is not None:
      try:
        self.copy(record)
        pause = _BACKOFF[0]
      except Exception as error:  # whatever a remote raises, training goes on
        if not (self._directory / str(record) / MANIFEST).exists():
          logging.info("Checkpoint %d went before it was copied.", record)
        else:
          logging.warning("Checkpoint %d is not copied yet: %s", record, error)
          self._again(record, pause)
          pause = min(2 * pause, _BACKOFF[1])
      with self._changed:
        self._busy = False
        self._changed.notify_all()

  def _next(self) -> int | None:
    with self._changed:
      self._changed.wait_for(lambda: self._closing or self._wanted is not None)
      record, self._wanted, self._busy = self._wanted, None, True
      return None if self._closing else record

  def _again(self, record: int, pause: float) -> None:
    """Wants it again after a pause, unless a newer one is wanted."""
    with self._changed:
      newer = lambda: self._closing or self._wanted is not None  # noqa: E731
      if not self._changed.wait_for(newer, pause):
        self._wanted = record

  def copy(self, record: int) -> None:
    """Copies a whole checkpoint, the marker last; then drops old copies.

    Raises:
      FileNotFoundError: the checkpoint has been removed.
      OSError: the remote does not take it; or what its file system raises.
    """
    source = self._directory / str(record)
    manifest = json.loads((source / MANIFEST).read_text())
    names = [*manifest["files"], MANIFEST]
    files = {name: _hash(source / name) for name in names}
    marker = json.dumps(dict(record=record, files=files), sort_keys=True)
    identity = blake3(marker.encode()).hexdigest()[:16]
    target = f"{self._own}/{record:09d}-{identity}"
    there = self._sizes(target)
    if MARKER in there:
      return
    for name in names:
      if there.get(name) == (source / name).stat().st_size:
        continue  # from a copy that was cut off
      path = f"{target}/{name}"
      self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
      self._system.put_file(str(source / name), path)
      if self._closing:
        return
    # On a disk, a file is there before it is whole; once moved it is both.
    self._system.pipe_file(f"{target}/{MARKER}.partial", marker.encode())
    self._system.mv(f"{target}/{MARKER}.partial", f"{target}/{MARKER}")
    kept = sorted(self._copies(self._own), reverse=True)[: self._keep]
    whole = {copy.path for copy in kept}
    for folder in self._folders(self._own):
      number = _record_of(folder)  # older ones; also what was cut off, for good
      if folder not in whole and number is not None and number <= record:
        self._system.rm(folder, recursive=True)

  def _sizes(self, folder: str) -> dict[str, int]:
    """Bytes of each file in a folder, by its name there."""
    self._system.invalidate_cache()
    try:
      found = self._system.find(folder, detail=True)
    except FileNotFoundError:
      return {}
    return {
      path.partition(f"{folder.lstrip('/')}/")[2]: info["size"]
      for path, info in found.items()
    }

  # -------------------------------------------------------------- to read

  def copies(self) -> list[Copy]:
    """All whole copies of the run: the newest first, its own before others."""
    own = set(self._copies(self._own))
    found = own | {
      copy
      for island in self._folders(self._run)
      for copy in self._copies(island)
    }
    return sorted(found, key=lambda c: (-c.record, c not in own, c.path))

  def _copies(self, island: str) -> Iterator[Copy]:
    for folder in self._folders(island):
      number = _record_of(folder)
      if number is not None and self._system.exists(f"{folder}/{MARKER}"):
        yield Copy(number, folder)

  def _folders(self, path: str) -> list[str]:
    self._system.invalidate_cache()
    with contextlib.suppress(FileNotFoundError):
      found = self._system.ls(path, detail=True)
      return [e["name"].rstrip("/") for e in found if e["type"] == "directory"]
    return []

  def fetch_newer(self, than: Callable[[], int], to: int | None) -> bool:
    """Fetches the newest copy of a record after `than()`, of `to` at most.

    Returns:
      Whether there was one: a remote that fails is no reason to wait for it.
    """
    try:
      copies = self.copies()
    except Exception as error:  # whatever a remote raises
      logging.warning("No checkpoint from afar: %s", error)
      return False
    for copy in copies:
      if copy.record <= than():
        break
      if copy.path in self._distrusted or (to is not None and copy.record > to):
        continue
      logging.info("Fetching checkpoint %d from afar.", copy.record)
      try:
        self.fetch(copy)
        self._brought[copy.record] = copy.path
        return True
      except Exception as error:  # an older one, or another's, may be better
        logging.warning("Checkpoint %d from afar: %s", copy.record, error)
    return False

  def distrust(self, record: int) -> None:
    """A checkpoint here is damaged; so is its copy, if it came from there."""
    self._distrusted.add(self._brought.pop(record, ""))

  def fetch(self, copy: Copy) -> None:
    """Brings a copy to the island's own disk, verified.

    It gets its number last. What has come before a process was killed is kept.

    Raises:
      OSError: if the copy is damaged, or cannot be read.
    """
    marker = json.loads(self._system.cat_file(f"{copy.path}/{MARKER}"))
    final = self._directory / str(copy.record)
    coming = self._directory / f"{copy.path.rpartition('/')[2]}.fetching"
    for name, digest in marker["files"].items():
      path = coming / name
      if not path.resolve().is_relative_to(coming.resolve()):
        raise OSError(f"{copy.path} names a file outside of it: {name}")
      if path.exists() and _hash(path) == digest:
        continue
      path.parent.mkdir(parents=True, exist_ok=True)
      self._system.get_file(f"{copy.path}/{name}", str(path))
      if _hash(path) != digest:
        raise OSError(f"{copy.path}/{name} is damaged")
    if final.exists():
      torn = final.with_suffix(f".torn{time.time_ns()}")
      logging.warning("Moved the damaged %s to %s.", final, torn)
      final.rename(torn)
    for path in (*coming.rglob("*"), coming):
      flush(path)
    coming.rename(final)
    flush(self._directory)
    for left in self._directory.glob("*.fetching"):
      shutil.rmtree(left)


def _open(url: str) -> tuple[Any, str]:
  """The file system of a URL, and the path in it."""
  try:
    import fsspec  # pyright: ignore[reportMissingImports]

    return fsspec.core.url_to_fs(url)
  except ImportError as error:
    raise UserError(
      f"island.checkpoint.remote is {url}, but this needs a package that is not"
      f" here ({error}). Install it with pip install 'intellect_jax[remote]', or"
      " leave the setting empty."
    ) from error
  except ValueError as error:
    raise UserError(
      f"island.checkpoint.remote is {url!r}, but must be a URL that fsspec"
      f" knows, such as s3://bucket/folder or file:///mnt/backup: {error}"
    ) from error


def _record_of(folder: str) -> int | None:
  """The record of a copy, whole or not; None: it is something else."""
  number = folder.rpartition("/")[2].partition("-")[0]
  return int(number) if number.isdigit() else None


def _hash(path: str | os.PathLike) -> str:
  """BLAKE3 of a file, hex."""
  hasher = blake3()
  with open(path, "rb") as file:
    while piece := file.read(_PIECE):
      hasher.update(piece)
  return hasher.hexdigest()
