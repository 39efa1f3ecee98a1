"""Coordinate a run: who is in, which round is open, who committed what.

  python -m intellect_jax.coordinator --config=configs/demo.py \\
      --listen=127.0.0.1:7600 --workdir=runs/coordinator

It moves no tensors. Killed and started again with the same workdir, it goes on
where it was; islands keep training meanwhile. It ends when the run is final
and every island has left.
"""

import pathlib
import signal
import threading
import time

from absl import flags

from intellect_jax import command
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.elastic import rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.service import CoordinatorService
from intellect_jax.errors import UserError
from intellect_jax.observe.metrics import MetricsLog, write_summary
from intellect_jax.observe.swarm import swarm_figures

CONFIG = command.define_config()
WORKDIR = command.define_workdir("the ledger, metrics and summary of the run")
LISTEN = flags.DEFINE_string(
  "listen", "127.0.0.1:7600", "host:port; port 0 takes any free one"
)
INIT_FROM = command.define_init_from()
INSECURE = command.define_insecure()
ADDRESS_FILE = "address"  # in the workdir: where this coordinator listens


def main() -> None:
  config = command.config_of(CONFIG)
  tokenizer_of(config.run)  # or no island could train
  weights = command.weights(INIT_FROM, config)
  if weights is not None:
    weights.check(config.run)
  workdir = command.path(WORKDIR)
  started = time.monotonic()
  credentials = rpc.Credentials(insecure=INSECURE.value)
  stopping = threading.Event()
  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda *_: stopping.set())
  with MetricsLog(workdir / "metrics.jsonl") as log:
    service = CoordinatorService(
      config.run,
      workdir,
      LISTEN.value,
      credentials.for_lease(config.run.elastic.lease_seconds),
      on_record=lambda record, status: _tell(log, record, status),
    )
    try:
      _write_atomically(workdir / ADDRESS_FILE, service.address)
      print(f"run {config.run.name!r} at {service.address}", flush=True)
      while not (service.done.wait(0.2) or stopping.is_set()):
        pass
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
