"""What an island holds: theta and b, the log, and what of it others may have."""

from collections.abc import Callable, Sequence
import concurrent.futures
import pathlib
import threading
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np

from intellect_jax.checkpoint.durable import DamagedError
from intellect_jax.elastic import (
  blobs,
  chain,
  fetching,
  figures,
  history,
  rpc,
)
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.means import Mean
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.elastic.saves import Saves
from intellect_jax.elastic.shelf import MeanShelf
from intellect_jax.elastic.state import OuterState
from intellect_jax.elastic.team import Team
from intellect_jax.errors import UserError
from intellect_jax.inner.step import TrainState, TrainStep
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer.codec import make_codec
from intellect_jax.outer.feedback import ErrorFeedback
from intellect_jax.outer.fragments import partition
from intellect_jax.outer.layout import Layout
from intellect_jax.version import version

# In a checkpoint: error feedback, float32; and whose it is.
_FEEDBACK, _ISLAND = "feedback", "island"

_SLOW_SECONDS = 60.0  # that anything may take on a host that is busy
_SLOW_RATE = 10e6  # bytes/s, of the slowest disk or network that is used


class Holdings:
  """The durable and the common part of an island; x is not in it.

  Attributes:
    fragments: of the canonical vector.
    mean_bytes: of an encoded mean of each of them.
    outer: theta and b.
    feedback: what the codes of this island have left out, if the codec is
      sparse; it is in its checkpoints, and no other island has it.
    record: the record that they stand at.
  """

  def __init__(
    self,
    run: ConfigDict,
    island: ConfigDict,
    name: str,
    team: Team,
    workdir: pathlib.Path,
    train_step: TrainStep,
    run_id: str,
    credentials: rpc.Credentials,
  ):
    """Opens what the workdir has.

    Args:
      run: the run half of the config.
      island: this island's half.
      name: of the island.
      team: its processes; each has a log of its own.
      workdir: of the island; all processes write its checkpoints there.
      train_step: compiled already, or not.
      run_id: of the run.
      credentials: for channels.

    Raises:
      UserError: see `Saves`; or the codec is not one for several processes.
    """
    self._run = run
    self._name = name
    self._run_id = run_id
    self._version = version()  # asks git, which may take a while
    self._train_step = train_step
    params = train_step.abstract_state.params
    self.codec = make_codec(run.outer.codec)
    self.layout = Layout.of(params, tensor_names(params), self.codec.block)
    self.fragments = partition(self.layout, run.outer.fragments)
    self.mean_bytes = [
      f.blocks * self.codec.block_bytes for f in self.fragments
    ]
    self.outer = OuterState(self.layout.size)
    self.feedback: ErrorFeedback | None = None
    if self.codec.sparse:
      if team.processes > 1:
        raise UserError(
          f"run.outer.codec is {self.codec.name}, but island {name} has"
          f" {team.processes} processes. Islands of one process alone can take"
          " part in this run, or start one with another codec, such as int4."
        )
      zero = np.zeros(self.layout.size, np.float32)
      self.feedback = ErrorFeedback(zero, run.outer.feedback)
    self.record = pb.Record()
    self.log = RecordLog(team.folder(workdir) / "log")
    self.log.open()
    self.store = blobs.BlobStore(island.upload_mbit)
    self.shelf = MeanShelf(
      self.store, self.log, self.codec.block_bytes, self.mean_bytes
    )
    feedback_bytes = 4 * self.layout.size if self.feedback is not None else 0
    self._state_bytes = (
      feedback_bytes
      + self.outer.bytes
      + sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(train_step.abstract_state)
      )
    )
    self.saves = Saves(
      island,
      name,
      run_id,
      workdir,
      self.log,
      self.shelf,
      self._state_bytes,
      max(self.mean_bytes),
      run.outer.fragments,
      team.leads,
    )
    self.fetcher = fetching.Fetcher(
      credentials, run.elastic.fetch_patience, island.download_mbit
    )
    # By fragment, records; 0: before a start.
    self._last_steps: dict[int, tuple[int, int]] = {}
    self._hasher = concurrent.futures.ThreadPoolExecutor(1, "state-hash")
    self._hashes: dict[int, concurrent.futures.Future[bytes]] = {}
    self._closing = threading.Event()
    self._loader = threading.Thread(
      target=self.shelf.load, args=(self._closing,), name="shelf", daemon=True
    )
    self._offered = b""  # id of the state that is served to newcomers
    self._offering = threading.Lock()  # who joins may be offered it twice

  def close(self, wait: bool = True) -> None:
    """`wait`: for the newest checkpoint."""
    self._closing.set()
    self.fetcher.close()
    self._hasher.shutdown(wait=False, cancel_futures=True)
    if wait:
      self.saves.close()

  @property
  def slow_seconds(self) -> float:
    """What anything with all of an island's state may take, on any host."""
    return _SLOW_SECONDS + self._state_bytes / _SLOW_RATE

  # -------------------------------------------------------- theta and b

  def stand_at(self, record: pb.Record, both: np.ndarray) -> None:
    """Takes over theta and b, float32 [2 * size], as they are at a record."""
    self.outer.replace(both, record.number)
    self._last_steps.clear()
    self._moved(record, [fragment.index for fragment in self.fragments])

  def apply(self, record: pb.Record) -> None:
    """Moves theta and b by the next record, whose mean the log has."""
    history.move(self.log, self.outer, record)
    if record.HasField("step"):
      fragment = record.step.fragment
      _, before = self._last_steps.get(fragment, (0, 0))
      self._last_steps[fragment] = before, record.number
      self._moved(record, [fragment])
    else:
      self.record = record

  def _moved(self, record: pb.Record, fragments: list[int]) -> None:
    self.record = record
    for fragment in fragments:
      if fragment in self._hashes:  # of a state that is gone, as in a replay
        self._hashes[fragment].cancel()
      places = self.places[fragment]
      # Off the training thread: nobody needs it before the next proposal.
      self._hashes[fragment] = self._hasher.submit(
        self.outer.fragment_hash, places
      )

  @property
  def places(self) -> list[list[tuple[int, int]]]:
    """[start, stop) in values of each fragment's runs."""
    block = self.layout.block
    return [
      [(start * block, stop * block) for start, stop in fragment.runs]
      for fragment in self.fragments
    ]

  def state_hash(self, fragment: int = 0) -> bytes:
    """The hash of a fragment of theta and b, as its next record will have it."""
    return self._hashes[fragment].result()

  def whole_hash(self) -> bytes:
    """The hash of all of theta and b."""
    if len(self.fragments) == 1:
      return self.state_hash()
    return self.outer.manifest()[1].id

  def actual_hash(self, fragment: int) -> bytes:
    """The hash of a fragment of theta and b as they are in memory now."""
    return self.outer.fragment_hash(self.places[fragment])

  def describe(self) -> pb.StateReady:
    """The hashes of theta and b as they are in memory now; nobody serves them."""
    record, manifest = self.outer.manifest()
    ready = pb.StateReady(record=record, state=pb.Blob(id=manifest.id))
    if len(self.fragments) > 1:
      ready.fragments.extend(map(self.outer.fragment_hash, self.places))
    return ready

  def look_back(
    self, told: Callable[[figures.Direction], None]
  ) -> concurrent.futures.Future[None]:
    """Tells where the newest step went, in the thread that hashes the state.

    Nothing is told if theta moves on before that is known.
    """
    record = self.record
    steps = self._last_steps[record.step.fragment]
    before, newest = map(self._mean, steps)
    assert newest is not None and steps[1] == record.number

    def look() -> None:
      found = figures.direction(self.outer, record, newest, before, self.codec)
      if found is not None:
        told(found)

    return self._hasher.submit(look)

  def _mean(self, number: int) -> Mean | None:
    """Of a record, if it is here."""
    data, sealed = self.log.mean(number), self.log.record(number)
    if data is None or sealed is None:
      return None
    step = pb.Record.FromString(sealed.body).step
    return Mean(step, data, self.codec)

  def host_theta(self) -> Any:
    """Theta as a tree of new numpy arrays."""
    return self.layout.unflatten(self.outer.theta)

  def place_theta(self) -> Any:
    """Theta as parameters on the mesh."""
    return self._train_step.place(self.host_theta())

  # ------------------------------------------------------ error feedback

  def decide(self, record: pb.Record, included: bool) -> None:
    """A step decides about the codes of this island: docs/protocol.md, 8.

    `included`: it has those that this process proposed last.
    """
    if self.feedback is not None and record.HasField("step"):
      has = any(m.island == self._name for m in record.step.members)
      self.feedback.decide(record.step.attempt, included, has)

  def agree(self, records: Sequence[pb.Record]) -> None:
    """Keeps error feedback if it is of one of these records, all that count."""
    attempts = {record.step.attempt for record in records}
    if self.feedback is not None and self.feedback.attempt not in attempts:
      self.feedback.clear()

  # -------------------------------------------------------- checkpoints

  def save(self, state: TrainState) -> None:
    """Starts to save everything; the log before is no longer needed."""
    sealed = self.log.record(self.record.number)
    assert sealed is not None
    meta = dict(
      run_id=self._run_id,
      run=self._run.to_dict(),
      record_hash=sealed.hash.hex(),
      **{_ISLAND: self._name},
      committed_tokens=self.record.total_tokens,
      version=self._version,
    )
    files = {}
    if self.feedback is not None:
      meta[_FEEDBACK] = self.feedback.attempt.hex()
      files[_FEEDBACK] = self.feedback.values.data  # never changed in place
    self.saves.save(self.outer, state, meta, files)

  def resumable(self, to: int | None = None) -> int | None:
    """Record of the newest whole checkpoint that counts; None if there is none.

    One that is far away is fetched if it is newer than what is here, at a
    start; and if there is none here.

    Args:
      to: the newest record to stand at; None: any.
    """
    newest = self.saves.newest(to)

    def reach() -> int:
      if newest is None:
        return -1
      return max((r.number for r in self.log.after(newest)), default=newest)

    wanted = newest is None or to is None
    if wanted and self.saves.fetch_newer(reach, to):
      newest = self.saves.newest(to)
    return newest

  def restore(self, checkpoint: int, to: int) -> TrainState:
    """Back to a checkpoint, and on through the log as far as record `to`.

    Adam's moments stay as they were saved.
    """
    abstract, size = self._train_step.abstract_state, self.layout.size
    record, saved = self.saves.restore(abstract, size, checkpoint)
    self.stand_at(record, np.concatenate([saved.theta, saved.momentum]))
    if self.feedback is not None:
      values = np.frombuffer(self.saves.file(checkpoint, _FEEDBACK), np.float32)
      self.feedback.restore(values, bytes.fromhex(saved.meta[_FEEDBACK]))
      # A copy from afar may be another island's, which has that itself.
      if saved.meta.get(_ISLAND, self._name) != self._name:
        self.feedback.clear()
    for record in self.log.after(checkpoint):
      if record.number > to:
        break
      self.apply(record)
      self.decide(record, included=False)
    return TrainState(self.place_theta(), saved.inner.opt_state)

  def rebuild(self, order: ipb.Rebuild) -> bytes:
    """Replays a fragment from a checkpoint through the log up to this record.

    If others confirm the checkpoint, or if the replay comes to what is right, the
    fragment becomes that; see `Rebuild` in island.proto.

    Returns:
      The state hash by replay; empty if the checkpoint is not what is agreed, or
      is damaged.
    """
    size, places = self.layout.size, self.places[order.fragment]
    replay = OuterState(size)
    try:
      both = self.saves.outer(size, order.checkpoint)
    except DamagedError as error:
      logging.error("%s", error)
      return b""
    replay.replace(both, order.checkpoint)
    if order.agreed and replay.fragment_hash(places) != order.agreed:
      logging.warning("Checkpoint %d is not what others had.", order.checkpoint)
      return b""
    for record in self.log.after(order.checkpoint):
      if record.number > order.record:
        break
      if chain.moves(record, order.fragment):
        history.move(self.log, replay, record)
    rebuilt = replay.fragment_hash(places)
    sure = order.agreed or rebuilt == order.right
    if sure and rebuilt != self.actual_hash(order.fragment):
      theta, momentum = self.outer.theta.copy(), self.outer.momentum.copy()
      for start, stop in places:
        theta[start:stop] = replay.theta[start:stop]
        momentum[start:stop] = replay.momentum[start:stop]
      self.stand_at(self.record, np.concatenate([theta, momentum]))
    return rebuilt

  # ---------------------------------------------------- for other islands

  def serve_log(self) -> None:
    """Serves the means that the log has, to islands that are late."""
    self._loader.start()

  def offer(self) -> pb.StateReady:
    """Serves a copy of theta and b to whoever joins."""
    with self._offering:
      snapshot = self.outer.snapshot()
      self.store.withdraw(self._offered)
      self._offered = snapshot.manifest.id
      state = self.store.publish_hashed(snapshot.manifest, snapshot.data)
    ready = pb.StateReady(record=snapshot.record, state=state)
    if len(self.fragments) > 1:
      ready.fragments.extend(map(snapshot.fragment_hash, self.places))
    return ready
