"""An island's checkpoints: here, far away, and within the caps of its disk."""

from collections.abc import Callable, Iterator
import contextlib
import math
import pathlib
from typing import Any

from absl import logging
from google.protobuf.message import DecodeError
from ml_collections import ConfigDict
import numpy as np

from intellect_jax.checkpoint.durable import DurableCheckpoints, Restored
from intellect_jax.checkpoint.remote import RemoteCheckpoints
from intellect_jax.elastic import chain
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.shelf import MeanShelf
from intellect_jax.elastic.state import OuterState
from intellect_jax.errors import UserError

_CHAIN = "chain"  # in a checkpoint: all records up to its own


class Saves:
  """Saves and finds states, and keeps what the log must have for them."""

  def __init__(
    self,
    island: ConfigDict,
    name: str,
    run_id: str,
    workdir: pathlib.Path,
    log: RecordLog,
    shelf: MeanShelf,
    checkpoint_bytes: int,
    mean_bytes: int,
    fragments: int = 1,
    leads: bool = True,
  ):
    """Opens what the workdir has.

    Args:
      island: the island's half of the config.
      name: of the island.
      run_id: of the run.
      workdir: of the island.
      log: that checkpoints stand on.
      shelf: of the means in it.
      checkpoint_bytes: what one checkpoint takes.
      mean_bytes: what one mean takes.
      fragments: of the model. A replay of one begins before its newest step, so
        the more there are, the more checkpoints are kept.
      leads: this process of the island copies what all have saved.

    Raises:
      UserError: if it has checkpoints of another run, island.disk_gb is too
        small for this model, or island.checkpoint.remote cannot be used.
    """
    self._every = island.checkpoint.every
    self._log_bound = int(island.log_gb * 1e9)
    self._disk_bound = int(island.disk_gb * 1e9)
    self._checkpoint_bytes = checkpoint_bytes
    self._remote_patience = island.checkpoint.remote_patience
    self._log = log
    self._shelf = shelf
    least = 2 * checkpoint_bytes + mean_bytes
    if 0 < self._disk_bound < least:
      raise UserError(
        f"island.disk_gb is {island.disk_gb:g}, but this model's checkpoints"
        f" take {checkpoint_bytes / 1e9:.3g} each, and two of them and a mean"
        f" must fit: {least / 1e9:.3g}. Raise it by"
        " --config.island.disk_gb=…, or set 0 for no cap."
      )
    folder, keep = workdir / "checkpoints", island.checkpoint.keep
    keep += math.ceil(fragments / self._every) - 1 if self._every else 0
    self._remote = None
    if island.checkpoint.remote and leads:
      url = island.checkpoint.remote
      self._remote = RemoteCheckpoints(url, run_id, name, folder, keep)
    self._here = DurableCheckpoints(folder, run_id, keep, self._published)
    for newest in self._here.numbers()[:1]:
      self._published(newest)  # its copy may have been cut off

  def _published(self, record: int) -> None:
    if self._remote is not None:
      self._remote.copy_soon(record)

  def close(self) -> None:
    if self._remote is not None:
      self._remote.close()
    with _logged():
      self._here.close()

  # -------------------------------------------------------------- to save

  def is_due(self, record: pb.Record) -> bool:
    """Whether the record is one to save at.

    It is, too, when the log since the oldest checkpoint fills its bound.
    """
    due = self._every > 0 and record.number % self._every == 0
    full = self._log.size(self.oldest(record.number)) > self._log_bound
    return record.final or due or full

  def save(
    self,
    outer: OuterState,
    state: Any,
    meta: dict[str, Any],
    files: dict[str, bytes | memoryview],
  ) -> None:
    """Starts to save everything; returns when it has been copied.

    What is in `files` is not copied, and must stay as it is. A disk that is
    full costs the checkpoint, and not the island.
    """
    number = outer.record
    self._wait_here()  # that it failed is no reason not to try again
    try:
      self._make_room(number)
      self._here.save(
        number,
        outer.theta,
        outer.momentum,
        state,
        meta,
        # After a power loss a checkpoint without its record is of no use.
        before=lambda: self._log.sync(number),
        files={_CHAIN: self._chain(number), **files},
      )
    except OSError as error:
      logging.error("No checkpoint at record %d: %s", number, error)

  def _chain(self, number: int) -> bytes:
    """All records up to one: a checkpoint stands on them wherever it is."""
    sealed = map(self._log.record, range(number + 1))
    records = [record for record in sealed if record is not None]
    return pb.Records(records=records, end=number + 1).SerializeToString()

  def _make_room(self, number: int) -> None:
    """Drops what is beyond the caps, so that one more checkpoint fits."""
    bound, oldest = self._log_bound, self.oldest(number)
    if self._disk_bound:
      free = self._disk_bound - self._checkpoint_bytes
      self._here.keep_within(free - self._log.size(oldest))
      oldest = self.oldest(number)
      bound = min(bound, max(0, free - sum(self._here.sizes().values())))
    self._shelf.trim(before=oldest, bound=bound)

  def wait(self) -> None:
    """Waits until what was saved is whole, and its copy far away too."""
    self._wait_here()
    patience = self._remote_patience
    if self._remote is not None and not self._remote.wait(patience):
      logging.error("The last checkpoint was not copied in %g s.", patience)

  def _wait_here(self) -> None:
    with _logged():
      self._here.wait()

  # -------------------------------------------------------------- to find

  def oldest(self, record: int) -> int:
    """What it reaches back to; `record`, where it stands, without any."""
    oldest = self._here.oldest()
    return record if oldest is None else oldest

  def kept(self) -> list[int]:
    """Records that an island can go back to, the oldest first."""
    return self._here.kept()

  def newest(self, to: int | None) -> int | None:
    """Record of the newest checkpoint here that counts.

    Args:
      to: the newest record of any use; None: any. If there is one, checkpoints
        of later ones are removed, as are those of annulled records.
    """
    numbers = [n for n in self.numbers() if to is None or n <= to]
    annulled = self._annulled()
    newest = next((n for n in numbers if n not in annulled), None)
    if newest is not None:
      for number in self._here.numbers():
        if number in annulled or (to is not None and number > to):
          self._here.drop(number)
    return newest

  def restore(
    self, abstract_inner: Any, size: int, number: int
  ) -> tuple[pb.Record, Restored]:
    """One of the checkpoints here, and its record.

    Args:
      abstract_inner: see `DurableCheckpoints.restore`.
      size: likewise.
      number: from `newest`; all processes of an island name the same.

    Raises:
      DamagedError: see `set_aside`.
    """
    self._wait_here()
    saved = self._here.restore(abstract_inner, size, number)
    record = self._record(number, saved.meta["record_hash"])
    assert record is not None, f"checkpoint {number} has lost its record"
    return record, saved

  def set_aside(self, number: int) -> None:
    """One of the checkpoints here is damaged, and does not count any more."""
    self._here.set_aside(number)
    if self._remote is not None:
      self._remote.distrust(number)

  def numbers(self) -> list[int]:
    """Records of the whole checkpoints here, the newest first."""
    self._wait_here()
    return [
      number
      for number in self._here.numbers()
      if self._record(number, self._here.meta(number)["record_hash"])
    ]

  def outer(self, size: int, number: int) -> np.ndarray:
    """Theta and b of one of the checkpoints here, float32 [2 * size]."""
    self._wait_here()
    saved = self._here.outer(size, number)
    return np.concatenate([saved.theta, saved.momentum])

  def file(self, number: int, name: str) -> bytes:
    """One of the files that a checkpoint was saved with."""
    data = self._here.file(number, name)
    assert data is not None, f"checkpoint {number} has no {name}"
    return data

  def forget_annulled(self) -> None:
    """Removes checkpoints of records that do not count; none leads from them.

    But not while there is no other: then they are all that is left of a run.
    """
    self._wait_here()  # it drops some itself
    here = set(self._here.numbers())
    annulled = here & self._annulled()
    if annulled < here:
      for number in annulled:
        self._here.drop(number)

  def _annulled(self) -> set[int]:
    records = self._log.records()
    counting = {record.number for record in chain.effective(records)}
    return {r.number for r in records if r.number not in counting}

  def _record(self, number: int, digest: str) -> pb.Record | None:
    """The record that a checkpoint stands on, from the log or beside it."""
    sealed = self._log.record(number)
    if sealed is None or sealed.hash.hex() != digest:
      for sealed in self._read_chain(number):
        self._log.keep(sealed)
      sealed = self._log.record(number)
    if sealed is None or sealed.hash.hex() != digest:
      logging.warning("The record of checkpoint %d is not to be had.", number)
      return None
    return pb.Record.FromString(sealed.body)

  def _read_chain(self, number: int) -> list[pb.SealedRecord]:
    try:
      data = self._here.file(number, _CHAIN) or b""
      sealed = pb.Records.FromString(data).records
    except DecodeError:
      return []
    return [each for each in sealed if chain.opened(each) is not None]

  def fetch_newer(self, than: Callable[[], int], to: int | None) -> bool:
    """Brings the newest copy from far away here, if it is newer than `than()`.

    Returns whether there is one now.
    """
    return self._remote is not None and self._remote.fetch_newer(than, to)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
  """A save that failed costs the checkpoint, and not the island."""
  try:
    yield
  except OSError as error:
    logging.error("The newest checkpoint was not saved: %s", error)
