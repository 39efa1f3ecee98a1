"""Blobs over real gRPC on loopback: right bytes, or a named failure."""

from collections.abc import Iterator
import concurrent.futures
import contextlib
import socket
import threading
import time
from typing import TypeVar

import numpy as np
import pytest

from intellect_jax.elastic import blobs, fetching, rates, rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb

CHUNK = 1024
LENGTH = 40 * CHUNK + 100
PATIENCE = 0.5

Store = TypeVar("Store", bound=blobs.BlobStore)


def some_bytes(seed: int = 0, length: int = LENGTH) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, length, np.uint8)


@contextlib.contextmanager
def served(store: Store, threads: int = 4) -> Iterator[Store]:
  server = rpc.server(threads)
  store.add_to(server)
  store.addresses = [rpc.listen(server, "127.0.0.1:0", rpc.LOOPBACK)]
  try:
    yield store
  finally:
    server.stop(grace=None)


@pytest.fixture
def store():
  with served(blobs.BlobStore()) as store:
    yield store


@pytest.fixture
def fetcher():
  fetcher = fetching.Fetcher(rpc.LOOPBACK, PATIENCE)
  yield fetcher
  fetcher.close()


def unused_address() -> str:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{probe.getsockname()[1]}"


def fetched(fetcher, addresses, blob_id, start=0, stop=LENGTH, cancelled=None):
  cancelled = cancelled or threading.Event()
  return list(fetcher.fetch(addresses, blob_id, start, stop, cancelled))


class Slow(blobs.BlobStore):
  """Serves `good` frames, and then nothing until it is let go."""

  def __init__(self, good: int):
    super().__init__()
    self.good = good
    self.go_on = threading.Event()
    self.asked_from: list[int] = []

  def serve(self, request, context):
    self.asked_from.append(request.start)
    for index, frame in enumerate(super().serve(request, context)):
      if index == self.good:
        self.go_on.wait(30)
        return
      yield frame


class Listed(blobs.BlobStore):
  """Notes from which connections it was asked.

  A fetch on several begins when all `connections` have come.
  """

  def __init__(self, connections: int):
    super().__init__()
    self.callers: set[str] = set()
    self._all = threading.Barrier(connections)

  def serve(self, request, context):
    self.callers.add(context.peer())
    if request.fetch:
      self._all.wait(30)
    yield from super().serve(request, context)


# --------------------------------------------------------------- manifests


