"""A newcomer's fetch: all donors at once, and none of them is needed."""

import threading

import grpc
import numpy as np
import pytest

from intellect_jax.elastic import blobs, fetching, rpc
from intellect_jax.elastic.restore import StateFetch

LENGTH = 40 << 20
CHUNK = 1 << 20


class Donor:
  """A blob server on loopback that may fail after some chunks."""

  def __init__(self, data: np.ndarray, fails_after: float = float("inf")):
    self.store = blobs.BlobStore()
    self.blob = self.store.publish(data, CHUNK)
    self._left = fails_after
    serve = self.store.serve

    def limited(request, context):
      for frame in serve(request, context):
        self._left -= 1
        if self._left < 0:
          context.abort(grpc.StatusCode.UNAVAILABLE, "the donor is gone")
        yield frame

    self.store.serve = limited
    self.server = rpc.server(8)
    self.store.add_to(self.server)
    self.address = rpc.listen(self.server, "127.0.0.1:0", rpc.LOOPBACK)


@pytest.fixture
def data() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, LENGTH, np.uint8)


@pytest.fixture
def fetcher():
  fetcher = fetching.Fetcher(rpc.LOOPBACK, patience=0.5)
  yield fetcher
  fetcher.close()


@pytest.fixture
def donors():
  started: list[Donor] = []

  def start(*arguments) -> Donor:
    started.append(Donor(*arguments))
    return started[-1]

  yield start
  for donor in started:
    donor.server.stop(grace=None)


def test_every_donor_gives_a_part(data, donors, fetcher):
  two = [donors(data), donors(data)]
  fetch = StateFetch(fetcher, LENGTH)
  addresses = [donor.address for donor in two]
  fetched = fetch.fetch(two[0].blob.id, addresses, threading.Event())
  np.testing.assert_array_equal(fetched, data)
  assert all(donor.store.bytes_sent > 0 for donor in two)
  assert sum(donor.store.bytes_sent for donor in two) < 1.2 * LENGTH


def test_a_donor_that_goes_leaves_its_pieces_to_the_others(
  data, donors, fetcher
):
  whole, dying = donors(data), donors(data, 12)
  fetched = StateFetch(fetcher, LENGTH).fetch(
    whole.blob.id, [dying.address, whole.address], threading.Event()
  )
  np.testing.assert_array_equal(fetched, data)


def test_what_has_come_is_not_fetched_again(data, donors, fetcher):
  dying, whole = donors(data, 30), donors(data)
  fetch = StateFetch(fetcher, LENGTH)
  with pytest.raises(fetching.FetchError):
    fetch.fetch(dying.blob.id, [dying.address], threading.Event())
  fetched = fetch.fetch(whole.blob.id, [whole.address], threading.Event())
  np.testing.assert_array_equal(fetched, data)
  assert whole.store.bytes_sent < LENGTH


def test_wrong_bytes_never_become_the_state(data, donors, fetcher):
  other = data.copy()
  other[12345] ^= 1
  wrong = donors(data)
  wrong.store.publish_hashed(blobs.Manifest.of(data, CHUNK), other)
  with pytest.raises(fetching.FetchError, match="wrong hash"):
    StateFetch(fetcher, LENGTH).fetch(
      wrong.blob.id, [wrong.address], threading.Event()
    )


def test_a_state_that_is_too_long_is_refused(data, donors, fetcher):
  """It would end a thread that reads, and its piece would be asked for ever."""
  longer = donors(np.concatenate([data, data]))
  with pytest.raises(fetching.FetchError, match="the blob has"):
    StateFetch(fetcher, LENGTH).fetch(
      longer.blob.id, [longer.address], threading.Event()
    )


def test_a_process_of_an_island_fetches_its_part(data, donors, fetcher):
  donor, part = donors(data), (9 << 20, 23 << 20)
  fetch = StateFetch(fetcher, LENGTH, part)
  fetched = fetch.fetch(donor.blob.id, [donor.address], threading.Event())
  start, stop = part
  np.testing.assert_array_equal(fetched[start:stop], data[start:stop])
  assert donor.store.bytes_sent == stop - start


def test_without_donors_it_says_so(fetcher):
  with pytest.raises(fetching.FetchError, match="no donor"):
    StateFetch(fetcher, LENGTH).fetch(b"x" * 32, [], threading.Event())
