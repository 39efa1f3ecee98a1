"""What an island holds: theta and b, the log, and what of it others may have."""

import concurrent.futures
import math
import threading
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from intellect_jax.elastic import blobs, reduce, rpc
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.restore import StateFetch
from intellect_jax.elastic.saves import Saves
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
      UserError: see `Saves`.
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
    self.store = blobs.BlobStore(island.upload_mbit)
    self.shelf = MeanShelf(
      self.store, self.log, self.codec.block_bytes, self.mean_bytes
    )
    self._state_bytes = self.outer.bytes + sum(
      leaf.size * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(train_step.abstract_state)
    )
    self.saves = Saves(
      island,
      identity.island,
      run_id,
      identity.workdir,
      self.log,
      self.shelf,
      self._state_bytes,
      self.mean_bytes,
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
    return _SLOW_SECONDS + self._state_bytes / _SLOW_RATE

  def close(self) -> None:
    self._closing.set()
    self.fetcher.close()
    self._hasher.shutdown(wait=False, cancel_futures=True)
    self.saves.close()

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

  def save(self, state: TrainState) -> None:
    """Starts to save everything; the log before is no longer needed."""
    sealed = self.log.record(self.record.number)
    assert sealed is not None
    self.saves.save(
      self.outer,
      state,
      dict(
        run_id=self._run_id,
        run=self._run.to_dict(),
        record_hash=sealed.hash.hex(),
        committed_tokens=self.record.total_tokens,
      ),
    )

  def restore(
    self, replay: bool = True, to: int | None = None
  ) -> TrainState | None:
    """Back to the newest whole checkpoint that counts; None if there is none.

    One that is far away is fetched if it is newer than what is here, at a
    start; and if there is none here.

    Args:
      replay: go on through the log. Adam's moments stay as they were saved.
      to: the newest record to stand at; None: any.
    """
    state = self._restore_here(replay, to)
    stands = self.record.number if state is not None else -1
    wanted = state is None or to is None
    if wanted and self.saves.fetch_newer(stands, to):
      state = self._restore_here(replay, to)
    return state

  def _restore_here(self, replay: bool, to: int | None) -> TrainState | None:
    abstract, size = self._train_step.abstract_state, self.layout.size
    found = next(self.saves.find(abstract, size, to), None)
    if found is None:
      return None
    record, saved = found
    self.stand_at(record, np.concatenate([saved.theta, saved.momentum]))
    following = self.log.after(record.number) if replay else ()
    for record in following:
      if to is not None and record.number > to:
        break
      self.apply(record)
    return TrainState(self.place_theta(), saved.inner.opt_state)

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
