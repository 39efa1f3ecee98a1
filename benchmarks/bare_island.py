"""An island without a model: the real agent, rounds and bytes, random deltas.

  python -m benchmarks.bare_island --coordinator=host:port --workdir=FOLDER \\
      --name=a --values=100000000

Obeys lines of JSON on its standard input and answers with lines on its
standard output, each with a "kind" and with `time.monotonic()` as "at", which
all processes of a machine share. See `loopback.py` for who speaks to it.

  {"do": "step", "fault": "kill", "phase": "reduce"}
      Trains one window of nothing: freezes the delta of fixed random
      parameters, proposes, and applies the record that comes; "done" then, and
      "rested" with the state's hash. The fault, if one is named, comes in that
      phase: "kill" and "stop" are signals that the process sends to itself;
      "wait" makes it say so and go on when it reads {"do": "go"}, so that the
      network can be cut at that very point.
  {"do": "offer"}
      Serves theta and b, and tells their id and addresses.
  {"do": "fetch", "id": …, "addresses": …}
      Fetches them from several islands, and forgets them.
"""

import argparse
from collections.abc import Iterator
import contextlib
import json
import math
import os
import pathlib
import queue
import signal
import sys
import threading
import time
from typing import Any

import numpy as np

from intellect_jax import config as config_lib
from intellect_jax.elastic import blobs, fetching, reduce, rpc
from intellect_jax.elastic.actions import Gather
from intellect_jax.elastic.agent import Agent
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.describe import describe
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.inner import InnerNetwork
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.news import News
from intellect_jax.elastic.part import Part
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.reach import Reach
from intellect_jax.elastic.restore import StateFetch
from intellect_jax.elastic.shelf import MeanShelf
from intellect_jax.elastic.state import OuterState
from intellect_jax.elastic.windows import Windows
from intellect_jax.outer import kernels
from intellect_jax.outer.codec import make_codec

PHASES = ("propose", "reduce", "gather", "prepare")
_PATIENCE = 60.0  # seconds for a coordinator to answer


class Teller:
  """Says what happens, from any thread."""

  def __init__(self):
    self._lock = threading.Lock()

  def __call__(self, kind: str, **figures: Any) -> None:
    line = json.dumps(dict(kind=kind, at=time.monotonic(), **figures))
    with self._lock:
      print(line, flush=True)


class Faults:
  """The fault that this process is to suffer, once, and where."""

  def __init__(self, tell: Teller):
    self._tell = tell
    self._armed: dict[str, str] = {}  # phase -> fault
    self.go_on = threading.Event()

  def arm(self, phase: str, fault: str) -> None:
    self._armed = {phase: fault}

  def at(self, phase: str) -> None:
    """The process is in this phase now."""
    match self._armed.pop(phase, ""):
      case "kill":
        self._tell("fault")
        os.kill(os.getpid(), signal.SIGKILL)
      case "stop":
        self._tell("fault")
        os.kill(os.getpid(), signal.SIGSTOP)
      case "wait":
        self.go_on.clear()
        self._tell("waiting")
        self.go_on.wait()


class Watched(reduce.Exchange):
  """An exchange that tells when it begins and ends, and in which faults come.

  In "reduce" a fault comes when half of a share's bytes were read.
  """

  def __init__(self, *arguments: Any, tell: Teller, faults: Faults):
    super().__init__(*arguments)
    self._tell, self._faults = tell, faults

  def reduce_share(
    self, plan: pb.Plan, index: int, *arguments: Any
  ) -> reduce.Encoded:
    self._tell("reducing", members=len(plan.members))
    done = super().reduce_share(plan, index, *arguments)
    self._tell("reduced")
    return done

  def collect(self, plan: pb.Plan, *arguments: Any) -> reduce.Collected:
    self._tell("reducing", members=len(plan.members))
    done = super().collect(plan, *arguments)
    self._faults.at("reduce")
    self._tell("reduced")
    return done

  def _delta(
    self, member: pb.Member, start: int, stop: int, cancelled: threading.Event
  ):
    for offset, chunk in super()._delta(member, start, stop, cancelled):
      if offset >= (start + stop) // 2:
        self._faults.at("reduce")
      yield offset, chunk

  def gather(
    self, action: Gather, into: np.ndarray, *arguments: Any
  ) -> dict[bytes, blobs.Manifest]:
    self._tell("gathering")
    self._faults.at("gather")
    manifests = super().gather(action, into, *arguments)
    self._tell("gathered")
    self._faults.at("prepare")
    return manifests


