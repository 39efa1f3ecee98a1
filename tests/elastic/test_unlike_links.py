"""A round over real servers with capped links: what shares by capacity bring."""

import concurrent.futures
import contextlib
import threading
import time

import numpy as np
import pytest

from intellect_jax.elastic import blobs, fetching, reduce, rpc
from intellect_jax.elastic.actions import Gather
from intellect_jax.elastic.ahead import Ahead
from intellect_jax.elastic.balance import Balance, Link, seconds
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.rates import Rate
from intellect_jax.elastic.round import CoordinatorRound
from intellect_jax.outer.codec import make_codec

CODEC = make_codec("int8")
BLOCKS = 4096
LENGTH = BLOCKS * CODEC.block_bytes  # 1 MB: low caps, so that no CPU counts
CHUNK = blobs.chunk_bytes(LENGTH, CODEC.block_bytes)
SECOND = 16e-6 * LENGTH  # Mbit/s that carry two deltas a second
GAIN = 0.1
NEVER = threading.Event()


class Swarm:
  """Islands with capped links, which make rounds of one delta each.

  What a link carries they have to find out: they are not told the caps.
  """

  def __init__(self, up_mbit: list[float], down_mbit: list[float]):
    self.names = [f"island-{i}" for i in range(len(up_mbit))]
    self.round = CoordinatorRound(CODEC)
    self.exchanges, self.servers = [], []
    self.ahead: dict[int, Ahead] = {}
    for i, (name, up, down) in enumerate(
      zip(self.names, up_mbit, down_mbit, strict=True)
    ):
      store = blobs.BlobStore(up)
      fetcher = fetching.Fetcher(rpc.LOOPBACK, 30.0, down)
      store.rate = Rate(window_seconds=0.2)  # a round is short here
      fetcher.rate = Rate(window_seconds=0.2)
      server = rpc.server(threads=4 * len(up_mbit))
      store.add_to(server)
      store.addresses = [rpc.listen(server, "127.0.0.1:0", rpc.LOOPBACK)]
      self.servers.append(server)
      self.exchanges.append(reduce.Exchange(CODEC, store, fetcher))
      values = np.random.default_rng(i).standard_normal(BLOCKS * CODEC.block)
      codes = np.empty(LENGTH, np.uint8)
      CODEC.encode(values.astype(np.float32), codes)
      refusal = self.round.propose(
        name,
        1,
        pb.Proposal(
          windows=[pb.Window(tokens=1)],
          delta=store.publish(codes, CHUNK),
          norm=float(np.sqrt(CODEC.squared_norm(codes))),
        ),
      )
      assert refusal == ""

  def links(self) -> dict[str, Link]:
    """As measured so far."""
    return {
      name: Link(e.store.rate.bytes_a_second, e.fetcher.rate.bytes_a_second, 8)
      for name, e in zip(self.names, self.exchanges, strict=True)
    }

  def exchange(self, weights: list[int]) -> tuple[float, bytes]:
    """Makes a round; returns its seconds, and the mean that all have."""
    self.round.start(1, self.names, term=1, serial=1, weights=weights)
    plan = self.round.plan
    assert plan is not None
    began, n = time.monotonic(), len(self.names)
    with concurrent.futures.ThreadPoolExecutor(n) as pool:
      list(pool.map(lambda i: self._reduce(plan, i), range(n)))
      means = list(pool.map(lambda i: self._gather(plan, i), range(n)))
    took = time.monotonic() - began
    assert self.round.liars() == []
    assert len(set(means)) == 1
    for share, exchange in zip(plan.shares, self.exchanges, strict=True):
      exchange.store.withdraw(share.mean.id)
      exchange.store.rate.round_over()
      exchange.fetcher.rate.round_over()
    return took, means[0]

  def _reduce(self, plan: pb.Plan, i: int) -> None:
    exchange = self.exchanges[i]
    into = np.zeros(LENGTH, np.uint8)
    self.ahead[i] = Ahead(
      exchange.fetcher, plan, i, CODEC.block_bytes, into, NEVER
    )
    share = exchange.reduce_share(plan, i, NEVER)
    mean = exchange.store.publish_hashed(share.manifest(CHUNK), share.codes)
    report = pb.ShareReduced(
      attempt=plan.attempt,
      share=i,
      mean=mean,
      squared_norms=share.squares,
    )
    self.round.share_reduced(self.names[i], report)

  def _gather(self, plan: pb.Plan, i: int) -> bytes:
    ahead = self.ahead.pop(i)
    action = Gather(plan.attempt, list(plan.shares), [])
    with concurrent.futures.ThreadPoolExecutor(len(self.names)) as pool:
      self.exchanges[i].gather(
        action, ahead.data, NEVER, pool.submit, ahead=ahead
      )
    return ahead.data.tobytes()

  def close(self) -> None:
    for server, exchange in zip(self.servers, self.exchanges, strict=True):
      server.stop(grace=None).wait()
      exchange.fetcher.close()


@pytest.fixture
def swarm():
  with contextlib.ExitStack() as stack:

    def make(up_mbit: list[float], down_mbit: list[float]) -> Swarm:
      made = Swarm(up_mbit, down_mbit)
      stack.callback(made.close)
      return made

    yield make


def predicted(weights: list[int], up: list[float], down: list[float]) -> float:
  shares = np.array(weights) / sum(weights)
  return LENGTH * seconds(shares, np.array(up) / 8e-6, np.array(down) / 8e-6)


@pytest.mark.alone
def test_what_links_carry_is_measured_and_makes_rounds_faster(swarm):
  """One of four links at a quarter. The model says 1.5 times as fast.

  Who waits for a slow one does not see all that its own link could carry, so
  that it takes more than one round to find out.
  """
  up = down = [SECOND / 4, SECOND, SECOND, SECOND]
  islands, balance = swarm(up, down), Balance()
  weights = [8] * 4
  took, mean = islands.exchange(weights)
  rounds = [took]

  def learned() -> bool:
    fair = weights[0] < min(weights[1:]) / 2
    return fair and rounds[0] >= 1.4 * rounds[-1]

  while len(rounds) < 24 and not learned():
    weights = balance.weights(islands.links(), GAIN)
    took, again = islands.exchange(weights)
    assert again == mean  # whoever reduces it
    rounds.append(took)
  said = predicted([8] * 4, up, down), predicted(weights, up, down)
  print(
    f"\nequal shares {rounds[0]:.2f} s (predicted {said[0]:.2f} s), by capacity"
    f" {', '.join(f'{took:.2f}' for took in rounds[1:])} s ({said[1]:.2f} s):"
    f" {rounds[0] / rounds[-1]:.2f} times as fast"
  )
  assert learned()


def test_an_owner_of_nothing_takes_part(swarm):
  islands = swarm([0.0] * 3, [0.0] * 3)
  _, mean = islands.exchange([1, 1, 1])
  _, again = islands.exchange([1, 0, 1])
  assert again == mean
