"""The processes of an island exchange what one process would, bit for bit."""

import concurrent.futures
import contextlib
import threading

import numpy as np
import pytest

from intellect_jax.elastic import blobs, fetching, reduce, rpc, shares
from intellect_jax.elastic.actions import Gather
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.inner import InnerNetwork
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.mate import Mate
from intellect_jax.elastic.part import Part
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.elastic.rates import Rate
from intellect_jax.elastic.shelf import MeanShelf
from intellect_jax.outer.codec import Codec, make_codec

BLOCKS = 300
CODEC = make_codec("int8")
LENGTH = BLOCKS * CODEC.block_bytes
CHUNK = blobs.chunk_bytes(LENGTH, CODEC.block_bytes)
NEVER = threading.Event()
STATE = np.random.default_rng(7).integers(0, 256, 123_456, np.uint8)


class Island:
  """Some processes without devices, which speak over loopback."""

  def __init__(self, seed: int, processes: int, folder, codec: Codec = CODEC):
    self.codec, self.length = codec, BLOCKS * codec.block_bytes
    values = np.random.default_rng(seed).standard_normal(BLOCKS * codec.block)
    self.values = values.astype(np.float32)
    self.servers, self.stores, self.logs, self._parts = [], [], [], []
    self.fetchers: list[fetching.Fetcher] = []
    self._inner: list[InnerNetwork] = []
    for process in range(processes):
      store, server = blobs.BlobStore(), rpc.server(8)
      store.add_to(server)
      store.addresses = [rpc.listen(server, "127.0.0.1:0", rpc.LOOPBACK)]
      log = RecordLog(folder / f"{seed}-{process}")
      log.open()
      mate = Mate("an island")
      inner = InnerNetwork(process, processes, add_services=mate.add_to)
      fetcher = fetching.Fetcher(rpc.LOOPBACK, patience=5)
      mate.part = Part(
        reduce.Exchange(codec, store, fetcher),
        MeanShelf(store, log, codec.block_bytes, [self.length]),
        log,
        [self.length],
        inner,
        lambda store=store: pb.StateReady(state=store.publish(STATE, 1024)),
      )
      self.servers.append(server)
      self.fetchers.append(fetcher)
      self.stores.append(store)
      self.logs.append(log)
      self._parts.append(mate.part)
      if process:
        follow = threading.Thread(
          target=mate.follow, args=[lambda order: ipb.Report()]
        )
        follow.start()
      self._inner.append(inner)
    mates = [inner.address for inner in self._inner[1:]]
    self.crew = Crew(self._parts[0], mates=mates)

  def publish_delta(self) -> pb.Blob:
    """As `Crew.propose_delta`, but there are no devices to freeze."""
    codec, reports = self.codec, []
    for part in self._parts:
      start, stop = part.delta_cut(0)
      first, last = (
        at // codec.block_bytes * codec.block for at in (start, stop)
      )
      pieces = [self.values[first:last]]
      encoded = reduce.encode(codec, pieces, stop - start, part.chunk(0))
      reports.append(part.keep(b"delta", start, encoded, 0))
    return self.crew._serve(b"delta", self.length, reports, 0)

  def mean(self, process: int, attempt: bytes, members: int = 1) -> bytes:
    """What lies on the shelf of a process: as much as so many deltas."""
    length = members * self.length
    return bytes(self.logs[process].open_mean(attempt, length))

  def close(self) -> None:
    self.crew.close()
    for part, inner, server in zip(
      self._parts, self._inner, self.servers, strict=True
    ):
      part.close()
      inner.close()
      server.stop(grace=None)


@pytest.fixture
def islands(tmp_path):
  with contextlib.ExitStack() as stack:
    made: list[Island] = []

    def make(*processes: int) -> list[Island]:
      for count in processes:
        made.append(Island(len(made), count, tmp_path / str(len(made))))
        stack.callback(made[-1].close)
      return made

    yield make


