"""What all commands share."""

import subprocess
import sys


def test_help_lists_shared_flags_too():
  command = [sys.executable, "-m", "intellect_jax.replay", "--help"]
  shown = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
  for flag in ("--workdir", "--to", "--output"):
    assert f"  {flag}: " in shown
