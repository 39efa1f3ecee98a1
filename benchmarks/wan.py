"""Outer steps over wide area links: what they carry, and what training waits.

  python -m benchmarks.wan --json=benchmarks/results/wan.json     # 35 minutes
  python -m benchmarks.wan --quick                                # one minute

Real processes, each in a network namespace of its own, on links that
`wan_link.py` makes, with a rate and a round-trip time. Three tables:

goodput: coded bytes that an island sends in the all-reduce, by the time from
  the last proposal to the last island that has the mean, of what its link
  carries: at most 95 %, for packets and acknowledgements have headers. Islands
  have no model, but 150M values, or so many as a link needs 12 s for, in one row
  24 s, and a pause between steps, after which TCP begins slowly again.
unequal: the same with one link at a quarter: by how much shares that follow
  the links are faster than equal ones.
utilization: of `train` with its inner steps paced, so that two cores do for
  all islands: the part of the time that training takes. The pace is the one
  at which plain DiLoCo on this link has 83 %, the lowest that INTELLECT-1 had.

Needs root, and is skipped with a word otherwise. All namespaces and processes
are gone when it ends, however it does.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
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
import rich.console
import rich.table

from benchmarks import machine
from benchmarks.loopback import Loopback, names_of
from benchmarks.wan_link import controls, counts, network, shape
from benchmarks.wan_training import utilizations
from intellect_jax.outer.codec import make_codec

_QUICK = flags.DEFINE_bool("quick", False, "Fewer links, under a minute.")
_ONLY = flags.DEFINE_list("only", [], "Of these tables; none: all.")
_JSON = flags.DEFINE_string("json", None, "File for every figure.")
_INSIDE = flags.DEFINE_bool("inside", False, "In a namespace of its own.")

_FILL_SECONDS = 12.0  # that a vector takes on its link …
_LONG_SECONDS = 24.0  # … or this: 300M values at 100 Mbit/s
_MOST_VALUES = 150_000_000
_LEARNING = 3  # outer steps in which islands learn the links …
_LEARNING_FAST = 5  # … or those of 1 Gbit/s, with more connections each time
_PAUSE = 2.0  # seconds between outer steps
_UNEQUAL_SECONDS = 16.0  # that a vector takes on the slow link
_UNEQUAL_RTT = 50.0  # ms
_LEASE = 10.0  # seconds
# Ends with who has started it, and then everything in it ends.
_ROOM = (
  *("setpriv", "--pdeathsig=KILL", "unshare", "--net", "--pid"),
  *("--mount-proc", "--fork", "--kill-child"),
)
_SHARES = "equal", "capacity"

Row = dict[str, Any]


def main(_) -> None:
  if not _INSIDE.value:
    sys.exit(_inside())
  path = pathlib.Path(_JSON.value) if _JSON.value else None
  figures: dict[str, Any] = {}
  if path is not None and path.exists() and _ONLY.value:
    figures = json.loads(path.read_text())  # the other tables stay
  for name, measure in measures(_QUICK.value).items():
    if _ONLY.value and name not in _ONLY.value:
      continue
    figures[name] = dict(machine=machine.describe(), rows=[])
    for row in measure:
      figures[name]["rows"].append(row | dict(load=machine.load()))
      print(name, *_TABLES[name][1](row), flush=True)
    rich.console.Console(width=110).print(table(name, figures[name]["rows"]))
    if path is not None:
      path.write_text(json.dumps(figures, indent=1) + "\n")


def _inside() -> int:
  """The same in a process that ends with this one, and all that it starts."""
  tools = ("setpriv", "unshare", "nsenter", "ip", "tc")
  missing = [tool for tool in tools if not shutil.which(tool)]
  if os.geteuid() or missing or not os.path.exists("/dev/net/tun"):
    print(
      "Skipped: wide area links are made of network namespaces, for which this"
      f" needs root, /dev/net/tun and {', '.join(tools)}."
    )
    return 0
  again = [sys.executable, "-m", "benchmarks.wan", *sys.argv[1:], "--inside"]
  return subprocess.run([*_ROOM, *again]).returncode


def measures(quick: bool) -> dict[str, Iterator[Row]]:
  if quick:
    return dict(
      goodput=goodputs([(100, 100, "")], times=2, most=12_000_000),
      utilization=utilizations(1000, 20, 5, 5, tokens=16, quick=True),
    )
  links = [(rate, rtt, "") for rate in (1000, 100, 20) for rtt in (1, 50, 150)]
  links += [(100, 100, congestion) for congestion in controls()]
  return dict(
    goodput=itertools.chain(
      goodputs(links, times=2),
      goodputs([(100, 100, "")], 2, _LONG_SECONDS, 2 * _MOST_VALUES),
    ),
    unequal=unequals([(4, 20), (6, 20)], times=2),
    utilization=utilizations(100, 100, 8, 20, tokens=32),
  )


# ------------------------------------------------------------------- goodput


def goodputs(
  links: Sequence[tuple[float, float, str]],
  times: int,
  fill: float = _FILL_SECONDS,
  most: int = _MOST_VALUES,
) -> Iterator[Row]:
  """Two islands on equal links.

  Args:
    links: 10^6 bits/s, ms there and back, and the congestion control of TCP;
      empty: the most usual.
    times: that count.
    fill: seconds that a vector takes, if it has no more values …
    most: than this.
  """
  codec = make_codec("int8")
  for rate, rtt, congestion in links:
    bytes_a_value = codec.block_bytes / codec.block
    values = int(min(most, fill * rate * 1e6 / 8 / bytes_a_value))
    about = dict(islands=2, values=values, rate=rate, rtt=rtt)
    rates = dict.fromkeys(names_of(2), rate)
    yield about | exchange(rates, rtt, values, times, congestion)


def exchange(
  rates: Mapping[str, float],
  rtt: float,
  values: int,
  times: int,
  congestion: str = "",
  settings: tuple[str, ...] = (),
) -> dict[str, Any]:
  """Figures of so many outer steps; those before them learn the links."""
  with (
    tempfile.TemporaryDirectory() as folder,
    network(list(rates), congestion) as (hosts, links),
    Loopback(
      pathlib.Path(folder),
      values,
      list(rates),
      settings=settings,
      lease=_LEASE,
      hosts=hosts,
    ) as swarm,
  ):
    shape(links, list(rates.values()), rtt)
    steps = []
    learning = _LEARNING if max(rates.values()) <= 100 else _LEARNING_FAST
    for _ in range(learning + times):
      time.sleep(_PAUSE)
      before = counts(links)
      swarm.order("step")
      done = swarm.wait("applied")
      after = counts(links)
      swarm.wait("rested")
      seconds = swarm.phases()
      sent = max(event["sent"] for event in done)
      steps.append(
        seconds
        | dict(
          sent=sent,
          wire=max(_more(before, after, "sent")),
          goodput=sent * 8e-6 / seconds["all_reduce"] / max(rates.values()),
          dropped=sum(_more(before, after, "dropped")),
        )
      )
  figures = {k: [step[k] for step in steps[learning:]] for k in steps[0]}
  links = {k: after[k] for k in ("congestion", "late_ms", "cpu_seconds")}
  return figures | dict(links=links)


def _more(before: dict[str, Any], after: dict[str, Any], what: str):
  return [b - a for a, b in zip(before[what], after[what], strict=True)]


# ------------------------------------------------------------------- unequal


def unequals(sizes: Sequence[tuple[int, float]], times: int) -> Iterator[Row]:
  """So many islands on links of a rate, and one of them at a quarter of it."""
  for count, rate in sizes:
    values = int(_UNEQUAL_SECONDS * rate / 4 * 1e6 / 8)
    rates = dict.fromkeys(names_of(count), rate)
    rates[names_of(count)[-1]] = rate / 4
    rtt, taken = _UNEQUAL_RTT, {}
    for by in _SHARES:
      setting = (f"elastic.share_by={by}",)
      figures = exchange(rates, rtt, values, times, settings=setting)
      taken[by] = figures["all_reduce"]
    yield dict(islands=count, values=values, rate=rate, rtt=rtt) | taken


# -------------------------------------------------------------------- tables


def table(name: str, rows: list[Row]) -> rich.table.Table:
  columns, line, title = _TABLES[name]
  result = rich.table.Table(title=title)
  for column in columns.split(", "):
    justify = "left" if column == "variant" else "right"
    result.add_column(column, justify=justify)
  for row in rows:
    result.add_row(*line(row))
  return result


def _goodput(row: Row) -> list[str]:
  middle = {
    name: statistics.median(row[name])
    for name in ("all_reduce", "whole", "goodput", "sent", "wire", "dropped")
  }
  return [
    f"{row['rate']:g}",
    f"{row['rtt']:g}",
    row["links"]["congestion"],
    f"{row['values'] / 1e6:.1f}M",
    f"{middle['whole']:.2f}",
    f"{middle['all_reduce']:.2f}",
    f"{middle['goodput'] * row['rate']:.1f}",
    f"{middle['goodput']:.1%}",
    f"{middle['wire'] / middle['sent']:.3f}",
    f"{middle['dropped']:.0f}",
  ]


def _unequal(row: Row) -> list[str]:
  n, rate = row["islands"], row["rate"]
  equal, capacity = (statistics.median(row[by]) for by in _SHARES)
  return [
    str(n),
    f"{n - 1} × {rate:g}, {rate / 4:g}",
    f"{row['values'] / 1e6:.1f}M",
    f"{equal:.2f}",
    f"{capacity:.2f}",
    f"{equal / capacity:.2f}",
    f"{2 * (n - 1) / n:.2f}",
  ]


def _utilization(row: Row) -> list[str]:
  return [
    row["variant"],
    f"{row['rate']:g}",
    f"{row['rtt']:g}",
    f"{row['inner_steps']} × {row['pace']:.3f}",
    f"{row['blocked']:.2f}",
    f"{row['utilization']:.1%}",
  ]


_TABLES = dict(
  goodput=(
    "Mbit/s, RTT ms, TCP, values, s, all-reduce s, goodput, of the link, wire ÷ sent,"
    " dropped",
    _goodput,
    "two islands on equal links (median)",
  ),
  unequal=(
    "islands, Mbit/s, values, equal s, by link s, ×, × at best",
    _unequal,
    "all-reduce with one link at a quarter (median)",
  ),
  utilization=(
    "variant, Mbit/s, RTT ms, steps × s, waits s a round, utilization",
    _utilization,
    "training of two islands",
  ),
)


if __name__ == "__main__":
  app.run(main)
