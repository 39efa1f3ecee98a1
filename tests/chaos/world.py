"""A swarm of real processes whose every connection can be cut."""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import os
import pathlib
import resource
import shutil
import signal
import sqlite3
import subprocess
import time

import grpc

from benchmarks.fault_proxy import FaultProxy, ports_of
from intellect_jax import swarm as swarm_lib
from intellect_jax.elastic import ledger, rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import elastic_pb2_grpc as pb_grpc

LEASE = 3.0  # seconds
INNER_STEPS = 5
TOKENS_A_STEP = 8 * 64  # of configs/tiny.py
BOUND = 120.0  # seconds for anything
_LOOK = 0.05  # seconds
_DISK = 64 << 20  # bytes of the disk that can be filled up; a run needs 20


def flags(pace: float, tokens: int, outer: Sequence[str] = ()) -> list[str]:
  """Of coordinator and islands.

  Args:
    pace: seconds a step.
    tokens: of the run.
    outer: settings of run.outer: "fragments=2".
  """
  return [
    "--config=configs/tiny.py",
    *(f"--config.run.outer.{setting}" for setting in outer),
    f"--config.run.tokens={tokens}",
    f"--config.run.outer.inner_steps={INNER_STEPS}",
    f"--config.run.elastic.lease_seconds={LEASE}",
    f"--config.run.elastic.fetch_patience={LEASE}",
    "--config.run.evaluation.sequences=32",
    f"--config.island.inner.paced_step_seconds={pace}",
  ]