def exchange(made: list[Island]) -> bytes:
  """One attempt of a round among these islands; returns the mean's bytes."""
  attempt = b"a" * 32
  plan = pb.Plan(attempt=attempt)
  for n, island in enumerate(made):
    delta = island.publish_delta()
    plan.members.add(island=str(n), weight=n + 1, clip=1, delta=delta)
  bounds = shares.share_bounds(LENGTH, CODEC.block_bytes, [1] * len(made))
  for n, (start, stop) in enumerate(bounds):
    plan.shares.add(start=start, stop=stop, owner=str(n))
  with concurrent.futures.ThreadPoolExecutor(len(made)) as pool:
    reduced = list(
      pool.map(lambda n: made[n].crew.reduce(plan, n, NEVER), range(len(made)))
    )
    for share, report in zip(plan.shares, reduced, strict=True):
      share.mean.CopyFrom(report.mean)
    action = Gather(attempt, list(plan.shares), [])
    list(pool.map(lambda island: island.crew.gather(action, NEVER), made))
  squares = np.sum([report.squared_norms for report in reduced], axis=0)
  for island, square in zip(made, squares, strict=True):
    assert square == pytest.approx(np.square(island.values).sum(), rel=1e-3)
  square = sum(report.mean_squared_norm for report in reduced)
  means = {
    island.mean(process, attempt)
    for island in made
    for process in range(len(island.stores))
  }
  assert len(means) == 1
  (mean,) = means
  decoded_square = CODEC.squared_norm(np.frombuffer(mean, np.uint8))
  assert square == pytest.approx(decoded_square, rel=1e-12)
  return mean


def test_the_mean_does_not_depend_on_how_many_processes(islands, tmp_path):
  together = exchange(islands(1, 2, 3))
  alone = [Island(seed, 1, tmp_path / f"alone-{seed}") for seed in range(3)]
  assert exchange(alone) == together
  for island in alone:
    island.close()


def test_every_process_sends_and_receives_its_part(islands):
  one, two = islands(1, 2)
  exchange([one, two])
  sent = [store.bytes_sent for store in two.stores]
  assert min(sent) > 0.4 * max(sent)
  assert two.crew.traffic(anew=True)[0] == sum(sent)
  # Half of a delta, and the share of the other island, as from one process;
  # and a manifest more.
  assert LENGTH <= one.crew.traffic()[2] < 1.1 * LENGTH


def test_the_links_of_all_hosts_add_up(islands):
  one, two = islands(1, 2)
  for store in [*one.stores, *two.stores]:
    store.rate = Rate(cap_mbit=8)
  two.crew.traffic(anew=True)
  assert one.crew.rates() == (1e6, 0)  # nothing is known of the way down
  assert two.crew.rates() == (2e6, 0)


def test_a_state_comes_in_parts_and_all_have_it(islands):
  giver, taker = islands(2, 3)
  offer = giver.crew.offer().state
  assert len(offer.parts) == 2  # each host serves all of it
  name = taker.crew.fetch(offer, NEVER)
  for part in taker._parts:
    np.testing.assert_array_equal(part.take(name), STATE)
  sent = sum(store.bytes_sent for store in giver.stores)
  assert sent < 1.05 * len(STATE)


def test_what_one_process_cannot_have_the_island_has_not(islands):
  one, two = islands(1, 2)
  one.publish_delta()
  lost = pb.Share(start=0, stop=BLOCKS, owner="x")
  lost.mean.CopyFrom(pb.Blob(id=b"n" * 32, length=LENGTH))
  with pytest.raises(reduce.MemberError, match="x: no address"):
    two.crew.gather(Gather(b"b" * 32, [lost], []), NEVER)
  for part in two._parts:
    with pytest.raises(fetching.Cancelled):
      part.take(bytes(8))  # nothing was left lying about


@pytest.mark.parametrize("silent", [0, 1])
def test_a_process_that_does_not_deliver_is_no_other_islands_fault(
  islands, silent
):
  """The coordinator plans without this island; nobody else can be left out."""
  giver, two = islands(1, 2)
  offer = giver.crew.offer().state
  for inner in two._inner:
    inner.fetcher.patience = 0.1
  two._inner[silent].share = lambda data, chunk: _far()
  share = pb.Share(stop=BLOCKS, owner="x", mean=giver.publish_delta())
  gather = Gather(b"b" * 32, [share], [])
  with pytest.raises((reduce.MemberError, OSError)) as raised:
    two.crew.gather(gather, NEVER)
  assert getattr(raised.value, "island", "an island") == "an island"
  with pytest.raises(fetching.FetchError):
    two.crew.fetch(offer, NEVER)


