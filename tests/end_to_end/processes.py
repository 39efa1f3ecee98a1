"""Coordinators and islands as processes, and what can be seen of them."""

from collections.abc import Callable
import contextlib
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import grpc

import intellect_jax
from intellect_jax.elastic import rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import elastic_pb2_grpc as pb_grpc
from intellect_jax.observe import metrics

HERE = pathlib.Path(__file__).parent
ROOT = pathlib.Path(intellect_jax.__file__).parents[1]
BOUND = 150  # seconds for anything, on a machine that is busy with other work
LOOK = 0.05  # seconds between two looks at a process
ALONE = ["--config=configs/tiny.py"]  # flags of an island without a swarm
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


class Workdir:
  """What an island leaves on the disk."""

  def __init__(self, workdir: pathlib.Path):
    self.workdir = workdir

  def metrics(self, kind: str) -> list[dict]:
    """The events of this kind in metrics.jsonl, of earlier processes too."""
    path = self.workdir / "metrics.jsonl"
    events = metrics.read(path) if path.exists() else []
    return [event for event in events if event["kind"] == kind]

  def has_record(self, number: int) -> bool:
    """Whether the record is in this island's log."""
    return (self.workdir / "log" / f"{number:09d}.record").exists()

  def checkpoints(self) -> list[int]:
    """Numbers of the checkpoints that are whole."""
    folders = (self.workdir / "checkpoints").glob("*")
    return sorted(int(path.name) for path in folders if path.name.isdigit())

  def summary(self) -> dict:
    return json.loads((self.workdir / "summary.json").read_text())

  def state_hash(self) -> str:
    (state_hash,) = self.summary()["theta_hash"].values()
    return state_hash

  def incarnation(self) -> int:
    """How many processes have held this workdir."""
    identity = json.loads((self.workdir / "identity.json").read_text())
    return identity["incarnation"]


