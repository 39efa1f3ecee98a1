"""The first swarm: a script that runs as it is, and a notebook."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

from intellect_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "first_swarm.py"
BOUND = 240  # seconds, on a machine that is busy with other work
# Rounds enough that the killed island is back before the end.
FIELDS = {
  "run.tokens": 40_960,
  "run.inner.decay_tokens": 0,
  "run.outer.inner_steps": 4,
  "run.elastic.lease_seconds": 60.0,
}


def test_a_swarm_with_a_killed_island_ends_on_one_state(tmp_path):
  workdir = tmp_path / "swarm"
  done = subprocess.run(
    [sys.executable, SCRIPT],
    cwd=tmp_path,
    env=os.environ
    | dict(
      PYTHONPATH=str(ROOT),
      JAX_PLATFORMS="cpu",
      MPLBACKEND="Agg",
      SWARM_CONFIG=str(config_lib.base_path().with_name("tiny.py")),
      SWARM_FIELDS=json.dumps(FIELDS),
      SWARM_ISLANDS="2",
      SWARM_KILL_AT="1",
      SWARM_WORKDIR=str(workdir),
    ),
    capture_output=True,
    text=True,
    timeout=BOUND,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "The function returns" in done.stdout  # and on goes the model
  assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")

  incarnations, hashes = [], set()
  for name in ("island-0", "island-1"):
    summary = json.loads((workdir / name / "summary.json").read_text())
    identity = json.loads((workdir / name / "identity.json").read_text())
    assert summary["final"]
    hashes.add(summary["theta_hash"][name])
    incarnations.append(identity["incarnation"])
  assert len(hashes) == 1
  assert incarnations == [1, 2]  # only the killed one was started again


def test_it_is_a_notebook():
  """Cells of the percent format: prose is comment, code stands by itself."""
  before, *cells = re.split(r"^# %%", SCRIPT.read_text(), flags=re.MULTILINE)
  assert before == ""
  assert cells[0].startswith(" [markdown]\n# # ")  # a title
  for cell in cells:
    kind, _, body = cell.partition("\n")
    lines = body.strip().splitlines()
    assert lines
    if kind == " [markdown]":
      assert all(re.match("#( |$)", line) for line in lines), body
    else:
      assert kind == ""
      assert ast.parse(body).body, body
