"""Islands on this machine, each a process, most without a model; and faults.

  with Loopback(folder, values=100_000_000, names=["a", "b"]) as swarm:
    swarm.order("step")
    done = swarm.wait("rested")

Each island's ways to the coordinator and to its own blobs go through proxies
when `proxied`, so that they can be cut; or each process has a host of its own,
which `wan.py` makes.
"""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from typing import Any, Self

from benchmarks.fault_proxy import FaultProxy
from intellect_jax.elastic import rpc
from intellect_jax.elastic.describe import describe

Event = dict[str, Any]

BOUND = 120.0  # seconds for anything
COORDINATOR = "coordinator"  # the name of its host
_PORT = 7600  # of the coordinator, on a host of its own
# What an outer step is made of, as islands tell it.
_EVENTS = "frozen", "proposed", "reduced", "gathered", "committed", "applied"


@dataclasses.dataclass(frozen=True)
class Host:
  """Where a process runs: the address there, and the command that enters."""

  address: str = "127.0.0.1"
  enter: Sequence[str] = ()


def names_of(count: int) -> list[str]:
  """Of so many islands: a, b, c …"""
  return [chr(ord("a") + i) for i in range(count)]


class Child:
  """A process that is given orders and tells what happens, line by line."""

  def __init__(
    self,
    module: str,
    arguments: Iterable[str],
    log: pathlib.Path,
    host: Host = Host(),
  ):
    self.events: list[Event] = []
    self._heard: queue.Queue[Event] = queue.Queue()
    with open(log, "a") as errors:
      self._process = subprocess.Popen(
        [*host.enter, sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
      )
    self._log = log
    threading.Thread(target=self._listen, daemon=True).start()

  def _listen(self) -> None:
    assert self._process.stdout is not None
    for line in self._process.stdout:
      if line.startswith("{"):
        self._heard.put(json.loads(line))
    self._heard.put(dict(kind="ended", at=time.monotonic()))

  def order(self, do: str, **details: Any) -> None:
    assert self._process.stdin is not None
    self._process.stdin.write(json.dumps(dict(do=do, **details)) + "\n")
    self._process.stdin.flush()

  def wait(self, kind: str) -> Event:
    """The next event of a kind; those before it are in `events`."""
    end = time.monotonic() + BOUND
    while True:
      event = self._heard.get(timeout=max(0.0, end - time.monotonic()))
      self.events.append(event)
      if event["kind"] == kind:
        return event
      if event["kind"] == "ended":
        self._heard.put(event)
        raise RuntimeError(f"a process ended: {self._log.read_text()[-2000:]}")

  def finish(self, bound: float) -> None:
    """Waits until it has done all it had to, at most so many seconds."""
    if self._process.wait(bound):
      raise RuntimeError(f"a process failed: {self._log.read_text()[-2000:]}")

  def signal(self, number: int) -> None:
    self._process.send_signal(number)

  @property
  def cpu_seconds(self) -> float:
    with open(f"/proc/{self._process.pid}/stat") as file:
      fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

  @property
  def pid(self) -> int:
    return self._process.pid

  def kill(self) -> None:
    self._process.kill()
    self._process.wait()


class Loopback:
  """A coordinator and islands without a model, from `with` to its end."""

  def __init__(
    self,
    folder: pathlib.Path,
    values: int,
    names: Iterable[str],
    proxied: bool = False,
    settings: Iterable[str] = (),
    lease: float = 3.0,
    hosts: Mapping[str, Host] | None = None,
  ):
    """Prepares.

    Args:
      folder: for workdirs and logs.
      values: of an island's vector.
      names: of the islands.
      proxied: whether links can be cut.
      settings: of the run, as in "outer.codec=float32".
      lease: seconds; of patience, too.
      hosts: by island, and that of the coordinator; None: all on this one.
    """
    self._folder = folder
    self._values = values
    self._names = list(names)
    self._proxied = proxied
    self._lease = lease
    self._settings = [
      "run.tokens=1000000000000",
      f"run.elastic.start_islands={len(self._names)}",
      f"run.elastic.lease_seconds={lease}",
      f"run.elastic.fetch_patience={lease}",
      *(f"run.{setting}" for setting in settings),
    ]
    self._hosts = hosts or {}
    self.address = rpc.unused_address()
    if hosts is not None:
      self.address = rpc.join_address(hosts[COORDINATOR].address, _PORT)
    self._insecure = ["--insecure"] if hosts is not None else []
    self.islands: dict[str, Child] = {}
    self.control: dict[str, FaultProxy] = {}
    self.blobs: dict[str, FaultProxy] = {}
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> Self:
    try:
      self.start_coordinator()
      for name in self._names:
        self.start_island(name)
      self.wait("rested")
    except BaseException:
      self._stack.close()
      raise
    return self

  def __exit__(self, *_) -> None:
    self._stack.close()

  def start_coordinator(self) -> None:
    workdir = self._folder / "coordinator"
    workdir.mkdir(parents=True, exist_ok=True)
    self.coordinator = Child(
      "intellect_jax.coordinator",
      [
        "--config=configs/tiny.py",
        f"--listen={self.address}",
        f"--workdir={workdir}",
        "--relay=none",
        *(f"--config.{setting}" for setting in self._settings),
        *self._insecure,
      ],
      workdir / "log.txt",
      self._host(COORDINATOR),
    )
    self._stack.callback(self.coordinator.kill)

  def _host(self, name: str) -> Host:
    return self._hosts.get(name, Host())

  def start_island(self, name: str) -> Child:
    """Starts it, or starts it again; it has not joined yet."""
    coordinator, host = self.address, self._host(name)
    arguments = [f"--listen={rpc.join_address(host.address, 0)}"]
    if self._proxied:
      if name not in self.control:
        listen = rpc.unused_address()
        self.control[name] = self._stack.enter_context(FaultProxy(self.address))
        self.blobs[name] = self._stack.enter_context(FaultProxy(listen))
      coordinator = self.control[name].address
      arguments = [
        f"--listen={self.blobs[name].target}",
        f"--advertise={self.blobs[name].address}",
      ]
    folder = self._folder / name
    folder.mkdir(parents=True, exist_ok=True)
    self.islands[name] = Child(
      "benchmarks.bare_island",
      [
        f"--coordinator={coordinator}",
        f"--workdir={folder}",
        f"--name={name}",
        f"--values={self._values}",
        *arguments,
        *self._insecure,
      ],
      folder / "log.txt",
      host,
    )
    self._stack.callback(self.islands[name].kill)
    return self.islands[name]

  def order(self, do: str, **details: Any) -> None:
    """Tells it to all islands; what they told before is forgotten."""
    for island in self.islands.values():
      island.events.clear()
    for island in self.islands.values():
      island.order(do, **details)

  def wait(self, kind: str) -> list[Event]:
    """The next event of a kind, of each island."""
    return [island.wait(kind) for island in self.islands.values()]

  def moments(self, kind: str) -> list[float]:
    """When islands told of a kind of event since the last order."""
    return [
      event["at"]
      for island in self.islands.values()
      for event in island.events
      if event["kind"] == kind
    ]

  def phases(self) -> dict[str, float]:
    """Seconds of the outer step that was ordered last, and of its parts."""
    at = {name: self.moments(name) for name in _EVENTS}
    ends = {name: max(times) for name, times in at.items()}
    return dict(
      whole=ends["applied"] - min(at["frozen"]),
      all_reduce=ends["gathered"] - ends["proposed"],
      encode=ends["proposed"] - min(at["frozen"]),
      reduce=ends["reduced"] - ends["proposed"],
      gather=ends["gathered"] - ends["reduced"],
      commit=ends["committed"] - ends["gathered"],
      apply=ends["applied"] - ends["committed"],
    )

  def black_hole(self, name: str) -> None:
    """What comes from this island or goes to it is taken, and disappears."""
    self.control[name].partition()
    self.blobs[name].partition()

  def heal(self, name: str) -> None:
    """Its connections of before are over; new ones are carried."""
    if self._proxied:
      for proxy in (self.control[name], self.blobs[name]):
        proxy.reset()
        proxy.heal()

  def await_coordinator(self) -> float:
    """When it was seen to answer."""
    describe([self.address], rpc.LOOPBACK, BOUND)
    return time.monotonic()
