"""A peer that goes silent behind a proxy that acknowledges TCP: who notices."""

from collections.abc import Iterator
import contextlib
import queue
import threading
import time

import grpc
import numpy as np
import pytest

from benchmarks.fault_proxy import FaultProxy
from intellect_jax.elastic import blobs, fetching, rpc

_METHOD = "/test/Attend"
_BAR = 3.0  # seconds


class Ends:
  """Both ends of one quiet stream, and when each heard that it broke."""

  def __init__(self, credentials: rpc.Credentials):
    self.broken: queue.Queue[tuple[str, float]] = queue.Queue()
    self._greeted = threading.Event()
    self._said: queue.Queue = queue.Queue()
    self._server = rpc.server(threads=2, credentials=credentials)
    handler = grpc.stream_stream_rpc_method_handler(self._attend)
    self._server.add_generic_rpc_handlers(
      (grpc.method_handlers_generic_handler("test", {"Attend": handler}),)
    )
    address = rpc.listen(self._server, "127.0.0.1:0", credentials)
    self.proxy = FaultProxy(address)
    self._channel = rpc.channel(self.proxy.address, credentials)
    self._said.put(b"hello")
    heard = self._channel.stream_stream(_METHOD)(iter(self._said.get, None))
    assert next(heard) == b"hello"
    threading.Thread(target=self._hear, args=(heard,), daemon=True).start()

  def _hear(self, heard) -> None:
    with contextlib.suppress(grpc.RpcError):
      list(heard)
    self.broken.put(("client", time.monotonic()))

  def _attend(self, requests, context) -> Iterator[bytes]:
    yield next(requests)
    with contextlib.suppress(grpc.RpcError, StopIteration):
      next(requests)
    self.broken.put(("server", time.monotonic()))

  def close(self) -> None:
    self._said.put(None)
    self._channel.close()
    self._server.stop(grace=None)
    self.proxy.close()


@pytest.mark.parametrize("dead", ["up", "down", "both"])
def test_both_sides_notice_within_the_bar(dead):
  """One direction that is dead is as bad as two: no ping comes back."""
  with contextlib.closing(Ends(rpc.LOOPBACK.for_lease(3))) as ends:
    cut = time.monotonic()
    if dead != "down":
      ends.proxy.up.hold()
    if dead != "up":
      ends.proxy.down.hold()
    noticed = dict(ends.broken.get(timeout=10) for _ in range(2))
    assert noticed.keys() == {"client", "server"}
    assert max(noticed.values()) - cut < _BAR


def test_a_patient_side_keeps_a_connection_that_was_only_slow():
  patient = rpc.LOOPBACK.for_lease(30)
  with contextlib.closing(Ends(patient)) as ends:
    ends.proxy.partition()
    with pytest.raises(queue.Empty):
      ends.broken.get(timeout=_BAR)


def test_a_fetch_goes_on_elsewhere_within_the_bar():
  """However patient it is: the connection is found dead."""
  credentials = rpc.LOOPBACK.for_lease(3)
  with contextlib.ExitStack() as stack:
    stores = [blobs.BlobStore(upload_mbit=400), blobs.BlobStore()]
    ways = []
    for store in stores:
      blob = store.publish(np.zeros(20 << 20, np.uint8), 1 << 20)
      server = rpc.server(threads=2, credentials=credentials)
      stack.callback(server.stop, grace=None)
      store.add_to(server)
      ways.append(rpc.listen(server, "127.0.0.1:0", credentials))
    proxy = stack.enter_context(FaultProxy(ways[0]))
    fetcher = fetching.Fetcher(credentials, patience=60)
    stack.enter_context(contextlib.closing(fetcher))
    chunks = fetcher.fetch(
      [proxy.address, ways[1]], blob.id, 0, blob.length, threading.Event()
    )
    next(chunks)
    proxy.partition()
    cut = time.monotonic()
    list(chunks)
    assert time.monotonic() - cut < _BAR
    assert stores[1].bytes_sent > 0
