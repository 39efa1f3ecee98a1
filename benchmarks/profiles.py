"""Where the time of a step goes, by kind of operation."""

import collections
from collections.abc import Callable
import pathlib
import re
import tempfile

import jax

_KINDS = 6  # the largest that are told of
_CONTAINERS = ("while", "call", "conditional")  # their parts are told of


def shares(steps: Callable[[int], object], of_pytorch: bool):
  """Shares of the time of all operations in one step, largest first."""
  seconds = _of_pytorch(steps) if of_pytorch else _of_xla(steps)
  whole = sum(seconds.values()) or 1.0
  return {k: s / whole for k, s in seconds.most_common(_KINDS)}


def _of_xla(steps) -> collections.Counter[str]:
  """By the first word of an instruction of XLA: dot, fusion, reduce …"""
  seconds: collections.Counter[str] = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      steps(1)
    [trace] = pathlib.Path(folder).rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(trace))
    for plane in data.planes:
      for line in plane.lines:
        if "XLA" not in line.name and "Eigen" not in line.name:
          continue
        for event in line.events:
          if any(name == "hlo_op" for name, _ in event.stats):
            kind = re.split(r"[.\d]", event.name)[0]
            if kind not in _CONTAINERS:
              seconds[kind] += event.duration_ns / 1e9
  return seconds


def _of_pytorch(steps) -> collections.Counter[str]:
  import torch  # pyright: ignore[reportMissingImports]

  with torch.profiler.profile() as profile:
    steps(1)
  return collections.Counter(
    {e.key: e.self_cpu_time_total / 1e6 for e in profile.key_averages()}
  )
