"""What an island holds: theta and b, the log, checkpoints, served blobs."""

import concurrent.futures
import math
import threading
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np

from intellect_jax.checkpoint.durable import DurableCheckpoints
from intellect_jax.elastic import blobs, chain, reduce, rpc
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.restore import StateFetch
from intellect_jax.elastic.shelf import MeanShelf
from intellect_jax.elastic.state import OuterState
from intellect_jax.errors import UserError
from intellect_jax.inner.step import TrainState, TrainStep
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer.codec import make_codec
from intellect_jax.outer.delta import delta
from intellect_jax.outer.layout import Layout

_SLOW_SECONDS = 60.0  # that anything may take on a host that is busy
_SLOW_RATE = 10e6  # bytes/s, of the slowest disk or network that is used


class Holdings:
  """The durable and the common part of an island; x is not in it.

  Attributes:
    outer: theta and b.
    record: the record that they stand at.
  """

  def __init__(
    self,
    run: ConfigDict,
    island: ConfigDict,
    identity: Identity,
    train_step: TrainStep,
    run_id: str,
    credentials: rpc.Credentials,
  ):
    """Opens what the workdir has.

    Raises:
      UserError: if it has checkpoints of another run, or island.disk_gb is
        too small for this model.
    """
    self._run = run
    self._run_id = run_id
    self._train_step = train_step
    params = train_step.abstract_state.params
    self.layout = Layout.of(params, tensor_names(params))
    self.codec = make_codec(run.outer.codec)
    self.mean_bytes = self.layout.blocks * self.codec.block_bytes
    self.outer = OuterState(self.layout.size)
    self.record = pb.Record()
    self.log = RecordLog(identity.workdir / "log")
    self.log.open()
    self.checkpoints = DurableCheckpoints(
      identity.workdir / "checkpoints", run_id, island.checkpoint.keep
    )
    self._every = island.checkpoint.every
    self._log_bound = int(island.log_gb * 1e9)
    self._disk_bound = int(island.disk_gb * 1e9)
    self._checkpoint_bytes = self.outer.bytes + sum(
      leaf.size * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(train_step.abstract_state)
    )
    self._check_caps(island)
    self.store = blobs.BlobStore(island.upload_mbit)
    self.shelf = MeanShelf(
      self.store, self.log, self.codec.block_bytes, self.mean_bytes
    )
    self.fetcher = blobs.Fetcher(
      credentials, run.elastic.fetch_patience, island.download_mbit
    )
    self._hasher = concurrent.futures.ThreadPoolExecutor(1, "state-hash")
    self._hash: concurrent.futures.Future[bytes] | None = None
    self._closing = threading.Event()
    self._loader = threading.Thread(
      target=self.shelf.load, args=(self._closing,), name="shelf", daemon=True
    )
    self._coming: StateFetch | None = None  # another island's theta and b
    self._offered = b""  # id of the state that is served to newcomers

  @property
  def slow_seconds(self) -> float:
    """What anything with all of an island's state may take, on any host."""
    return _SLOW_SECONDS + self._checkpoint_bytes / _SLOW_RATE

  def _check_caps(self, island: ConfigDict) -> None:
    least = 2 * self._checkpoint_bytes + self.mean_bytes
    if 0 < self._disk_bound < least:
      raise UserError(
        f"island.disk_gb is {island.disk_gb:g}, but this model's checkpoints"
        f" take {self._checkpoint_bytes / 1e9:.3g} each, and two of them and a"
        f" mean must fit: {least / 1e9:.3g}. Raise it by"
        " --config.island.disk_gb=…, or set 0 for no cap."
      )

  def close(self) -> None:
    self._closing.set()
    self.fetcher.close()
    self._hasher.shutdown(wait=False, cancel_futures=True)
    self.checkpoints.close()

  # -------------------------------------------------------- theta and b

  def stand_at(self, record: pb.Record, both: np.ndarray) -> None:
    """Takes over theta and b, float32 [2 * size], as they are at a record."""
    self.outer.replace(both, record.number)
    self._moved(record)

  def apply(self, record: pb.Record) -> None:
    """Moves theta and b by the next record, whose mean the log has."""
    if record.HasField("step"):
      mean = self.log.mean(record.number)
      assert mean is not None, f"record {record.number} was adopted without it"
      self.outer.apply(record, mean, self.codec)
    else:
      self.outer.advance(record.number)
    self._moved(record)

  def _moved(self, record: pb.Record) -> None:
    self.record = record
    if self._hash is not None:
      self._hash.cancel()  # of a state that is gone, as in a replay
    # Off the training thread: nobody needs it before the next proposal.
    self._hash = self._hasher.submit(lambda: self.outer.manifest()[1].id)

  def state_hash(self) -> bytes:
    """The hash of theta and b, as it will stand in the next record."""
    assert self._hash is not None
    return self._hash.result()

  def host_theta(self) -> Any:
    """Theta as a tree of new numpy arrays."""
    return self.layout.unflatten(self.outer.theta)

  def place_theta(self) -> Any:
    """Theta as parameters on the mesh."""
    return self._train_step.place(self.host_theta())

  def publish_delta(self, params: Any) -> tuple[pb.Blob, float]:
    """Encodes theta - params once, and serves it until it is withdrawn.

    Returns:
      The blob, and the norm of the decoded delta.
    """
    values = np.empty(self.layout.size, np.float32)
    delta(self.outer.theta, params, self.layout, values)
    step = reduce.PIECE_BLOCKS * self.codec.block
    pieces = (values[i : i + step] for i in range(0, len(values), step))
    chunk = blobs.chunk_bytes(self.mean_bytes, self.codec.block_bytes)
    encoded = reduce.encode(self.codec, pieces, self.mean_bytes, chunk)
    served = self.store.publish_hashed(encoded.manifest(chunk), encoded.codes)
    return served, math.sqrt(encoded.squares[0])

  # -------------------------------------------------------- checkpoints

  def is_checkpoint(self) -> bool:
    """Whether the record is one to save at."""
    due = self._every > 0 and self.record.number % self._every == 0
    full = self.log.bytes(self.oldest) > self._log_bound
    return self.record.final or due or full

  def save(self, state: TrainState) -> None:
    """Starts to save everything; the log before is no longer needed.

    A disk that is full costs the checkpoint, and not the island.
    """
    try:
      self._save(state)
    except OSError as error:
      number = self.record.number
      logging.error("No checkpoint at record %d: %s", number, error)

  def _save(self, state: TrainState) -> None:
    number = self.record.number
    sealed = self.log.record(number)
    assert sealed is not None
    self._make_room()
    self.checkpoints.save(
      number,
      self.outer.theta,
      self.outer.momentum,
      state,
      dict(
        run_id=self._run_id,
        run=self._run.to_dict(),
        record_hash=sealed.hash.hex(),
        committed_tokens=self.record.total_tokens,
      ),
      # After a power loss a checkpoint without its record is of no use.
      before=lambda: self.log.sync(number),
    )

  def _make_room(self) -> None:
    """Drops what is beyond the caps, so that one more checkpoint fits."""
    log_bound = self._log_bound
    if self._disk_bound:
      free = self._disk_bound - self._checkpoint_bytes
      self.checkpoints.keep_within(free - self.log.bytes(self.oldest))
      left = free - sum(self.checkpoints.bytes().values())
      log_bound = min(log_bound, max(0, left))
    self.shelf.trim(before=self.oldest, bound=log_bound)

  @property
  def oldest(self) -> int:
    """Record that its own checkpoints and log reach back to."""
    oldest = self.checkpoints.oldest()
    return self.record.number if oldest is None else oldest

  def restore(
    self, replay: bool = True, to: int | None = None
  ) -> TrainState | None:
    """Back to the newest whole checkpoint that counts; None if there is none.

    Args:
      replay: go on through the log. Adam's moments stay as they were saved.
      to: the newest record to stand at; None: any. Checkpoints of later ones
        are of no use any more, and removed, as are those of annulled records.
    """
    try:
      self.checkpoints.wait()
    except OSError as error:
      logging.error("The newest checkpoint was not saved: %s", error)
    annulled = self._annulled()
    for number in self.checkpoints.numbers():
      if number in annulled or (to is not None and number > to):
        self.checkpoints.drop(number)
        continue
      inner = self._restore(number)
      if inner is None:
        continue
      if replay:
        for record in self.log.after(number):
          if to is not None and record.number > to:
            break
          self.apply(record)
      return TrainState(self.place_theta(), inner.opt_state)
    return None

  def _annulled(self) -> set[int]:
    records = self.log.records()
    counting = {record.number for record in chain.effective(records)}
    return {r.number for r in records if r.number not in counting}

  def _restore(self, number: int) -> TrainState | None:
    """Stands at one checkpoint, if the log has its record."""
    saved = self.checkpoints.restore(
      self._train_step.abstract_state, self.layout.size, number
    )
    sealed = self.log.record(number)
    if sealed is None or sealed.hash.hex() != saved.meta["record_hash"]:
      logging.warning("The log lacks record %d of a checkpoint.", number)
      return None
    both = np.concatenate([saved.theta, saved.momentum])
    self.stand_at(pb.Record.FromString(sealed.body), both)
    return saved.inner

  # ---------------------------------------------------- for other islands

  def serve_log(self) -> None:
    """Serves the means that the log has, to islands that are late."""
    self._loader.start()

  def offer(self) -> pb.StateReady:
    """Serves a copy of theta and b to whoever joins."""
    record, manifest, data = self.outer.snapshot()
    self.store.withdraw(self._offered)
    self._offered = manifest.id
    state = self.store.publish_hashed(manifest, data)
    return pb.StateReady(record=record, state=state)

  def fetch(self, blob: pb.Blob, cancelled: threading.Event) -> np.ndarray:
    """Fetches theta and b, float32 [2 * size], as another island offers them.

    Raises:
      UserError: if they are of another model.
      blobs.FetchError: if they cannot be had.
    """
    length = self.outer.bytes
    if blob.length != length:
      raise UserError(
        f"The run's state has {blob.length} bytes, but this model's has"
        f" {length}: the configs differ. Start without --config."
      )
    if self._coming is None:
      self._coming = StateFetch(self.fetcher, length)
    addresses = [a for part in blob.parts for a in part.addresses]
    data = self._coming.fetch(blob.id, addresses, cancelled)
    self._coming = None
    return data.view(np.float32)
