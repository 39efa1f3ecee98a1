"""Coordinate a run: who is in, which round is open, who committed what.

  python -m intellect_jax.coordinator --config=configs/demo.py \\
      --listen=127.0.0.1:7600 --workdir=runs/coordinator

It moves no tensors. Killed and started again with the same workdir, it goes on
where it was; islands keep training meanwhile. It ends when the run is final
and every island has left.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from absl import flags, logging

from intellect_jax import command
from intellect_jax.data.texts import identify
from intellect_jax.elastic import figures, rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.service import CoordinatorService
from intellect_jax.errors import UserError
from intellect_jax.observe.metrics import MetricsLog, write_summary
from intellect_jax.observe.provenance import of_status
from intellect_jax.observe.swarm import swarm_figures

CONFIG = command.define_config()
WORKDIR = command.define_workdir("the ledger, metrics and summary of the run")
LISTEN = flags.DEFINE_string(
  "listen", "127.0.0.1:7600", "host:port; port 0 takes any free one"
)
INIT_FROM = command.define_init_from()
INSECURE = command.define_insecure()
RELAY = flags.DEFINE_string(
  "relay",
  "own",
  "For islands that nobody can call: 'own' starts a relay beside this"
  " coordinator, on the next free port; 'none'; or host:port,… of others.",
)
RECOVER = flags.DEFINE_bool(
  "recover",
  False,
  "The ledger is lost: collect the run's records from its islands. Waits for"
  " more than half of the members of the newest record found.",
)
FORCE = flags.DEFINE_bool(
  "force", False, "Recover with the islands that answer; says what may be lost."
)
ADDRESS_FILE = "address"  # in the workdir: where this coordinator listens
_RELAY_FILE = "relay"  # in the workdir: the port of its own relay


def main() -> None:
  config = command.config_of(CONFIG)
  identify(config, files=False)  # or no island could train
  weights = command.weights(INIT_FROM, config)
  if weights is not None:
    weights.check(config.run, config.island.data.folder)
  workdir = command.path(WORKDIR)
  started = time.monotonic()
  credentials = rpc.Credentials(insecure=INSECURE.value)
  stopping = threading.Event()
  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda *_: stopping.set())
  credentials = credentials.for_lease(config.run.elastic.lease_seconds)
  with (
    MetricsLog(workdir / "metrics.jsonl") as log,
    contextlib.closing(_Relays(workdir, credentials)) as relays,
  ):
    service = CoordinatorService(
      config.run,
      workdir,
      LISTEN.value,
      credentials,
      relays.told,
      on_record=lambda record, status: _tell(log, record, status),
      recover=RECOVER.value or FORCE.value,
      force=FORCE.value,
    )
    try:
      relays.remember(workdir)
      _write_atomically(workdir / ADDRESS_FILE, service.address)
      print(f"run {config.run.name!r} at {service.address}", flush=True)
      while not (service.done.wait(0.2) or stopping.is_set()):
        relays.keep()
      status = service.status()
    finally:
      service.close()
  if service.stopped:
    raise UserError(f"This coordinator stops: {service.stopped}.")
  summary = swarm_figures(status)
  summary.update(wall_seconds=time.monotonic() - started)
  write_summary(workdir / "summary.json", summary)
  what = "finished" if status.final else "stopped"
  print(f"{what} at record {status.record}; see {workdir}/summary.json")


class _Relays:
  """The relays that islands are told of, an own one among them or not."""

  def __init__(self, workdir: pathlib.Path, credentials: rpc.Credentials):
    self._credentials = credentials
    self._process: subprocess.Popen | None = None
    self.told: list[str] = []  # host:port, or :port at this host
    if RELAY.value == "own":
      self._host = rpc.check_listen(LISTEN.value, credentials)
      before = workdir / _RELAY_FILE
      # At the port of before: islands have it in the addresses of their blobs.
      self._port = _port_in(before)
      self._start()
    elif RELAY.value != "none":
      self.told = rpc.split_list(RELAY.value)

  def _start(self) -> None:
    """Starts a relay, which ends with this process; at its port if it can."""
    for port in dict.fromkeys((self._port, 0)):
      self._process = subprocess.Popen(
        [
          *(sys.executable, "-m", "intellect_jax.relay"),
          f"--listen={rpc.join_address(self._host, port)}",
          f"--dead_after={self._credentials.dead_after}",
          f"--insecure={self._credentials.insecure}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, command.PARENT: str(os.getpid())},
        text=True,
      )
      assert self._process.stdout is not None
      address = self._process.stdout.readline().strip()
      if address:
        _, self._port = rpc.split_address(address)
        self.told[:] = [f":{self._port}"]
        return
    raise UserError(
      f"The relay cannot listen on {self._host}; it has said why above. Start"
      " with --relay=none if every island can be reached by the others."
    )

  def remember(self, workdir: pathlib.Path) -> None:
    """Notes the port, once it is certain that the workdir is ours."""
    if self._process is not None:
      _write_atomically(workdir / _RELAY_FILE, str(self._port))

  def keep(self) -> None:
    """Starts the own relay again if it has ended."""
    if self._process is not None and self._process.poll() is not None:
      logging.warning("The relay has ended; it is started again.")
      try:
        self._start()
      except UserError as error:  # the run goes on without it
        self._process = None
        logging.error("%s", error)

  def close(self) -> None:
    if self._process is not None:
      self._process.terminate()
      self._process.wait()


def _port_in(path: pathlib.Path) -> int:
  """The port that was noted there; 0 if none was, or a power loss took it."""
  text = path.read_text() if path.exists() else ""
  return int(text) if text.isdecimal() else 0


def _tell(log: MetricsLog, record: pb.Record, status: pb.Status) -> None:
  step = record.step
  log.write(
    dict(
      kind="record",
      round=record.number,
      term=record.term,
      members=[member.island for member in step.members],
      tokens=sum(w.tokens for m in step.members for w in m.windows),
      total_tokens=record.total_tokens,
      tokens_trained=status.tokens_trained,
      tokens_lost=status.tokens_lost,
      final=record.final,
      hours=of_status(status),
      **(figures.of_step(step) if record.HasField("step") else {}),
    )
  )
  print(
    f"record {record.number}: {len(step.members)} islands,"
    f" {record.total_tokens:,} tokens",
    flush=True,
  )


def _write_atomically(path: pathlib.Path, text: str) -> None:
  partial = path.with_suffix(".partial")
  partial.write_text(text)
  partial.rename(path)


if __name__ == "__main__":
  command.run(main)