@pytest.mark.parametrize("blocks", [1, 15, 16, 17, 5000, 20_000, 10_000_000])
def test_chunks_are_whole_blocks_many_and_not_too_large(blocks):
  chunk = blobs.chunk_bytes(blocks * 260, 260)
  count = -(-blocks * 260 // chunk)
  assert chunk % 260 == 0
  assert 0 < chunk <= 1 << 20
  assert count >= min(blocks, 16 if chunk <= 1 << 16 else 64)
  assert chunk > (1 << 16) - 260 or count < 32  # not many small ones


def test_the_id_is_of_every_byte_and_of_the_chunking():
  data = some_bytes()
  flipped = data.copy()
  flipped[-1] ^= 1
  ids = [
    blobs.Manifest.of(data, CHUNK).id,
    blobs.Manifest.of(flipped, CHUNK).id,
    blobs.Manifest.of(data[:-1], CHUNK).id,
    blobs.Manifest.of(data, 2 * CHUNK).id,
  ]
  assert len(set(ids)) == 4
  assert ids[0] == blobs.Manifest.of(data.copy(), CHUNK).id


def test_a_manifest_that_does_not_add_up_is_refused():
  """Its sender chose the id, so the id alone proves nothing."""
  good = blobs.Manifest.of(some_bytes(), CHUNK)
  assert blobs.Manifest.unpack(good.pack(), good.id) == good
  for bad in (
    blobs.Manifest(LENGTH, 0, good.hashes),
    blobs.Manifest(LENGTH, CHUNK, good.hashes[:-32]),
    blobs.Manifest(1 << 50, CHUNK, good.hashes),
  ):
    with pytest.raises(ValueError, match="manifest"):
      blobs.Manifest.unpack(bad.pack(), bad.id)
  with pytest.raises(ValueError, match="manifest"):
    blobs.Manifest.unpack(good.pack()[:-1], good.id)


# ------------------------------------------------------------------- fetch


@pytest.mark.parametrize(
  ("start", "stop"),
  [(0, LENGTH), (0, 0), (3 * CHUNK, 9 * CHUNK), (5, 6), (LENGTH - 1, LENGTH)],
)
def test_any_range_comes_in_whole_verified_chunks(store, fetcher, start, stop):
  data = some_bytes()
  blob = store.publish(data, CHUNK)
  chunks = fetched(fetcher, store.addresses, blob.id, start, stop)
  place = start - start % CHUNK
  for offset, chunk in chunks:
    assert offset == place
    np.testing.assert_array_equal(
      np.frombuffer(chunk, np.uint8), data[offset : offset + len(chunk)]
    )
    place += len(chunk)
  assert place >= stop
  assert len(chunks) == -(-stop // CHUNK) - start // CHUNK


def test_wrong_bytes_are_refused(store, fetcher):
  data = some_bytes()
  manifest = blobs.Manifest.of(data, CHUNK)
  corrupted = data.copy()
  corrupted[7 * CHUNK] ^= 1
  store.publish_hashed(manifest, corrupted)
  good = []
  with pytest.raises(
    fetching.FetchError, match=f"byte {7 * CHUNK} has a wrong"
  ):
    for offset, _ in fetcher.fetch(
      store.addresses, manifest.id, 0, LENGTH, threading.Event()
    ):
      good.append(offset)
  assert good == [index * CHUNK for index in range(7)]


def test_wrong_bytes_from_one_are_fetched_from_another(store, fetcher):
  data = some_bytes()
  manifest = blobs.Manifest.of(data, CHUNK)
  corrupted = data.copy()
  corrupted[7 * CHUNK] ^= 1
  store.publish_hashed(manifest, corrupted)
  with served(blobs.BlobStore()) as honest:
    honest.publish(data, CHUNK)
    chunks = fetched(fetcher, store.addresses + honest.addresses, manifest.id)
  assert b"".join(chunk for _, chunk in chunks) == data.tobytes()


@pytest.mark.parametrize("stop", [LENGTH + 1, 1 << 40])
def test_a_blob_that_is_too_short_is_refused(store, fetcher, stop):
  blob = store.publish(some_bytes(), CHUNK)
  with pytest.raises(fetching.FetchError, match=f"has {LENGTH} bytes"):
    fetched(fetcher, store.addresses, blob.id, 0, stop)


def test_an_unknown_blob_names_peer_and_reason(store, fetcher):
  blob = store.publish(some_bytes(), CHUNK)
  store.withdraw(blob.id)
  with pytest.raises(fetching.FetchError, match="NOT_FOUND") as caught:
    fetched(fetcher, store.addresses, blob.id)
  assert caught.value.peer == store.addresses[0]


def test_a_part_serves_what_it_has_and_no_more(store, fetcher):
  data = some_bytes()
  manifest = blobs.Manifest.of(data, CHUNK)
  start, stop = 2 * CHUNK, 5 * CHUNK
  blob = store.publish_hashed(manifest, data[start:stop], start)
  assert (blob.parts[0].start, blob.parts[0].stop) == (start, stop)
  chunks = fetched(fetcher, store.addresses, blob.id, start, stop)
  assert b"".join(frame for _, frame in chunks) == data[start:stop].tobytes()
  with pytest.raises(fetching.FetchError, match="no such blob here"):
    fetched(fetcher, store.addresses, blob.id, start - CHUNK, stop)
  store.publish_hashed(manifest, data)
  whole = fetched(fetcher, store.addresses, blob.id)
  assert b"".join(frame for _, frame in whole) == data.tobytes()


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_of_whole_chunks_make_up_a_blob(parts):
  cuts = blobs.cuts(LENGTH, CHUNK, parts)
  assert [start for start, _ in cuts] == [0, *(stop for _, stop in cuts[:-1])]
  assert cuts[-1][1] == LENGTH
  assert not any(stop % CHUNK for _, stop in cuts[:-1])


def test_sources_change_where_a_part_ends():
  blob = pb.Blob(length=100)
  for start, stop, name in [(0, 60, "a"), (60, 100, "b"), (0, 100, "c")]:
    blob.parts.add(start=start, stop=stop, addresses=[name])
  assert blobs.sources(blob, 10, 70) == [
    (10, 60, ["a", "c"]),
    (60, 70, ["b", "c"]),
  ]
  assert blobs.sources(pb.Blob(length=100), 0, 100) == [(0, 100, [])]


def test_a_blob_that_nobody_serves_is_an_error_at_once(fetcher):
  with pytest.raises(fetching.FetchError, match="no address"):
    fetched(fetcher, [], b"id", 0, 1)


def test_a_dead_address_falls_over_to_the_next(store, fetcher):
  data = some_bytes()
  blob = store.publish(data, CHUNK)
  chunks = fetched(fetcher, [unused_address(), *store.addresses], blob.id)
  assert b"".join(chunk for _, chunk in chunks) == data.tobytes()


def test_it_resumes_where_a_source_stopped(fetcher):
  """The second holder is asked for the rest alone, though the first hangs."""
  data = some_bytes()
  slow, rest = Slow(good=1 + 10), Slow(good=1 << 30)
  with served(slow), served(rest):
    blob = slow.publish(data, CHUNK)
    rest.publish(data, CHUNK)
    chunks = fetched(fetcher, slow.addresses + rest.addresses, blob.id)
    slow.go_on.set()
  assert b"".join(chunk for _, chunk in chunks) == data.tobytes()
  assert rest.asked_from == [10 * CHUNK]


@pytest.fixture
def far(monkeypatch):
  """Whoever has been asked once is far, and on a fast link."""
  monkeypatch.setattr(rates.Rate, "bytes_a_second", 1e9)
  monkeypatch.setattr(fetching, "_ON_THE_WAY", 1)


@pytest.mark.parametrize(
  ("start", "stop"), [(0, LENGTH), (3 * CHUNK, 9 * CHUNK), (5, 6), (0, 0)]
)
def test_a_far_peer_is_read_on_several_connections(far, fetcher, start, stop):
  data = some_bytes()
  with served(Listed(8), threads=16) as store:
    blob = store.publish(data, CHUNK)
    near = fetched(fetcher, store.addresses, blob.id, start, stop)
    assert len(store.callers) == 1
    assert fetched(fetcher, store.addresses, blob.id, start, stop) == near
    assert len(store.callers) == 8


def test_connections_are_divided_among_far_peers(far, fetcher):
  with served(Listed(4), 16) as one, served(Listed(4), 16) as other:
    for store in (one, other):
      store.publish(some_bytes(), CHUNK)
    blob = blobs.Manifest.of(some_bytes(), CHUNK).id
    for _ in range(2):
      fetched(fetcher, one.addresses, blob)
      fetched(fetcher, other.addresses, blob)
    assert len(one.callers) == len(other.callers) == 4


def test_what_grows_is_read_on_several_connections_once_alone(far, fetcher):
  data, alone = some_bytes(), threading.Event()
  with served(Listed(8), threads=16) as store:
    blob = store.publish(data, CHUNK)
    fetched(fetcher, store.addresses, blob.id)
    growing = store.grow(b"name", data, CHUNK)
    frames = fetcher.follow(
      *(store.addresses[0], b"name", 3 * CHUNK, LENGTH, CHUNK),
      threading.Event(),
      alone,
    )
    growing.reach(20 * CHUNK)
    first = [next(frames) for _ in range(3, 20)]
    assert len(store.callers) == 2  # the first fetch was on another
    alone.set()
    growing.reach(LENGTH)
    assert b"".join([*first, *frames]) == data[3 * CHUNK :].tobytes()
    assert len(store.callers) == 9


class Jammed(Listed):
  """One connection brings a frame, and then waits; the others go on."""

  def __init__(self):
    super().__init__(8)
    self.go_on = threading.Event()
    self._jam = threading.Lock()

  def serve(self, request, context):
    jammed = bool(request.fetch) and self._jam.acquire(blocking=False)
    for frame in super().serve(request, context):
      yield frame
      if jammed:
        self.go_on.wait(30)


def test_a_connection_that_is_slow_is_not_waited_for(far, fetcher):
  data = some_bytes()
  with served(Jammed(), threads=16) as store:
    blob = store.publish(data, CHUNK)
    fetched(fetcher, store.addresses, blob.id)
    chunks = fetched(fetcher, store.addresses, blob.id)
    assert not store.go_on.is_set()
    store.go_on.set()
  assert b"".join(chunk for _, chunk in chunks) == data.tobytes()


def test_a_far_peer_that_fails_is_replaced_where_it_failed(far, fetcher):
  data = some_bytes()
  with served(blobs.BlobStore(), 16) as bad, served(blobs.BlobStore()) as good:
    blob = good.publish(data, CHUNK)
    corrupted = data.copy()
    corrupted[7 * CHUNK] ^= 1
    bad.publish_hashed(blobs.Manifest.of(data, CHUNK), corrupted)
    fetched(fetcher, bad.addresses, blob.id, 0, CHUNK)
    chunks = fetched(fetcher, bad.addresses + good.addresses, blob.id)
  assert b"".join(chunk for _, chunk in chunks) == data.tobytes()
  assert bad.bytes_sent > 7 * CHUNK


def test_a_peer_that_stops_sending_is_given_up_within_patience(fetcher):
  with served(Slow(good=3)) as slow:
    blob = slow.publish(some_bytes(), CHUNK)
    start = time.monotonic()
    with pytest.raises(fetching.FetchError, match="nothing came for"):
      fetched(fetcher, slow.addresses, blob.id)
    waited = time.monotonic() - start
    slow.go_on.set()
  assert PATIENCE <= waited < 4 * PATIENCE


def test_cancelling_ends_a_fetch_that_waits():
  patient = fetching.Fetcher(rpc.LOOPBACK, patience=60.0)
  cancelled = threading.Event()
  with served(Slow(good=3)) as slow:
    blob = slow.publish(some_bytes(), CHUNK)
    chunks = patient.fetch(slow.addresses, blob.id, 0, LENGTH, cancelled)
    next(chunks)
    cancelled.set()
    start = time.monotonic()
    with pytest.raises(fetching.Cancelled):
      list(chunks)
    assert time.monotonic() - start < 2.0
    slow.go_on.set()
  patient.close()


def test_bytes_are_counted_on_both_sides(store, fetcher):
  blob = store.publish(some_bytes(), CHUNK)
  fetched(fetcher, store.addresses, blob.id)
  manifest = blobs.Manifest.of(some_bytes(), CHUNK)
  assert store.bytes_sent == LENGTH
  assert fetcher.bytes_received == LENGTH + len(manifest.pack())


def seconds_to_fetch(store, fetcher, blob_id) -> float:
  started = time.monotonic()
  fetched(fetcher, store.addresses, blob_id, stop=1_000_000)
  return time.monotonic() - started


@pytest.mark.parametrize("capped", ["upload", "download"])
def test_a_cap_stretches_a_transfer_in_proportion(capped):
  """1 MB takes 0.4 s at 20 Mbit/s, and twice that at half the rate."""
  taken = []
  for mbit in (20.0, 10.0):
    upload, download = (mbit, 0.0) if capped == "upload" else (0.0, mbit)
    with (
      served(blobs.BlobStore(upload)) as store,
      contextlib.closing(
        fetching.Fetcher(rpc.LOOPBACK, 5, download)
      ) as fetcher,
    ):
      blob = store.publish(some_bytes(length=1_000_000), 16 * CHUNK)
      # The shortest: other work on this machine can only stretch it.
      times = [seconds_to_fetch(store, fetcher, blob.id) for _ in range(3)]
      taken.append(min(times))
  assert 0.4 * 0.8 < taken[0] < 0.4 * 1.5
  assert 1.6 < taken[1] / taken[0] < 2.4


def test_all_readers_share_one_cap():
  with (
    served(blobs.BlobStore(upload_mbit=20)) as store,
    contextlib.closing(fetching.Fetcher(rpc.LOOPBACK, 5)) as fetcher,
    concurrent.futures.ThreadPoolExecutor(2) as readers,
  ):
    blob = store.publish(some_bytes(length=1_000_000), 16 * CHUNK)
    both = [
      readers.submit(seconds_to_fetch, store, fetcher, blob.id)
      for _ in range(2)
    ]
    assert max(reader.result() for reader in both) > 0.8 * 0.8
