"""Which code this is: for the checkpoints and the model cards that it writes."""

import functools
import pathlib
import subprocess

import intellect_jax


@functools.cache
def version() -> str:
  """Such as "0.1.0", in a checkout with its commit: "0.1.0 1a2b3c4d5e6f"."""
  checkout = pathlib.Path(__file__).parents[1]
  if not (checkout / ".git").exists():
    return intellect_jax.__version__
  describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
  try:
    told = subprocess.run(
      [*describe, "--exclude=*"],
      cwd=checkout,
      capture_output=True,
      text=True,
      timeout=10,
    ).stdout.strip()
  except (OSError, subprocess.TimeoutExpired):
    told = ""  # without git, or on a disk that hangs
  return f"{intellect_jax.__version__} {told}".strip()