class BareIsland:
  """One island's life, on one thread."""

  def __init__(self, options: argparse.Namespace, tell: Teller):
    self._tell = tell
    self.faults = Faults(tell)
    coordinators = [options.coordinator]
    description = describe(coordinators, rpc.LOOPBACK, _PATIENCE)
    self._run = run = config_lib.from_json(description.run_json)
    credentials = rpc.Credentials(options.insecure).for_lease(
      run.elastic.lease_seconds
    )
    self._identity = Identity(pathlib.Path(options.workdir), options.name)
    self._codec = codec = make_codec(run.outer.codec)
    blocks = math.ceil(options.values / codec.block)
    size = blocks * codec.block
    self._outer = OuterState(size)
    self._record = pb.Record()
    # Not those of another island: equal deltas are one blob, and stay at home.
    who = [self._identity.incarnation, *options.name.encode()]
    rng = np.random.default_rng(who)
    # One piece again and again: what is timed does not depend on the values.
    piece = rng.standard_normal(1 << 20, np.float32)
    self._x = np.resize(piece, size)
    self._mean_bytes = blocks * codec.block_bytes
    self._chunk = blobs.chunk_bytes(self._mean_bytes, codec.block_bytes)
    self._windows = Windows(1, 1, run.outer.max_carry)
    self._log = RecordLog(self._identity.workdir / "log")
    self._log.open()
    store = blobs.BlobStore()
    self._store = store
    self._sent = 0  # bytes, before the step
    self._fetcher = fetching.Fetcher(credentials, run.elastic.fetch_patience)
    self._coming = StateFetch(self._fetcher, self._outer.bytes)
    self._reach = Reach(
      store,
      options.name,
      options.listen,
      options.advertise,
      list(description.relays),
      options.coordinator,
      credentials,
    )
    hello = pb.Hello(
      protocol=rpc.PROTOCOL_VERSION,
      run_digest=config_lib.digest(run),
      run_id=self._identity.run_id,
      island=options.name,
      incarnation=self._identity.incarnation,
      process=self._identity.process,
      addresses=store.addresses,
    )
    part = Part(
      Watched(codec, store, self._fetcher, tell=tell, faults=self.faults),
      MeanShelf(store, self._log, codec.block_bytes, [self._mean_bytes]),
      self._log,
      [self._mean_bytes],
      InnerNetwork(),
      self._offer,
    )
    self._news = News()
    self._agent = Agent(
      self._news,
      hello,
      self._identity.term,
      coordinators,
      credentials,
      Crew(part),
      self._log,
      run.elastic.lease_seconds,
      options.threads,
      lambda: [self._record.number],
      self._identity.saw_term,
      self._reach.use,
    )
    self._offered = b""

  def close(self) -> None:
    self._agent.close()
    self._reach.close()
    self._fetcher.close()
    self._identity.close()

  def join(self) -> None:
    """Comes to stand where the others do."""
    agent, news = self._agent, self._news
    self._identity.joins()
    agent.start()
    news.wait(lambda: news.welcome is not None, "a welcome")
    assert news.welcome is not None
    if news.welcome.start == pb.Welcome.START_INITIALISE:
      agent.initialised(self._offer())
      news.wait(lambda: len(news.adopted) > 0, "record 0")
    else:
      news.wait(lambda: len(news.restores) > 0, "a state")
    self._hear_news()
    while self._record.number < news.welcome.head:
      news.wait(lambda: news.any, "the log up to the newest record")
      self._hear_news()
    self._request_lease()
    self._tell("joined", record=self._record.number)
    self._rest()

  def step(self) -> None:
    """A window without training: from parameters to theta moved."""
    news = self._news
    number = self._windows.next
    while number not in news.leases:
      news.wait(lambda: number in news.leases or news.any, "samples")
      self._hear_news()
    self._windows.start(news.leases.pop(number))
    self._windows.step()
    self._sent = self._store.bytes_sent
    self._tell("frozen")
    delta = reduce.encode(
      self._codec, self._delta(), self._mean_bytes, self._chunk
    )
    self.faults.at("propose")
    proposal = self._windows.propose(0)
    proposal.base = self._record.number
    blob = self._store.publish_hashed(delta.manifest(self._chunk), delta.codes)
    proposal.delta.CopyFrom(blob)
    proposal.norm = math.sqrt(delta.squares[0])
    proposal.base_state = self._state
    self._agent.propose(proposal)
    self._tell("proposed")
    while self._windows.proposed:
      news.wait(lambda: news.any, "a record")
      self._hear_news()
    self._tell("done", record=self._record.number)
    self._request_lease()  # as in the middle of a window: not while it ends
    self._rest()

  def offer(self) -> None:
    state = self._offer().state
    self._tell("offered", id=state.id.hex(), addresses=self._store.addresses)

  def fetch(self, blob_id: str, addresses: list[str]) -> None:
    coming = StateFetch(self._fetcher, self._outer.bytes)
    began = time.monotonic()
    coming.fetch(bytes.fromhex(blob_id), addresses, self._agent.closing)
    self._tell(
      "fetched", seconds=time.monotonic() - began, bytes=self._outer.bytes
    )

  def _rest(self) -> None:
    """What an island does off the clock, while it trains again."""
    self._state = self._outer.manifest()[1].id
    self._tell("rested", state=self._state.hex())

  def _delta(self) -> Iterator[np.ndarray]:
    """Theta - x, in pieces."""
    theta, x = self._outer.theta, self._x
    piece = np.empty(reduce.PIECE, np.float32)
    for start in range(0, len(x), len(piece)):
      stop = min(start + len(piece), len(x))
      yield np.subtract(
        theta[start:stop], x[start:stop], out=piece[: stop - start]
      )

  def _request_lease(self) -> None:
    self._agent.request_lease(self._windows.next, 1)

  def _offer(self) -> pb.StateReady:
    record, manifest, data = self._outer.snapshot()
    self._store.withdraw(self._offered)
    self._offered = manifest.id
    return pb.StateReady(
      record=record, state=self._store.publish_hashed(manifest, data)
    )

  # ---------------------------------------------------------------- news

  def _hear_news(self) -> None:
    """Applies records, takes a state over, gives up what is void."""
    news = self._news
    while news.adopted:
      self._apply(news.adopted.popleft())
    while news.restores:
      self._restore(news.restores.popleft())
    if news.evicted:
      news.evicted = False
      self._drop("evicted while it was silent")
      self._request_lease()

  def _apply(self, record: pb.Record) -> None:
    if record.number <= self._record.number and record.number:
      return
    self._tell("committed", record=record.number)
    if record.HasField("step"):
      who = self._identity.island, self._identity.incarnation
      if self._windows.includes(record.step, *who):
        self._windows.commit(0)
      else:
        self._windows.carry(0)
      mean = self._log.mean(record.number)
      assert mean is not None
      self._outer.apply(record, mean, self._codec)
    else:
      self._outer.advance(record.number)
    self._record = record
    self._tell(
      "applied",
      record=record.number,
      members=len(record.step.members),
      sent=self._store.bytes_sent - self._sent,
    )

  def _restore(self, offer: pb.Restore) -> None:
    began = time.monotonic()
    addresses = [a for part in offer.state.parts for a in part.addresses]
    data = self._coming.fetch(offer.state.id, addresses, self._agent.closing)
    seconds = time.monotonic() - began
    sealed = self._agent.get_log()[: offer.record + 1]
    self._agent.stand_at(offer.record, sealed)
    self._record = pb.Record.FromString(sealed[-1].body)
    self._outer.replace(data.view(np.float32), offer.record)
    self._tell("restored", record=offer.record, seconds=seconds)
    self._drop("its state was not the others'")

  def _drop(self, cause: str) -> None:
    dropped = self._windows.drop()
    if dropped:
      self._agent.say(dropped=pb.Dropped(windows=dropped, cause=cause))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--coordinator", required=True)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--name", required=True)
  parser.add_argument("--values", type=int, default=1_000_000)
  parser.add_argument("--listen", default="127.0.0.1:0")
  parser.add_argument("--advertise", default="")
  parser.add_argument("--insecure", action="store_true")
  parser.add_argument("--threads", type=int, default=2)
  options = parser.parse_args()
  kernels.compile_all()
  tell = Teller()
  orders: queue.Queue = queue.Queue()
  with contextlib.closing(BareIsland(options, tell)) as island:

    def listen() -> None:
      for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "go":
          island.faults.go_on.set()
        else:
          orders.put(order)
      orders.put(dict(do="end"))

    threading.Thread(target=listen, daemon=True).start()
    island.join()
    while (order := orders.get())["do"] != "end":
      match order["do"]:
        case "step":
          if "fault" in order:
            island.faults.arm(order["phase"], order["fault"])
          island.step()
        case "offer":
          island.offer()
        case "fetch":
          island.fetch(order["id"], order["addresses"])


if __name__ == "__main__":
  main()
