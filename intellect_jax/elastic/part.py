"""One process's part in what its island does with bytes.

Of everything that travels, each process of an island encodes, reduces, serves
and fetches a run of whole chunks, so that the exchange uses the network card of
every host. An island of one process has one part: all of it.

What is fetched comes in two legs: each process fetches its part from other
islands, then the parts are swapped inside, and every process has the whole.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import contextlib
import dataclasses
import threading

import numpy as np

from intellect_jax.elastic import blobs, fetching, means, reduce
from intellect_jax.elastic.actions import Gather
from intellect_jax.elastic.ahead import Ahead
from intellect_jax.elastic.inner import InnerNetwork
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.elastic.restore import StateFetch
from intellect_jax.elastic.shares import addresses
from intellect_jax.elastic.shelf import MeanShelf

_GATHERERS = 8  # threads: they mostly wait for the network


@dataclasses.dataclass
class _Coming:
  """Bytes on their way here."""

  data: np.ndarray  # uint8, of all processes' parts
  cuts: list[tuple[int, int]]  # by process
  shared: bytes  # id of the blob by which the others get this part
  # Of shares, as far as they came from other islands.
  manifests: dict[bytes, blobs.Manifest]


class Part:
  """Carries out tasks (island.proto), in any thread.

  Attributes:
    mean_bytes: length of an encoded delta, and of an encoded mean, of each
      fragment.
    block_bytes: of an encoded codec block.
  """

  def __init__(
    self,
    exchange: reduce.Exchange,
    shelf: MeanShelf,
    log: RecordLog,
    mean_bytes: Sequence[int],
    inner: InnerNetwork,
    offer: Callable[[], pb.StateReady],
  ):
    """Prepares.

    Args:
      exchange: with other islands, of what is served and can be fetched.
      shelf: where gathered means go.
      log: of the records.
      mean_bytes: length of an encoded delta, and of an encoded mean, of each
        fragment.
      inner: the network inside the island.
      offer: snapshots and publishes theta and b.
    """
    self._exchange = exchange
    self._shelf = shelf
    self._records = log
    self.mean_bytes = mean_bytes
    self.block_bytes = exchange.codec.block_bytes
    self._inner = inner
    self._offer_state = offer
    # Fragment, start and encoded part.
    self._kept: dict[bytes, tuple[int, int, np.ndarray]] = {}
    self._coming: dict[bytes, _Coming] = {}
    # By fragment, of its newest attempt.
    self._ahead: dict[int, Ahead | reduce.Collected] = {}
    self._state: StateFetch | None = None
    self._fetching = threading.Lock()  # one that was cancelled has to end first
    self._threads = concurrent.futures.ThreadPoolExecutor(
      _GATHERERS, thread_name_prefix="gather"
    )

  def do(self, task: ipb.Task, cancelled: threading.Event) -> ipb.Report:
    """Carries out a task.

    Raises:
      reduce.MemberError: another island did not deliver what a mean needs.
      fetching.FetchError: nobody delivered a state.
      fetching.Cancelled: `cancelled` was set.
      OSError: the disk is full, for example; or a process of this island did
        not deliver to another.
    """
    kind = task.WhichOneof("task")
    assert kind is not None
    report = getattr(self, f"_{kind}")(getattr(task, kind), cancelled)
    store = self._exchange.store
    report.bytes_sent = store.bytes_sent
    report.bytes_relayed = store.bytes_relayed
    report.bytes_received = self._exchange.fetcher.bytes_received
    report.upload_rate = store.rate.bytes_a_second
    report.download_rate = self._exchange.fetcher.rate.bytes_a_second
    return report

  def close(self) -> None:
    self._threads.shutdown(wait=False, cancel_futures=True)

  def _ask(self, ask: ipb.Ask, cancelled: threading.Event) -> ipb.Report:
    report = ipb.Report(addresses=self._exchange.store.addresses)
    if ask.HasField("checkpoint"):
      records = self._records.after(ask.checkpoint)
      reach = [record.number for record in records]
      report.record = max(reach, default=ask.checkpoint)
    return report

  def _count(self, count: ipb.Count, cancelled: threading.Event) -> ipb.Report:
    return ipb.Report()

  # ------------------------------------------------ deltas and shares, outward

  def chunk(self, fragment: int) -> int:
    """Bytes of the chunks of a fragment's deltas and means."""
    return blobs.chunk_bytes(self.mean_bytes[fragment], self.block_bytes)

  def _cuts(self, fragment: int) -> list[tuple[int, int]]:
    """[start, stop) in bytes of each process's part of them."""
    return self._inner.cut(self.mean_bytes[fragment], self.chunk(fragment))

  def delta_cut(self, fragment: int) -> tuple[int, int]:
    """[start, stop) in bytes: the part of an encoded delta that is ours."""
    return self._cuts(fragment)[self._inner.process]

  def keep(
    self, name: bytes, start: int, encoded: reduce.Encoded, fragment: int
  ) -> ipb.Report:
    """Keeps an encoded part, which begins at byte `start`, until it is served.

    Returns:
      What process 0 needs to know, to make one blob of all parts.
    """
    self._kept[name] = fragment, start, encoded.codes
    return ipb.Report(hashes=encoded.hashes, squared_norms=encoded.squares)

  def _reduce(
    self, work: ipb.ReducePart, cancelled: threading.Event
  ) -> ipb.Report:
    if self._exchange.codec.sparse:
      return self._collect(work, cancelled)
    plan, share = work.plan, work.plan.shares[work.share]
    fragment, ahead = plan.fragment, None
    if self._inner.processes == 1:
      self._ahead[fragment] = ahead = Ahead(
        self._exchange.fetcher,
        plan,
        work.share,
        self.block_bytes,
        self._shelf.open(plan.attempt, self.mean_bytes[fragment], fragment),
        cancelled,
      )
    length = (share.stop - share.start) * self.block_bytes
    part = self._inner.cut(length, self.chunk(fragment))[self._inner.process]
    mean = self._exchange.reduce_share(plan, work.share, cancelled, part)
    if ahead is not None:
      ahead.deltas_came()
    report = self.keep(plan.attempt, part[0], mean, fragment)
    report.mean_squared_norm = self._exchange.codec.squared_norm(mean.codes)
    return report

  def _collect(
    self, work: ipb.ReducePart, cancelled: threading.Event
  ) -> ipb.Report:
    """All members' codes are the mean, and what we reduce is our own.

    The norms are of the same part of the vector that would be our share.
    """
    plan, exchange = work.plan, self._exchange
    fragment, size = plan.fragment, self.mean_bytes[plan.fragment]
    data = self._shelf.open(plan.attempt, size * len(plan.members), fragment)
    collected = exchange.collect(plan, data, cancelled, self._threads.submit)
    self._ahead[fragment] = collected
    first = work.share * size
    own = reduce.Encoded(
      data[first : first + size],
      collected.take(work.share).hashes,
      [],
    )
    report = self.keep(plan.attempt, 0, own, fragment)
    cuts = blobs.cuts(size, self.block_bytes, len(plan.members))
    squares, mean_square = exchange.measure(plan, data, *cuts[work.share])
    report.squared_norms[:] = squares
    report.mean_squared_norm = mean_square
    return report

  def _serve(self, work: ipb.Serve, cancelled: threading.Event) -> ipb.Report:
    if work.kept not in self._kept:
      raise fetching.Cancelled  # a record has come meanwhile
    _, start, codes = self._kept.pop(work.kept)
    manifest = blobs.Manifest.unpack(work.manifest, work.id)
    store = self._exchange.store
    return ipb.Report(blob=store.publish_hashed(manifest, codes, start))

  def _withdraw(self, blob_id: bytes, cancelled: threading.Event) -> ipb.Report:
    self._exchange.store.withdraw(blob_id)
    return ipb.Report()

  def _offer(
    self, offer: pb.OfferState, cancelled: threading.Event
  ) -> ipb.Report:
    ready = self._offer_state()
    return ipb.Report(
      record=ready.record, blob=ready.state, fragments=ready.fragments
    )

  # ----------------------------------------------------- means and states, here

  def _gather(
    self, work: ipb.GatherPart, cancelled: threading.Event
  ) -> ipb.Report:
    length, fragment = means.length(work.shares), work.fragment
    cuts = self._inner.cut(length, self.chunk(fragment))
    ahead = self._ahead.pop(fragment, None)
    if ahead is not None and ahead.attempt != work.attempt:
      ahead = None
    if ahead is None:
      data = self._shelf.open(work.attempt, length, fragment)
    else:
      data = ahead.data
    here = self._left(work, data)
    missing = [share for share in work.shares if share.mean.id not in here]
    wanted = Gather(work.attempt, missing, list(work.holders))
    part = cuts[self._inner.process]
    manifests = here | self._exchange.gather(
      wanted, data, cancelled, self._threads.submit, part, ahead
    )
    chunk = self.chunk(fragment)
    return self._came(work.id, data, cuts, chunk, cancelled, manifests)

  def _left(
    self, work: ipb.GatherPart, data: np.ndarray
  ) -> dict[bytes, blobs.Manifest]:
    """Shares that a process before this one had gathered, by id.

    If all processes of all islands were killed, nobody else has them.
    """
    if not self._records.was_left(work.attempt, work.fragment):
      return {}
    found, size = {}, self.block_bytes
    for share in work.shares:
      mean = data[share.start * size : share.stop * size]
      manifest = blobs.Manifest.of(mean, self.chunk(work.fragment))
      if manifest.id == share.mean.id:
        found[manifest.id] = manifest
    return found

  def _fetch(
    self, work: ipb.FetchPart, cancelled: threading.Event
  ) -> ipb.Report:
    state = work.state
    chunk = blobs.chunk_bytes(state.length, 4)
    cuts = self._inner.cut(state.length, chunk)
    with self._fetching:
      if self._state is None:  # else go on with what has come
        fetcher, own = self._exchange.fetcher, cuts[self._inner.process]
        self._state = StateFetch(fetcher, state.length, own)
      data = self._state.fetch(state.id, addresses(state), cancelled)
      self._state = None
    return self._came(work.id, data, cuts, chunk, cancelled, {})

  def _came(
    self,
    name: bytes,
    data: np.ndarray,
    cuts: list[tuple[int, int]],
    chunk: int,
    cancelled: threading.Event,
    manifests: dict[bytes, blobs.Manifest],
  ) -> ipb.Report:
    """This process's part is here: the others may have it."""
    start, stop = cuts[self._inner.process]
    blob = self._inner.share(data[start:stop], chunk)
    self._coming[name] = _Coming(data, cuts, blob.id, manifests)
    if cancelled.is_set():  # it may have been dropped before it came
      self._drop(name, cancelled)
      raise fetching.Cancelled
    return ipb.Report(blob=blob)

  def _swap(self, work: ipb.Swap, cancelled: threading.Event) -> ipb.Report:
    coming = self._coming.get(work.id)
    if coming is None:
      raise fetching.Cancelled

    def fetch(blob: pb.Blob, start: int) -> None:
      for offset, chunk in self._inner.fetcher.fetch(
        addresses(blob), blob.id, 0, blob.length, cancelled
      ):
        codes = np.frombuffer(chunk, np.uint8)
        offset += start
        coming.data[offset : offset + len(codes)] = codes

    futures = [
      self._threads.submit(fetch, blob, start)
      for process, (blob, (start, _)) in enumerate(
        zip(work.parts, coming.cuts, strict=True)
      )
      if process != self._inner.process and blob.length
    ]
    try:
      for future in futures:
        future.result()
    except fetching.FetchError as error:  # no other island is to blame
      raise ConnectionError(f"a process of this island: {error}") from error
    return ipb.Report()

  def _shelve(self, work: ipb.Shelve, cancelled: threading.Event) -> ipb.Report:
    if work.id not in self._coming:
      raise fetching.Cancelled
    manifests = self._coming[work.id].manifests
    data, size = self.take(work.id), self.block_bytes
    for share in work.shares:
      if share.mean.id not in manifests:  # it came inside the island alone
        part = data[share.start * size : share.stop * size]
        chunk = self.chunk(work.fragment)
        manifests[share.mean.id] = blobs.Manifest.of(part, chunk)
    shares = list(work.shares)
    self._shelf.put(work.attempt, shares, data, manifests, work.fragment)
    return ipb.Report()

  def take(self, name: bytes) -> np.ndarray:
    """What has come, whole: uint8. All processes have it too."""
    coming = self._coming.pop(name, None)
    if coming is None:
      raise fetching.Cancelled
    self._inner.withdraw(coming.shared)
    return coming.data

  def _drop(self, name: bytes, cancelled: threading.Event) -> ipb.Report:
    with contextlib.suppress(fetching.Cancelled):
      self.take(name)
    return ipb.Report()

  # ------------------------------------------------------------------- the log

  def _adopt(
    self, sealed: pb.SealedRecord, cancelled: threading.Event
  ) -> ipb.Report:
    record = self._shelf.adopt(sealed)
    if record.HasField("step"):
      fragment = record.step.fragment
      for name, (of, *_) in list(self._kept.items()):
        if of == fragment:  # of attempts that came to nothing
          self._kept.pop(name, None)
      self._ahead.pop(fragment, None)  # its file is gone, or is the record's
      self._exchange.store.rate.round_over()
      self._exchange.fetcher.rate.round_over()
    self._threads.submit(self._records.sync, record.number)
    return ipb.Report()

  def _log(self, log: pb.Records, cancelled: threading.Event) -> ipb.Report:
    for sealed in log.records:
      self._records.keep(sealed)
    return ipb.Report()
