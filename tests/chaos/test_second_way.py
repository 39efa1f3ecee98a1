"""A pair that cannot reach each other goes through the relay."""

import contextlib
import threading
import time

import numpy as np

from benchmarks.fault_proxy import FaultProxy
from intellect_jax.elastic import blobs, fetching, rpc
from intellect_jax.elastic.reach import Reach
from intellect_jax.elastic.relay import Relay

PATIENCE = 1.5  # seconds


def test_a_silent_way_is_waited_for_once_and_then_avoided():
  store = blobs.BlobStore()
  blob = store.publish(np.arange(1 << 16, dtype=np.uint8), 1 << 12)
  with contextlib.ExitStack() as stack:
    relay = stack.enter_context(contextlib.closing(Relay("127.0.0.1:0")))
    reach = Reach(
      store, "ada", "127.0.0.1:0", "", [relay.address], "", rpc.LOOPBACK
    )
    stack.enter_context(contextlib.closing(reach))
    direct, through = store.addresses
    proxy = stack.enter_context(FaultProxy(direct))
    fetcher = stack.enter_context(
      contextlib.closing(fetching.Fetcher(rpc.LOOPBACK, PATIENCE))
    )

    def fetch() -> float:
      """Seconds that it took."""
      started = time.monotonic()
      ways = [proxy.address, through]
      list(fetcher.fetch(ways, blob.id, 0, blob.length, threading.Event()))
      return time.monotonic() - started

    fetch()
    assert store.bytes_relayed == 0
    proxy.partition()
    assert fetch() >= 0.5 * PATIENCE
    assert store.bytes_relayed == blob.length
    assert fetch() < 0.5 * PATIENCE
    assert store.bytes_relayed == 2 * blob.length