class Process(Workdir):
  """A command that runs; its output goes to a file."""

  def __init__(self, name: str, arguments: list[str], workdir: pathlib.Path):
    super().__init__(workdir)
    self.name = name
    self._output = workdir.with_name(f"{workdir.name}.{time.time_ns()}.txt")
    self._output.parent.mkdir(parents=True, exist_ok=True)
    with open(self._output, "w") as output:
      self._popen = subprocess.Popen(
        [sys.executable, *arguments, f"--workdir={workdir}"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
      )

  def said(self) -> str:
    return self._output.read_text()

  def status(self) -> int | None:
    """The exit status; None while it runs."""
    return self._popen.poll()

  def kill(self) -> None:
    """kill -9."""
    self._popen.kill()
    self._popen.wait()

  def ask_to_end(self) -> None:
    self._popen.send_signal(signal.SIGTERM)

  def must_end_well(self) -> None:
    """Waits for its end."""
    self._await_end()
    assert self.status() == 0, f"{self.name}: {self.said()}"

  def must_fail(self) -> str:
    """Waits for its end; returns what it said."""
    self._await_end()
    assert self.status() not in (0, None), f"{self.name}: {self.said()}"
    return self.said()

  def _await_end(self) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._popen.wait(BOUND)


class Coordinator(Process):
  """A coordinator; it listens once it is constructed."""

  def __init__(
    self, run: list[str], workdir: pathlib.Path, address: str = "127.0.0.1:0"
  ):
    told = workdir / "address"
    told.unlink(missing_ok=True)
    arguments = ["-m", "intellect_jax.coordinator", f"--listen={address}"]
    super().__init__("coordinator", [*arguments, *run], workdir)
    wait_until(told.exists, self)
    self.address = told.read_text()
    self._channel = rpc.channel(self.address, rpc.LOOPBACK)
    self._stub = pb_grpc.CoordinatorStub(self._channel)

  def swarm(self) -> pb.Status:
    """What an operator sees."""
    return self._stub.GetStatus(pb.StatusRequest(), timeout=BOUND)

  def records(self) -> list[pb.Record]:
    """The committed log, from the process, or from its disk if it has ended."""
    if self.status() is None:
      try:
        sealed = self._stub.ReadLog(pb.ReadLogRequest(), timeout=BOUND)
        return [pb.Record.FromString(s.body) for s in sealed]
      except grpc.RpcError:
        self._popen.wait(BOUND)  # it was about to end
    return read_ledger(self.workdir / "ledger.sqlite")[1]


def command(module: str, *arguments: str) -> tuple[int, str]:
  """The exit status of a command, and what it said."""
  done = subprocess.run(
    [sys.executable, "-m", f"intellect_jax.{module}", *arguments],
    cwd=ROOT,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=BOUND,
  )
  return done.returncode, done.stdout + done.stderr


def read_ledger(path: pathlib.Path) -> tuple[str, list[pb.Record]]:
  """The run half as JSON and all records, from a file that nobody has open."""
  with contextlib.closing(sqlite3.connect(path)) as ledger:
    ((run_json,),) = ledger.execute("SELECT config FROM run")
    bodies = ledger.execute("SELECT body FROM records ORDER BY number")
    return run_json, [pb.Record.FromString(body) for (body,) in bodies]


def wait_until(condition: Callable[[], object], *running: Process) -> None:
  """Waits for `condition` to hold; fails if one of `running` ends before."""
  bound = time.monotonic() + BOUND
  while not condition():
    for process in running:
      assert process.status() is None, f"{process.name}: {process.said()}"
    assert time.monotonic() < bound, [
      f"{process.name}: {process.said()}" for process in running
    ]
    time.sleep(LOOK)


class World:
  """The processes of one test."""

  def __init__(self, folder: pathlib.Path, cache: pathlib.Path):
    self.folder = folder
    self._cache = cache
    self._processes: list[Process] = []

  def coordinator(self, *run: str, address: str = "127.0.0.1:0") -> Coordinator:
    """Starts the coordinator of configs/tiny.py, changed by `run`.

    They are fields of the run half, or whole flags.
    """
    changes = [f if f.startswith("--") else f"--config.run.{f}" for f in run]
    flags = ["--config=configs/tiny.py", *changes]
    coordinator = Coordinator(flags, self.folder / "coordinator", address)
    self._processes.append(coordinator)
    return coordinator

  def island(
    self,
    name: str,
    coordinator: Coordinator,
    *flags: str,
    stops_in: str = "",
    flips: bool = False,
  ) -> Process:
    """Starts an island, or goes on with it; see stopping.py, flipping.py."""
    return self.start(
      name,
      f"--coordinator={coordinator.address}",
      f"--config.island.name={name}",
      *flags,
      stops_in=stops_in,
      flips=flips,
    )

  def start(
    self,
    name: str,
    *flags: str,
    module: str = "intellect_jax.train",
    stops_in: str = "",
    flips: bool = False,
  ) -> Process:
    """Starts a command with the workdir `name`.

    All islands of a test session run one program, which is compiled once.
    """
    command = ["-m", module]
    if stops_in:
      command = [str(HERE / "stopping.py"), stops_in]
    elif flips:
      command = [str(HERE / "flipping.py")]
    arguments = [
      *command,
      *flags,
      "--config.island.model.remat=none",
      f"--config.island.compilation_cache={self._cache}",
    ]
    self._processes.append(Process(name, arguments, self.folder / name))
    return self._processes[-1]

  def control(self, coordinator: Coordinator, *words: str) -> str:
    """What an operator does; returns what the command said."""
    where = f"--coordinator={coordinator.address}"
    status, said = command("control", where, *words)
    assert status == 0, said
    return said

  def simulate(
    self, coordinator: Coordinator, data: pathlib.Path | str = ""
  ) -> list[str]:
    """State hashes at all records, by one process that plays all islands.

    `data`: folder of prepared sources, if the run has some.
    """
    ledger = coordinator.workdir / "ledger.sqlite"
    simulation = str(HERE / "single_process.py")
    done = subprocess.run(
      [sys.executable, simulation, ledger, self._cache, str(data)],
      cwd=ROOT,
      env=ENVIRONMENT,
      capture_output=True,
      text=True,
      timeout=BOUND,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

  def end(self) -> None:
    for process in self._processes:
      process.kill()
