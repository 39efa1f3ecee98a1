"""Blobs through a relay, over real gRPC on loopback: as good as direct."""

import concurrent.futures
import contextlib
import threading
import time

import numpy as np
import pytest

from intellect_jax.elastic import blobs, fetching, reach, relay, restore, rpc

CHUNK = 64 << 10
LENGTH = 100 * CHUNK + 100
PATIENCE = 5.0


def some_bytes(seed: int = 0, length: int = LENGTH) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, length, np.uint8)


@pytest.fixture
def hub():
  with contextlib.closing(relay.Relay("127.0.0.1:0")) as hub:
    yield hub


@pytest.fixture
def fetcher():
  with contextlib.closing(fetching.Fetcher(rpc.LOOPBACK, PATIENCE)) as fetcher:
    yield fetcher


@contextlib.contextmanager
def behind(hub: relay.Relay, island: str, store: blobs.BlobStore):
  """The addresses of a store that calls out only."""
  with contextlib.closing(relay.RelayLink(hub.address, island, store)):
    wait_until(lambda: island in hub.islands)
    yield [blobs.relayed(hub.address, island)]


def wait_until(condition) -> None:
  bound = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < bound
    time.sleep(0.01)


def fetch(fetcher, addresses, blob, start=0, stop=None) -> bytes:
  stop = blob.length if stop is None else stop
  never = threading.Event()
  chunks = fetcher.fetch(addresses, blob.id, start, stop, never)
  return b"".join(chunk for _, chunk in chunks)


def test_an_island_goes_over_to_other_relays(hub, fetcher):
  store = blobs.BlobStore()
  with (
    contextlib.closing(relay.Relay("127.0.0.1:0")) as other,
    contextlib.closing(
      reach.Reach(store, "ada", "", "", [hub.address], "", rpc.LOOPBACK)
    ) as ways,
  ):
    assert not ways.use([hub.address])
    assert ways.use([other.address])
    wait_until(lambda: other.islands == ["ada"] and not hub.islands)
    assert store.addresses == [blobs.relayed(other.address, "ada")]
    blob = store.publish(some_bytes(), CHUNK)
    assert fetch(fetcher, store.addresses, blob) == some_bytes().tobytes()


@pytest.mark.parametrize("name", ["a", "an island/with: odd name"])
def test_through_the_relay_is_as_direct(hub, fetcher, name):
  store = blobs.BlobStore()
  data = some_bytes()
  blob = store.publish(data, CHUNK)
  with behind(hub, name, store) as addresses:
    assert fetch(fetcher, addresses, blob) == data.tobytes()
    middle = fetch(fetcher, addresses, blob, CHUNK, 3 * CHUNK)
  assert middle == data[CHUNK : 3 * CHUNK].tobytes()
  assert store.bytes_relayed == store.bytes_sent == LENGTH + 2 * CHUNK
  assert fetcher.bytes_received == hub.bytes_relayed[name]


def test_fetches_of_several_islands_run_at_once(hub, fetcher):
  with contextlib.ExitStack() as stack:
    wanted = []
    for name in ("a", "b"):
      store = blobs.BlobStore()
      addresses = stack.enter_context(behind(hub, name, store))
      for seed in range(4):
        data = some_bytes(seed)
        wanted.append((addresses, store.publish(data, CHUNK), data.tobytes()))
    readers = stack.enter_context(concurrent.futures.ThreadPoolExecutor(8))
    got = readers.map(lambda w: fetch(fetcher, w[0], w[1]) == w[2], wanted)
    assert all(got)


def test_a_slow_reader_holds_the_island_back_and_nobody_else(hub, fetcher):
  """What waits is bounded by windows, not by the length of the blob."""
  store = blobs.BlobStore()
  large = store.publish(some_bytes(length=64 << 20), 1 << 20)
  small = store.publish(some_bytes(), CHUNK)
  with behind(hub, "a", store) as addresses:
    slow = fetcher.fetch(
      addresses, large.id, 0, large.length, threading.Event()
    )
    next(slow)
    sent = -1
    while sent != store.bytes_sent:  # until it stands still
      sent = store.bytes_sent
      time.sleep(0.3)
    assert sent < 32 << 20
    assert fetch(fetcher, addresses, small) == some_bytes().tobytes()
    assert sum(len(chunk) for _, chunk in slow) == large.length - (1 << 20)