def test_what_was_dropped_before_it_came_does_not_stay(islands):
  giver, two = islands(1, 2)
  part, inner, cancelled = two._parts[1], two._inner[1], threading.Event()
  name, share = b"name", inner.share

  def late(data: np.ndarray, chunk: int) -> pb.Blob:
    cancelled.set()
    part.do(ipb.Task(drop=name), NEVER)
    return share(data, chunk)

  inner.share = late
  fetch = ipb.FetchPart(id=name, state=giver.crew.offer().state)
  with pytest.raises(fetching.Cancelled):
    part.do(ipb.Task(fetch=fetch), cancelled)
  assert not part._coming and not inner._store._blobs


def test_a_fetch_that_was_cancelled_writes_nothing_into_the_next(islands):
  giver, two = islands(1, 2)
  part, fetcher = two._parts[1], two.fetchers[1]
  other = 255 - STATE
  old, new = (giver.stores[0].publish(x, 1024) for x in (STATE, other))
  waits, go_on, next_began = (threading.Event() for _ in range(3))
  real = fetcher.fetch

  def slow(addresses, blob_id, *arguments):
    if blob_id == new.id:
      next_began.set()
    for chunk in real(addresses, blob_id, *arguments):
      if blob_id == old.id and not waits.is_set():
        waits.set()
        go_on.wait(30)
      yield chunk

  fetcher.fetch = slow
  cancelled = threading.Event()
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first, second = (
      ipb.Task(fetch=ipb.FetchPart(id=name, state=state))
      for name, state in ((b"1", old), (b"2", new))
    )
    before = pool.submit(part.do, first, cancelled)
    assert waits.wait(30)
    cancelled.set()
    after = pool.submit(part.do, second, NEVER)
    if next_began.wait(0.2):  # it must not, but if it does it is soon there
      concurrent.futures.wait([after], 5)
    go_on.set()
    with pytest.raises((fetching.Cancelled, fetching.FetchError)):
      before.result(30)
    after.result(30)
  start, stop = part._coming[b"2"].cuts[1]
  np.testing.assert_array_equal(part.take(b"2")[start:stop], other[start:stop])


@pytest.mark.parametrize("torn", [False, True])
def test_what_was_gathered_before_all_were_killed_needs_nobody(tmp_path, torn):
  """It may be committed, and nobody else may have it."""
  attempt = b"a" * 32
  before = Island(0, 2, tmp_path)
  mean = exchange([before])
  before.close()
  after = Island(0, 2, tmp_path)
  if torn:
    after.logs[1].open_mean(attempt, LENGTH)[-1] ^= 1
  share = pb.Share(start=0, stop=BLOCKS, owner="x")
  whole = blobs.Manifest.of(np.frombuffer(mean, np.uint8), CHUNK)
  share.mean.CopyFrom(pb.Blob(id=whole.id, length=LENGTH))
  gather = Gather(attempt, [share], [])
  with contextlib.closing(after):
    if torn:
      with pytest.raises(reduce.MemberError, match="x: no address"):
        after.crew.gather(gather, NEVER)
      return
    after.crew.gather(gather, NEVER)
    assert {after.mean(process, attempt) for process in (0, 1)} == {mean}
    assert after.stores[1].manifest(whole.id) is not None


def test_cancelling_ends_the_work_of_all(islands):
  _, two = islands(1, 2)
  cancelled = threading.Event()
  cancelled.set()
  with pytest.raises(fetching.Cancelled):
    two.crew.do(ipb.Task(fetch=ipb.FetchPart(id=b"x", state=_far())), cancelled)


def _far() -> pb.Blob:
  """A blob that nobody serves."""
  blob = pb.Blob(id=b"f" * 32, length=1024)
  blob.parts.add(start=0, stop=1024, addresses=[rpc.unused_address()])
  return blob
