"""Where and with what a figure was measured."""

import importlib.metadata
import os
import platform
import subprocess
from typing import Any

_PACKAGES = (
  *("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers"),
  *("blake3", "grpcio", "numba"),
)


def describe() -> dict[str, Any]:
  """Processor, cores, load, versions and the commit of this checkout."""
  return dict(
    processor=_processor(),
    cores=len(os.sched_getaffinity(0)),
    load_before=load(),
    python=platform.python_version(),
    versions={name: _version(name) for name in _PACKAGES},
    commit=_git("rev-parse", "--short=12", "HEAD"),
    changed=_git("status", "--porcelain", "--", "intellect_jax", "configs"),
  )


def load() -> float:
  """Processes that ran or waited to run, mean of the last minute."""
  return round(os.getloadavg()[0], 2)


def _processor() -> str:
  try:
    with open("/proc/cpuinfo") as file:
      for line in file:
        if line.startswith("model name"):
          return line.partition(":")[2].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git(*arguments: str) -> str:
  done = subprocess.run(["git", *arguments], capture_output=True, text=True)
  return done.stdout.strip()