def test_a_reader_that_leaves_frees_what_it_took(hub, fetcher):
  store = blobs.BlobStore()
  blob = store.publish(some_bytes(length=64 << 20), 1 << 20)
  with behind(hub, "a", store) as addresses:
    for _ in range(20):  # more than an island answers at once
      stream = fetcher.fetch(
        addresses, blob.id, 0, blob.length, threading.Event()
      )
      next(stream)
      stream.close()
    wait_until(lambda: not hub._pipes)
    assert len(fetch(fetcher, addresses, blob, stop=1 << 20)) == 1 << 20


def test_a_wrong_chunk_is_found_by_the_reader(hub):
  store = blobs.BlobStore()
  data = some_bytes()
  blob = store.publish(data, CHUNK)
  data[5 * CHUNK] ^= 1
  with (
    behind(hub, "a", store) as addresses,
    contextlib.closing(fetching.Fetcher(rpc.LOOPBACK, 0.3)) as fetcher,
    pytest.raises(fetching.FetchError, match="wrong hash"),
  ):
    fetch(fetcher, addresses, blob)


def test_who_keeps_no_stream_open_is_named(hub):
  with (
    contextlib.closing(fetching.Fetcher(rpc.LOOPBACK, 0.1)) as fetcher,
    pytest.raises(fetching.FetchError, match="ghost keeps no stream open"),
  ):
    blob = blobs.BlobStore().publish(some_bytes(), CHUNK)
    fetch(fetcher, [blobs.relayed(hub.address, "ghost")], blob)


def test_a_fetch_outlives_the_relay(fetcher):
  """The relay dies in the middle and comes back at its address."""
  store = blobs.BlobStore(upload_mbit=100)  # half a second in all
  blob = store.publish(some_bytes(), CHUNK)
  first = relay.Relay("127.0.0.1:0")
  with behind(first, "a", store) as addresses:
    chunks = fetcher.fetch(addresses, blob.id, 0, LENGTH, threading.Event())
    got = [next(chunks) for _ in range(3)]
    first.close()
    with contextlib.closing(relay.Relay(first.address)):
      got.extend(chunks)
  assert [offset for offset, _ in got] == list(range(0, LENGTH, CHUNK))
  assert b"".join(chunk for _, chunk in got) == some_bytes().tobytes()


def test_a_direct_way_is_preferred_and_the_relay_the_second(hub, fetcher):
  store = blobs.BlobStore()
  blob = store.publish(some_bytes(), CHUNK)
  server = rpc.server(threads=2)
  store.add_to(server)
  direct = rpc.listen(server, "127.0.0.1:0", rpc.LOOPBACK)
  with behind(hub, "a", store) as through:
    fetch(fetcher, [direct, *through], blob)
    assert store.bytes_relayed == 0
    server.stop(grace=None).wait()
    assert fetch(fetcher, [direct, *through], blob) == some_bytes().tobytes()
    assert store.bytes_relayed == LENGTH


def test_a_direct_way_to_anyone_comes_before_a_relay(hub, fetcher):
  hidden, open_ = blobs.BlobStore(), blobs.BlobStore()
  blob = hidden.publish(some_bytes(), CHUNK)
  open_.publish(some_bytes(), CHUNK)
  server = rpc.server(threads=2)
  open_.add_to(server)
  direct = rpc.listen(server, "127.0.0.1:0", rpc.LOOPBACK)
  with behind(hub, "a", hidden) as through:
    fetch(fetcher, [*through, direct], blob)
  server.stop(grace=None).wait()
  assert (hidden.bytes_sent, open_.bytes_sent) == (0, LENGTH)


def test_a_newcomer_does_not_read_one_donor_in_two_ways(hub, fetcher):
  """Its relay is not another donor, as long as the direct way is open."""
  store, data = blobs.BlobStore(), some_bytes(length=40 << 20)
  blob = store.publish(data, 1 << 20)
  server = rpc.server(threads=4)
  store.add_to(server)
  direct = rpc.listen(server, "127.0.0.1:0", rpc.LOOPBACK)
  with behind(hub, "a", store) as through:
    for way, relayed in (direct, 0), ("127.0.0.1:1", len(data)):
      fetched = restore.StateFetch(fetcher, len(data)).fetch(
        blob.id, [way, *through], threading.Event()
      )
      np.testing.assert_array_equal(fetched, data)
      assert store.bytes_relayed == relayed
  server.stop(grace=None).wait()


def test_an_island_that_returns_takes_its_place_again(hub, fetcher):
  """Its old stream may not have been found dead yet."""
  old, new = blobs.BlobStore(), blobs.BlobStore()
  blob = new.publish(some_bytes(), CHUNK)
  with behind(hub, "a", old), behind(hub, "a", new) as addresses:
    wait_until(lambda: len(hub._attending["a"]) == 2)
    assert fetch(fetcher, addresses, blob) == some_bytes().tobytes()
