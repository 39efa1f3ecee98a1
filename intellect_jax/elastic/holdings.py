"""What an island holds: theta and b, the log, checkpoints, served blobs."""

import concurrent.futures
import math
import threading
from typing import Any

from absl import logging
from ml_collections import ConfigDict
import numpy as np

from intellect_jax.checkpoint.durable import DurableCheckpoints
from intellect_jax.elastic import blobs, rpc
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
      UserError: if it has checkpoints of another run.
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
    self.store = blobs.BlobStore(island.upload_mbit)
    self.shelf = MeanShelf(
      self.store, self.log, self.codec.block_bytes, self.mean_bytes
    )
    self.fetcher = blobs.Fetcher(
      credentials, run.elastic.fetch_patience, island.download_mbit
    )
    self._hasher = concurrent.futures.ThreadPoolExecutor(1, "state-hash")
    self._hash: concurrent.futures.Future[bytes] | None = None
    self._coming: StateFetch | None = None  # another island's theta and b
    self._offered = b""  # id of the state that is served to newcomers

  def close(self) -> None:
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
    codes = np.empty(self.mean_bytes, np.uint8)
    self.codec.encode(values, codes)
    chunk = blobs.chunk_bytes(len(codes), self.codec.block_bytes)
    norm = math.sqrt(self.codec.squared_norm(codes))
    return self.store.publish(codes, chunk), norm

  # -------------------------------------------------------- checkpoints

  def is_checkpoint(self) -> bool:
    """Whether the record is one to save at."""
    due = self._every > 0 and self.record.number % self._every == 0
    return self.record.final or due

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
    sealed = self.log.record(self.record.number)
    assert sealed is not None
    self.checkpoints.save(
      self.record.number,
      self.outer.theta,
      self.outer.momentum,
      state,
      dict(
        run_id=self._run_id,
        run=self._run.to_dict(),
        record_hash=sealed.hash.hex(),
        committed_tokens=self.record.total_tokens,
      ),
    )
    self.shelf.trim(before=self.checkpoints.oldest() or 0)

  def restore(self, replay: bool) -> TrainState | None:
    """Back to the newest whole checkpoint; None if there is none.

    Args:
      replay: go on through the log. Adam's moments stay as they were saved.
    """
    if self.checkpoints.latest() is None:
      return None
    saved = self.checkpoints.restore(
      self._train_step.abstract_state, self.layout.size
    )
    sealed = self.log.record(saved.record)
    if sealed is None or sealed.hash.hex() != saved.meta["record_hash"]:
      logging.warning("The log lacks record %d; starting anew.", saved.record)
      return None
    both = np.concatenate([saved.theta, saved.momentum])
    self.stand_at(pb.Record.FromString(sealed.body), both)
    if replay:
      for record in self.log.after(saved.record):
        self.apply(record)
    return TrainState(self.place_theta(), saved.inner.opt_state)

  # ---------------------------------------------------- for other islands

  def serve_log(self) -> None:
    """Serves the means that the log has, to islands that are late."""
    self._hasher.submit(self.shelf.load, self.checkpoints.oldest() or 0)

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