class World:
  """Islands, a coordinator and a relay, with proxies before each of them.

  Attributes:
    names: of the islands that are always there.
    small_disk: whether the first island's disk can be filled up.
    down: processes that are meant to be down, and are not started again.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    islands: int,
    pace: float,
    outer: Sequence[str] = (),
  ):
    self._flags = flags(pace, 10**9, outer)
    self.workdir = workdir
    self.swarm = swarm_lib.Swarm(workdir, islands, self._flags)
    self.names = [part.name for part in self.swarm.islands]
    self.small_disk = False
    self.down: set[str] = set()
    self.control: dict[str, FaultProxy] = {}  # to the coordinator
    self.blobs: dict[str, FaultProxy] = {}  # to this island's blobs
    listen = rpc.unused_address()
    self.relay = FaultProxy(listen)
    self.swarm.coordinator.arguments.append(f"--relay={self.relay.address}")
    self._add("relay", "intellect_jax.relay", [f"--listen={listen}"])
    for part in self.swarm.islands:
      self._through_proxies(part)
    self._guests = 0
    self._ledger_lost = False
    self._stack = contextlib.ExitStack()

  def _add(
    self, name: str, module: str, arguments: list[str]
  ) -> swarm_lib._Part:
    folder = self.workdir / name
    part = swarm_lib._Part(name, module, arguments, folder, set())
    self.swarm.parts[name] = part
    return part

  def _through_proxies(self, part: swarm_lib._Part) -> None:
    listen = rpc.unused_address()
    self.control[part.name] = FaultProxy(self.swarm.address)
    self.blobs[part.name] = FaultProxy(listen)
    part.arguments += [
      f"--coordinator={self.control[part.name].address}",
      f"--config.island.listen={listen}",
      f"--config.island.advertise={self.blobs[part.name].address}",
    ]

  def __enter__(self) -> "World":
    self._stack.callback(self._close_proxies)
    self._stack.callback(lambda: self._end("relay"))
    self._mount_small_disk(self.names[0])
    self._stack.enter_context(self.swarm)
    return self

  def __exit__(self, *exception) -> None:
    self._stack.__exit__(*exception)

  def _close_proxies(self) -> None:
    proxies = *self.control.values(), *self.blobs.values(), self.relay
    for proxy in proxies:
      proxy.close()

  def _mount_small_disk(self, name: str) -> None:
    """The island's workdir is a disk of its own, if we may mount one."""
    folder = self.workdir / name
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", folder]
    with contextlib.suppress(FileNotFoundError):
      done = subprocess.run(mount, capture_output=True)
      self.small_disk = done.returncode == 0
    if self.small_disk:
      umount = ["umount", "--lazy", folder]
      self._stack.callback(lambda: subprocess.run(umount, check=False))

  # ---------------------------------------------------------------- looking

  def look(self) -> pb.Status:
    """Starts again what has died, and returns the newest status."""
    absent = {name: self.swarm.parts.pop(name) for name in self.down}
    if self._ledger_lost and not self.swarm.coordinator.running:
      self._recover_what_is_lost()
    try:
      self.swarm.supervise()
    finally:
      self.swarm.parts.update(absent)
    time.sleep(_LOOK)
    return self.swarm.status()

  def wait_until(
    self, holds: Callable[[pb.Status], bool], what: str
  ) -> pb.Status:
    """Returns the first status in which it holds."""
    start = time.monotonic()
    while time.monotonic() - start < BOUND:
      status = self.look()
      if holds(status):
        return status
    raise TimeoutError(f"{what}: not within {BOUND:g} s; {self.swarm.status()}")

  def let_pass(self, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      self.look()

  def are_in(self, status: pb.Status, names: Iterable[str]) -> bool:
    """Also those that were heard lately: a dead one is in while its lease is."""
    there = {
      i.island
      for i in status.islands
      if i.state == "in" and i.silent_seconds < LEASE / 2
    }
    return there.issuperset(names)

  def all_in(self, status: pb.Status) -> bool:
    return self.are_in(status, self.names)

  def cpu_seconds(self) -> float:
    """Of all processes of the swarm, also of those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for part in self.swarm.parts.values():
      with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        stat = pathlib.Path(f"/proc/{self.pid(part.name)}/stat").read_text()
        ticks += sum(map(int, stat.rpartition(")")[2].split()[11:13]))
    running = ticks / os.sysconf("SC_CLK_TCK")
    return ended.ru_utime + ended.ru_stime + running

  # ------------------------------------------------------------- processes

  def pid(self, name: str) -> int:
    process = self.swarm.parts[name].process
    assert process is not None
    return process.pid

  def kill(self, name: str) -> None:
    """SIGKILL; the next look starts it again."""
    self.swarm.kill(name)
    self.swarm.parts[name].restarts = 0  # of those that nobody asked for

  def signal(self, name: str, number: signal.Signals) -> None:
    process = self.swarm.parts[name].process
    assert process is not None
    process.send_signal(number)

  def stop_for(self, name: str, seconds: float) -> None:
    """SIGSTOP, and SIGCONT after some seconds."""
    self.signal(name, signal.SIGSTOP)
    self.let_pass(seconds)
    self.signal(name, signal.SIGCONT)

  def invite(self) -> str:
    """A new island; returns its name. See `see_off`."""
    name = f"guest-{self._guests}"
    self._guests += 1
    part = self._add(
      name,
      "intellect_jax.train",
      [
        *self._flags,
        f"--config.run.elastic.start_islands={len(self.names)}",
        f"--workdir={self.workdir / name}",
        f"--config.island.name={name}",
      ],
    )
    self._through_proxies(part)
    part.start()
    self._stack.callback(lambda: self._end(name))
    return name

  def see_off(self, name: str) -> None:
    """A guest hands in what it has, and leaves."""
    self._end(name)
    del self.swarm.parts[name]

  def _end(self, name: str) -> None:
    part = self.swarm.parts.get(name)
    if part is not None and part.process is not None:
      part.process.terminate()
      part.process.wait(BOUND)

  def start_again(
    self,
    name: str,
    unless: Callable[[pb.Status], bool] = lambda status: False,
  ) -> None:
    """A new process, once the one that was told to end has ended in its way."""
    part = self.swarm.parts[name]
    assert part.process is not None
    self.down.add(name)
    end = time.monotonic() + BOUND
    while part.process.poll() is None:
      assert time.monotonic() < end, f"{name} does not end"
      if unless(self.look()):
        self.down.discard(name)
        return
    self.down.discard(name)
    part.start()

  def order(self, **change) -> bool:
    """What an operator wants; whether the coordinator has done it."""
    request = pb.ControlRequest(reason="a test", **change)
    with rpc.channel(self.swarm.address, rpc.LOOPBACK) as channel:
      try:
        stub = pb_grpc.CoordinatorStub(channel)
        return not stub.Control(request, timeout=LEASE).refusal
      except grpc.RpcError:  # it is away
        return False

  def calm(self) -> None:
    """Who is paused goes on; nothing else is left of what an operator did."""
    while self.look().paused:
      self.order(pause=pb.SetPause(paused=False))

  def lose_ledger(self) -> None:
    """The coordinator dies, and its disk with it: islands have the run."""
    self.kill("coordinator")
    shutil.rmtree(self.swarm.coordinator.folder)
    self._ledger_lost = True

  def _recover_what_is_lost(self) -> None:
    """The next start recovers the run, unless an earlier one has."""
    coordinator = self.swarm.coordinator
    known = [a for a in coordinator.arguments if a != "--recover"]
    there = _has_run(coordinator.folder / ledger.FILE)
    coordinator.arguments = known if there else [*known, "--recover"]

  # --------------------------------------------------------------- network

  def cut_off(self, names: list[str], seconds: float) -> None:
    """Black holes for some seconds: bytes are taken and do not arrive."""
    pids = [self.pid(name) for name in names]
    self.relay.cut(lambda port: any(port in ports_of(pid) for pid in pids))
    proxies = [p[name] for name in names for p in (self.control, self.blobs)]
    for proxy in proxies:
      proxy.partition()
    self.let_pass(seconds)
    for proxy in (*proxies, self.relay):
      proxy.heal()

  def cut_pair(self, one: str, other: str, seconds: float) -> None:
    """Two islands that cannot reach each other, but all the rest."""
    for reader, peer in (one, other), (other, one):
      pid = self.pid(reader)
      self.blobs[peer].cut(lambda port, pid=pid: port in ports_of(pid))
    self.let_pass(seconds)
    for name in one, other:
      self.blobs[name].heal()

  # ------------------------------------------------------------------ disk

  def fill_disk(self, name: str) -> pathlib.Path:
    """Leaves not a byte; returns the file that has them all."""
    ballast = self.workdir / name / "ballast"
    # Unbuffered, or what did not fit is tried again as it is closed, and raises.
    with open(ballast, "wb", 0) as file, contextlib.suppress(OSError):
      while True:
        file.write(bytes(1 << 16))
    return ballast


def _has_run(path: pathlib.Path) -> bool:
  """Whether the ledger of a coordinator that has ended knows a run."""
  if not path.exists():
    return False
  with contextlib.closing(sqlite3.connect(path)) as found:
    try:
      return found.execute("SELECT id FROM run").fetchone() is not None
    except sqlite3.OperationalError:  # it was about to make the tables
      return False
