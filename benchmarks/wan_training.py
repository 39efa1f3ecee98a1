"""What part of an island's time is training, over wide area links.

Real processes of `train`, with their inner steps paced: each step is a real
one, of few tokens, and then a wait, so that two cores do for all islands.
"""

from collections.abc import Iterator
import contextlib
import itertools
import pathlib
import tempfile
from typing import Any

from benchmarks.loopback import COORDINATOR, Child, names_of
from benchmarks.wan_link import network, shape
from intellect_jax import config as config_lib
from intellect_jax.elastic import rpc
from intellect_jax.observe import metrics

_WORST = 0.83  # compute utilization of plain DiLoCo: INTELLECT-1's lowest
_MODEL = dict(layers=4, width=512, heads=8, kv_heads=2, head_dim=64, ffn=1536)
_VALUES = 12_587_520  # parameters of that model, with tiny's 512 tokens
_ISLANDS = 2
_PORT = 7600  # of the coordinator
_START = 60.0  # seconds until islands train, at most
_SLOWER = 4.0  # than at its pace a run may be

Figures = dict[str, float]


def utilizations(
  rate: float,
  rtt: float,
  rounds: int,
  inner_steps: int,
  tokens: int,
  quick: bool = False,
) -> Iterator[dict[str, Any]]:
  """Of plain DiLoCo at a pace at which it has _WORST, and with overlap.

  Args:
    rate: of each link, 10^6 bits/s.
    rtt: ms there and back.
    rounds: of each run.
    inner_steps: of a round.
    tokens: of a step.
    quick: the pace follows from a guess of what an exchange takes, and not
      from a run; of ways to overlap there is one.
  """
  link, size = (rate, rtt), (rounds, inner_steps, tokens)
  pace = _pace(_VALUES * 8.2e-6 / rate + 8e-3 * rtt, inner_steps)
  if not quick:
    first = trained(link, size, pace, {})
    pace = _pace(first["blocked"], inner_steps)
  ways = itertools.islice(variants(inner_steps).items(), 2 if quick else None)
  for name, outer in ways:
    about = dict(variant=name, rate=rate, rtt=rtt, inner_steps=inner_steps)
    about |= dict(outer=outer, pace=pace, values=_VALUES)
    yield about | trained(link, size, pace, outer)


def _pace(blocked: float, inner_steps: int) -> float:
  """Seconds of a step, with which so much waiting a round is 1 - _WORST."""
  return blocked * _WORST / (1 - _WORST) / inner_steps


def variants(inner_steps: int) -> dict[str, dict[str, Any]]:
  """Fields of run.outer, of each way to overlap that this version has."""
  half = inner_steps // 2
  overlap = dict(overlap_steps=half, merge_alpha=0.5)
  ways = {
    "plain": {},
    f"{half} steps ahead": dict(max_ahead_steps=half),
    f"overlap of {half} steps": overlap,
    f"4 fragments, overlap of {half} steps": overlap | dict(fragments=4),
  }
  known = set(config_lib.base().run.outer)
  return {name: outer for name, outer in ways.items() if outer.keys() <= known}


def trained(
  link: tuple[float, float],
  size: tuple[int, int, int],
  pace: float,
  outer: dict[str, Any],
) -> Figures:
  """Figures of a run of two islands; `pace` in seconds a step."""
  (rate, rtt), (rounds, inner_steps, tokens) = link, size
  names = names_of(_ISLANDS)
  run = dict(
    tokens=rounds * _ISLANDS * inner_steps * tokens,
    outer=dict(inner_steps=inner_steps) | outer,
    model=_MODEL,
    data=dict(sequence_length=tokens),
    inner=dict(batch_size=1),
    elastic=dict(start_islands=_ISLANDS),
    evaluation=dict(sequences=0),
  )
  with (
    tempfile.TemporaryDirectory() as folder,
    network(names) as (hosts, links),
    contextlib.ExitStack() as stack,
  ):
    shape(links, [rate] * _ISLANDS, rtt)
    root = pathlib.Path(folder)
    address = rpc.join_address(hosts[COORDINATOR].address, _PORT)

    def start(name: str, module: str, *arguments: str) -> Child:
      log = root / f"{name}.txt"
      given = [*arguments, f"--workdir={root / name}", "--insecure"]
      child = Child(module, given, log, hosts[name])
      stack.callback(child.kill)
      return child

    start(
      COORDINATOR,
      "intellect_jax.coordinator",
      "--config=configs/tiny.py",
      f"--listen={address}",
      "--relay=none",
      *_flags("--config.run", run),
    )
    islands = [
      start(
        name,
        "intellect_jax.train",
        f"--coordinator={address}",
        f"--config.island.name={name}",
        f"--config.island.listen={rpc.join_address(hosts[name].address, 0)}",
        f"--config.island.inner.paced_step_seconds={pace}",
        "--config.island.checkpoint.every=0",
      )
      for name in names
    ]
    bound = _START + _SLOWER * rounds * inner_steps * pace
    for island in islands:
      island.finish(bound)
    return steady([metrics.read(root / n / "metrics.jsonl") for n in names])


def _flags(prefix: str, fields: dict[str, Any]) -> Iterator[str]:
  for name, value in fields.items():
    if isinstance(value, dict):
      yield from _flags(f"{prefix}.{name}", value)
    else:
      yield f"{prefix}.{name}={value}"


def steady(logs: list[list[dict[str, Any]]]) -> Figures:
  """Figures a record, from the first one of each log to the last but one.

  The time before belongs to the start; nothing hides the last exchange.
  """
  trained = blocked = records = 0.0
  for log in logs:
    told = [event for event in log if event["kind"] == "record"]
    first, last = told[0], told[-2]
    trained += last["train_seconds"] - first["train_seconds"]
    blocked += last["blocked_seconds"] - first["blocked_seconds"]
    records += last["round"] - first["round"]
  return dict(
    trained=trained / records,
    blocked=blocked / records,
    utilization=trained / (trained + blocked),
  )
