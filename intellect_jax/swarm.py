"""A whole swarm on this machine: a coordinator and islands, each a process.

  python -m intellect_jax.swarm --config=configs/demo.py --islands=3 \\
      --workdir=runs/demo

The machine's cores are divided among the islands. Run it again with the same
workdir to go on with an interrupted run. To see what the swarm bears:

  … --kill=island-1@2 --kill=coordinator@4

kills a process (SIGKILL) when a record is committed, and starts it again.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import Any

from absl import flags
import grpc
from ml_collections import ConfigDict
import rich.console
import rich.panel
import rich.text

from intellect_jax import command
from intellect_jax.data.texts import identify
from intellect_jax.elastic import rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import elastic_pb2_grpc as pb_grpc
from intellect_jax.errors import UserError
from intellect_jax.observe.metrics import write_summary
from intellect_jax.observe.progress import Progress, summary_table
from intellect_jax.observe.swarm import mean_payload_reduction

CONFIG = command.define_config()
WORKDIR = command.define_workdir("all processes' logs, checkpoints and metrics")
INIT_FROM = command.define_init_from()
ISLANDS = flags.DEFINE_integer("islands", 3, "Islands to start.", lower_bound=1)
KILL = flags.DEFINE_multi_string(
  "kill", [], "NAME@RECORD: kill that process at that record; may be repeated."
)

_PROMPT = "The function returns"
_GRACE_SECONDS = 30  # between asking a process to end and killing it
_POLL_SECONDS = 0.2  # between two looks at the parts
_MAX_RESTARTS = 5  # of one process, unasked


@dataclasses.dataclass
class _Part:
  """A process of the swarm, which is started again when it dies."""

  name: str
  module: str
  arguments: list[str]
  folder: pathlib.Path
  cores: set[int]
  sharing: int = 1  # processes on these cores
  process: subprocess.Popen | None = None
  restarts: int = 0
  ended: float = math.inf  # when it was first seen to have ended

  def start(self) -> None:
    self.folder.mkdir(parents=True, exist_ok=True)
    with open(self.folder / "log.txt", "a") as log:
      self.process = subprocess.Popen(
        [sys.executable, "-m", self.module, *self.arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=self._environment(),
        # Ctrl-C reaches the swarm alone, which ends its parts in order.
        process_group=0,
      )
    if self.cores:
      os.sched_setaffinity(self.process.pid, self.cores)

  def _environment(self) -> dict[str, str]:
    """One XLA thread a core, however many islands share the cores."""
    environment = {**os.environ, command.PARENT: str(os.getpid())}
    if not self.cores:
      return environment
    threads = max(1, len(self.cores) // self.sharing)
    return {
      **environment,
      "NPROC": str(threads),
      # Large pages: 10 to 25 % off a step's time on CPUs.
      "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }

  @property
  def running(self) -> bool:
    return self.process is not None and self.process.poll() is None

  def last_words(self) -> str:
    lines = (self.folder / "log.txt").read_text().strip().splitlines()
    return lines[-1] if lines else "(it said nothing)"


class Swarm:
  """The processes of a swarm, from `with` to its end; none outlives it."""

  def __init__(self, workdir: pathlib.Path, islands: int, flags_: list[str]):
    self._workdir = workdir
    flags_ = [*flags_, f"--config.run.elastic.start_islands={islands}"]
    folder = workdir / "coordinator"
    self.address = rpc.unused_address()
    self.coordinator = _Part(
      "coordinator",
      "intellect_jax.coordinator",
      [*flags_, f"--listen={self.address}", f"--workdir={folder}"],
      folder,
      set(),
    )
    cores = sorted(os.sched_getaffinity(0))
    crowded = islands > len(cores)
    self.islands = [
      _Part(
        f"island-{i}",
        "intellect_jax.train",
        [
          *flags_,
          f"--coordinator={self.address}",
          f"--workdir={workdir / f'island-{i}'}",
          f"--config.island.name=island-{i}",
        ],
        workdir / f"island-{i}",
        # Too few cores for all: every island gets a turn on each of them.
        set(cores) if crowded else set(cores[i::islands]),
        sharing=islands if crowded else 1,
      )
      for i in range(islands)
    ]
    self.parts = {p.name: p for p in (self.coordinator, *self.islands)}

  def __enter__(self) -> "Swarm":
    self._channel = rpc.channel(self.address, rpc.LOOPBACK)
    self._stub = pb_grpc.CoordinatorStub(self._channel)
    self._status = pb.Status()
    try:
      for part in self.parts.values():
        part.start()
    except BaseException:
      self._end()
      raise
    return self

  def status(self) -> pb.Status:
    """The newest that the coordinator said; it may be away for a moment."""
    with contextlib.suppress(grpc.RpcError):
      self._status = self._stub.GetStatus(pb.StatusRequest(), timeout=2)
    return self._status

  def kill(self, name: str) -> None:
    """SIGKILL; `supervise` starts it again."""
    process = self.parts[name].process
    assert process is not None
    process.kill()
    process.wait()

  def supervise(self) -> bool:
    """Starts again what died. Returns whether anything still runs.

    Raises:
      UserError: if a part ends with an error of the user's, or keeps dying.
    """
    training = any(island.running for island in self.islands)
    for part in self.parts.values():
      assert part.process is not None
      status = part.process.poll()
      if status is None:
        part.ended = math.inf
        continue
      part.ended = min(part.ended, time.monotonic())
      # A coordinator that is done is needed again by an island that was away.
      missed = time.monotonic() - part.ended > _GRACE_SECONDS
      needed = part is self.coordinator and training and missed
      if status == 0 and not needed:
        continue
      part.restarts += 1
      if status == 2 or part.restarts > _MAX_RESTARTS:
        raise UserError(
          f"{part.name} ended with status {status}: {part.last_words()}"
          f" Its log is {part.folder}/log.txt."
        )
      part.start()
    return any(part.running for part in self.parts.values())

  def watch(self) -> Iterator[pb.Status]:
    """Yields what `status` says, a few times a second, until all have ended.

    What dies meanwhile is started again.

    Raises:
      UserError: as `supervise`.
    """
    while self.supervise():
      yield self.status()
      time.sleep(_POLL_SECONDS)

  def summary(self, run: ConfigDict) -> dict[str, Any]:
    """The figures of a swarm that has ended, under the names of summary.json.

    They are the coordinator's, and what only the islands know.

    Args:
      run: the run half of the config.
    """
    coordinator, *parts = (
      part.folder / "summary.json" for part in (self.coordinator, *self.islands)
    )
    summary = json.loads(coordinator.read_text())
    # An island that was away when the run ended has none.
    islands = [json.loads(p.read_text()) for p in parts if p.exists()]
    summary["theta_hash"] = {
      i["island"]: i["theta_hash"][i["island"]]
      for i in islands
      if i["record"] == summary["rounds"]
    }
    summary["payload_reduction"] = mean_payload_reduction(
      islands, run.outer.inner_steps
    )
    train = sum(i["train_seconds"] for i in islands)
    blocked = sum(i["blocked_seconds"] for i in islands)
    summary["compute_utilization"] = train / max(train + blocked, 1e-9)
    return summary

  def __exit__(self, *_) -> None:
    self._end()

  def _end(self) -> None:
    """Asks all to end in good order, islands first; kills what does not."""
    self._channel.close()
    for group in (self.islands, [self.coordinator]):
      running = [p for p in group if p.running]
      for part in running:
        assert part.process is not None
        part.process.terminate()
      deadline = time.monotonic() + _GRACE_SECONDS
      for part in running:
        assert part.process is not None
        try:
          part.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
          part.process.kill()
          part.process.wait()


def main() -> None:
  config = command.config_of(CONFIG)
  workdir = command.path(WORKDIR)
  console = rich.console.Console()
  results = workdir / "summary.json"
  if results.exists() and json.loads(results.read_text())["final"]:
    console.print(f"This run is finished. To start it anew, remove {workdir}.")
  else:
    identify(config)  # what is wrong with the data is said before any starts
    summary = _run(workdir, config)
    write_summary(results, summary)
  _show_results(console, workdir, config.run, json.loads(results.read_text()))


def _run(workdir: pathlib.Path, config) -> dict[str, Any]:
  """Runs the swarm to its end; returns its figures."""
  started = time.monotonic()
  flags_ = command.config_flags_given()
  if INIT_FROM.value is not None:
    flags_.append(f"--init-from={command.path(INIT_FROM)}")
  swarm = Swarm(workdir, ISLANDS.value, flags_)
  kills = _parse_kills(KILL.value, swarm.parts)
  try:
    with swarm, Progress(swarm.status, config.run) as progress:
      for status in swarm.watch():
        for name in [n for n, at in kills if at <= status.record]:
          progress.note(f"SIGKILL to {name} at record {status.record}")
          swarm.kill(name)
          kills = [k for k in kills if k[0] != name]
  except KeyboardInterrupt:
    print("Interrupted. The same command goes on from here.", file=sys.stderr)
    sys.exit(130)
  wall_seconds = time.monotonic() - started
  return swarm.summary(config.run) | dict(wall_seconds=wall_seconds)


def _show_results(
  console: rich.console.Console,
  workdir: pathlib.Path,
  run: ConfigDict,
  summary: dict[str, Any],
) -> None:
  console.print(summary_table(summary, run))
  text = rich.text.Text(sample(workdir / "island-0", _PROMPT))
  console.print(rich.panel.Panel(text, title="a sample of its text"))
  console.print(
    f"Results are in {workdir}: summary.json, and a folder for each process"
    " with metrics.jsonl, log.txt and checkpoints. Try next:\n\n"
    f"  python -m intellect_jax.generate --workdir={workdir}/island-0"
    ' --prompt="The class"\n'
    f"  python -m intellect_jax.replay --workdir={workdir}/island-0\n"
    "  make demo-kill\n"
    "  make run with another configs/demo.py: its fields are in configs/base.py",
    highlight=False,
    soft_wrap=True,
  )


def sample(workdir: pathlib.Path, prompt: str) -> str:
  """`prompt`, and how the model in an island's workdir goes on from it."""
  command_line = [sys.executable, "-m", "intellect_jax.generate"]
  command_line += [f"--workdir={workdir}", f"--prompt={prompt}"]
  sampled = subprocess.run(command_line, stdout=subprocess.PIPE, text=True)
  return sampled.stdout.strip()


def _parse_kills(
  values: list[str], parts: dict[str, _Part]
) -> list[tuple[str, int]]:
  kills = []
  for value in values:
    match = re.fullmatch(r"(.+)@(\d+)", value)
    if match is None or match[1] not in parts:
      raise UserError(
        f"--kill={value} names no process and record. Write NAME@RECORD with"
        f" one of {', '.join(parts)}, as in --kill=coordinator@4."
      )
    kills.append((match[1], int(match[2])))
  return kills


if __name__ == "__main__":
  command.run(main)
