"""How long an outer step takes on loopback, beside Gloo and torchft.

  python -m benchmarks.exchange --json=benchmarks/results/exchange.json
  python -m benchmarks.exchange --quick      # 1M and 25M values

An outer step is timed from the islands' parameters to theta moved on all of
them, and the all-reduce in it; processes, rounds, records and bytes are real,
the parameters are random. TLS is off, hashing on; how long a GB takes through
gRPC with TLS and without is shown beside. The same is done on a loopback of 1
Gbit/s, in a network namespace, where this user may make one.
Gloo and torchft need `pip install torch==2.13.0 torchft`; without them their
rows are left out. Each figure is the median of its repetitions, the first of
which touches all memory and is not counted. In each step a coordinator waits for
the disk once, until the record is there: how long SQLite takes for that by
itself is shown, too.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags
import numpy as np
import rich.console
import rich.table

from benchmarks import machine, tls
from benchmarks.loopback import Child, Event, Loopback, names_of
from benchmarks.replicas import coded_mean, encoded
from intellect_jax.elastic import chain, rpc
from intellect_jax.elastic.ledger import Ledger
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.codec import make_codec

_QUICK = flags.DEFINE_bool("quick", False, "Fewer values, under a minute.")
_JSON = flags.DEFINE_string("json", None, "File for every figure.")
_INSIDE = flags.DEFINE_bool("inside", False, "In a namespace with a slow link.")

_CODECS = ("int8", "int4")
_SYSTEMS = (*_CODECS, "sparse2")
_SPARSE = ("outer.learning_rate=1", "outer.momentum=0")
_LIMIT = "1gbit"  # of the slow loopback, all directions together
_TIMES = 5
_RECORDS = 50  # to time the ledger with
_MOST_TORCHFT = 100_000_000  # values; its peers hold 7 copies of them

Row = dict[str, Any]


def main(_) -> None:
  if _INSIDE.value:
    print(json.dumps(list(limited())))
    return
  found = machine.describe()
  found["ledger_seconds"] = ledger_seconds()
  found["transport_seconds"] = tls.seconds_a_gigabyte()
  rows = [*unlimited(_QUICK.value), *in_namespace()]
  wrong = errors()
  rich.console.Console(width=110).print(
    table(rows),
    f"of each, a durable record: {found['ledger_seconds'] * 1e3:.1f} ms",
    *(
      f"a GB through gRPC, {kind}: {seconds:.2f} s"
      for kind, seconds in found["transport_seconds"].items()
    ),
    error_table(wrong),
  )
  if _JSON.value:
    path = pathlib.Path(_JSON.value)
    figures = dict(machine=found, rows=rows, errors=wrong)
    path.write_text(json.dumps(figures, indent=1) + "\n")


def unlimited(quick: bool) -> Iterator[Row]:
  """All systems at each size, one after the other."""
  sizes = [(2, 1_000_000), (2, 25_000_000), (4, 25_000_000)]
  if not quick:
    sizes += [(2, 100_000_000), (4, 100_000_000), (2, 400_000_000)]
  for islands, values in sizes:
    yield from contest(islands, values, "loopback")


def limited() -> Iterator[Row]:
  """On the slow link."""
  yield from contest(2, 25_000_000, _LIMIT)


def contest(islands: int, values: int, link: str) -> Iterator[Row]:
  """Rows of one size, each with the seconds of every repetition."""
  about = dict(islands=islands, values=values, link=link)
  try:
    import torchft  # noqa: F401 # pyright: ignore[reportMissingImports]
  except ImportError:
    print("Without torch and torchft: their rows are left out.")
  else:
    systems = ["gloo", "torchft"] if values <= _MOST_TORCHFT else ["gloo"]
    for system in systems:
      yield about | dict(system=system, seconds=peers(system, islands, values))
  for codec in _SYSTEMS:
    yield about | dict(system=codec) | rounds(islands, values, codec)


# ------------------------------------------------------------------- islands


def rounds(islands: int, values: int, codec: str) -> dict[str, Any]:
  """Seconds of each outer step, of its phases, and the bytes on the wire."""
  names, settings = names_of(islands), [f"outer.codec={codec}"]
  if make_codec(codec).sparse:
    settings += _SPARSE
  with (
    tempfile.TemporaryDirectory() as folder,
    Loopback(pathlib.Path(folder), values, names, settings=settings) as swarm,
  ):
    steps = []
    for _ in range(_TIMES + 1):
      wire = _loopback_bytes()
      swarm.order("step")
      done = swarm.wait("applied")
      wire = _loopback_bytes() - wire
      swarm.wait("rested")
      sent = sum(event["sent"] for event in done)
      steps.append(swarm.phases() | dict(sent=sent, wire=wire))
  figures = {name: [step[name] for step in steps[1:]] for name in steps[0]}
  return dict(seconds=figures.pop("whole")) | figures


def _loopback_bytes() -> int:
  """All bytes that have gone through the loopback device, headers too."""
  with open("/proc/net/dev") as file:
    for line in file:
      name, _, counts = line.partition(":")
      if name.strip() == "lo":
        return int(counts.split()[0])
  return 0


def ledger_seconds() -> float:
  """Until SQLite has a record on the disk for good; the median of many."""
  taken = []
  with tempfile.TemporaryDirectory() as folder:
    ledger = Ledger(pathlib.Path(folder) / "ledger.sqlite")
    for number in range(_RECORDS):
      record = pb.Record(number=number, step=pb.OuterStep(codec="int8"))
      sealed = chain.seal(record)
      began = time.perf_counter()
      ledger.append(record, sealed)
      taken.append(time.perf_counter() - began)
    ledger.close()
  return statistics.median(taken)


# --------------------------------------------------------------------- peers


def peers(system: str, count: int, values: int) -> list[float]:
  """Seconds of Gloo's all-reduce, or of torchft's synchronizing step."""
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    arguments = [f"--system={system}", f"--peers={count}", f"--values={values}"]
    store = rpc.unused_address()
    if system == "torchft":
      from torchft.coordination import (  # pyright: ignore
        LighthouseServer,
      )

      os.environ.setdefault("RUST_LOG", "warn")  # of each quorum it has lines
      lighthouse = LighthouseServer("127.0.0.1:0", min_replicas=count)
      stack.callback(lighthouse.shutdown)
      arguments.append(f"--lighthouse={lighthouse.address()}")
    children = []
    for rank in range(count):
      if system == "torchft":
        store = rpc.unused_address()  # each has its own
      own = [f"--rank={rank}", f"--store={store}"]
      log = pathlib.Path(folder) / f"{rank}.txt"
      children.append(Child("benchmarks.torch_peer", [*arguments, *own], log))
      stack.callback(children[-1].kill)
    for child in children:
      child.wait("rested")
    return [_timed(children) for _ in range(_TIMES + 1)][1:]


def _timed(children: list[Child]) -> float:
  for child in children:
    child.order("step")
  started: list[Event] = [child.wait("frozen") for child in children]
  ended = [child.wait("applied") for child in children]
  for child in children:
    child.wait("rested")
  # Who is first waits for the others: not its fault, but part of neither.
  return max(e["at"] for e in ended) - max(e["at"] for e in started)


# ----------------------------------------------------------------- slow link


def in_namespace() -> list[Row]:
  """What `limited` yields, on a loopback that is slow."""
  if os.geteuid() or not all(map(shutil.which, ("unshare", "ip", "tc"))):
    print("Without root, unshare, ip and tc: no slow link to measure on.")
    return []
  link = f"tc qdisc add dev lo root tbf rate {_LIMIT} burst 256k latency 50ms"
  setup = f'ip link set lo up && {link} && exec "$@"'
  again = [sys.executable, "-m", "benchmarks.exchange", "--inside"]
  done = subprocess.run(
    ["unshare", "-n", "sh", "-c", setup, "sh", *again],
    stdout=subprocess.PIPE,
    text=True,
  )
  if done.returncode:
    print("A network namespace with a slow link cannot be made here.")
    return []
  return json.loads(done.stdout.splitlines()[-1])


# --------------------------------------------------------------------- error


def errors() -> list[Row]:
  """Of a mean that is encoded again against the exact one, for normal data."""
  rows = []
  rng = np.random.default_rng(0)
  for name in _CODECS:
    codec = make_codec(name)
    for islands in 2, 4:
      deltas = rng.standard_normal((islands, 1 << 22), np.float32)
      small = np.arange(deltas.shape[1]) // codec.block % 2 == 1
      deltas[:, small] /= 1000
      exact = deltas.mean(axis=0, dtype=np.float64)
      codes = [encoded(codec, values) for values in deltas]
      wrong = coded_mean(codec, codes) - exact
      parts = dict(large=~small, small=small)
      rows += [
        dict(
          codec=name,
          islands=islands,
          blocks=part,
          rms=_rms(wrong[where]) / _rms(exact[where]),
          bias=wrong[where].mean() / _rms(exact[where]),
        )
        for part, where in parts.items()
      ]
  return rows


def _rms(values: np.ndarray) -> float:
  return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


# -------------------------------------------------------------------- tables


def table(rows: list[Row]) -> rich.table.Table:
  result = rich.table.Table(title="outer steps, seconds (median)")
  for column in ("link", "islands", "values", "system", "whole", "all-reduce"):
    result.add_column(column, justify="right")
  for column in ("GB/s", "× torchft", "÷ Gloo", "sent", "wire ÷ sent"):
    result.add_column(column, justify="right")
  for row in rows:
    whole = statistics.median(row["seconds"])
    size = 4 * row["values"] / 1e9
    shown = [
      row["link"],
      str(row["islands"]),
      f"{row['values'] / 1e6:g}M",
      row["system"],
      "" if row["system"] == "gloo" else f"{whole:.3f}",
    ]
    if row["system"] in ("gloo", "torchft"):
      reduce = f"{whole:.3f}" if row["system"] == "gloo" else ""
      result.add_row(*shown, reduce, f"{size / whole:.2f}")
      continue
    reduced = statistics.median(row["all_reduce"])
    others = {
      other["system"]: statistics.median(other["seconds"])
      for other in rows
      if all(other[key] == row[key] for key in ("link", "islands", "values"))
    }
    sent = statistics.median(row["sent"])
    result.add_row(
      *shown,
      f"{reduced:.3f}",
      f"{size / whole:.2f}",
      f"{others['torchft'] / whole:.2f}" if "torchft" in others else "",
      f"{reduced / others['gloo']:.2f}" if "gloo" in others else "",
      f"{sent / 1e6:.1f} MB",
      f"{statistics.median(row['wire']) / sent:.4f}",
    )
  return result


def error_table(rows: list[Row]) -> rich.table.Table:
  result = rich.table.Table(title="error of the coded mean, of its rms")
  for column in ("codec", "islands", "blocks", "rms", "bias"):
    result.add_column(column, justify="right")
  for row in rows:
    rms, bias = f"{row['rms']:.3%}", f"{row['bias']:+.1e}"
    shown = row["codec"], str(row["islands"]), row["blocks"]
    result.add_row(*shown, rms, bias)
  return result


if __name__ == "__main__":
  app.run(main)
