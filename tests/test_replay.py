"""Replay: the log alone leads to the bits that training had."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest


def run(module: str, *arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", f"intellect_jax.{module}", *arguments],
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
  """Of a lone island that has trained for six records, keeping them all."""
  workdir = tmp_path_factory.mktemp("trained")
  trained = run(
    "train",
    "--config=configs/tiny.py",
    "--config.island.checkpoint.keep=9",
    f"--workdir={workdir}",
  )
  assert trained.returncode == 0, trained.stderr
  return workdir


def test_replay_ends_on_the_state_of_the_training(workdir, tmp_path):
  output = tmp_path / "state.npz"
  replayed = run("replay", f"--workdir={workdir}", f"--output={output}")
  assert replayed.returncode == 0, replayed.stderr
  lines = replayed.stdout.splitlines()
  assert [line.split()[1] for line in lines[1:8]] == [*"0123456"]
  assert sum("names it" in line for line in lines) == 6
  summary = json.loads((workdir / "summary.json").read_text())
  (trained,) = summary["theta_hash"].values()
  assert trained.startswith(lines[7].split()[2].rstrip("…"))
  assert np.load(output)["theta"].dtype == np.float32


def test_replay_stops_at_the_record_asked_for(workdir):
  replayed = run("replay", f"--workdir={workdir}", "--to=3")
  assert replayed.stdout.splitlines()[-1].split()[1] == "3"


def test_a_record_that_the_log_does_not_reach_is_an_error(workdir):
  replayed = run("replay", f"--workdir={workdir}", "--to=7")
  assert replayed.returncode == 2
  assert "from record 0 to 6" in replayed.stderr


def test_a_damaged_mean_is_found(workdir):
  mean = workdir / "log" / "000000002.mean"
  whole = mean.read_bytes()
  mean.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
  try:
    replayed = run("replay", f"--workdir={workdir}", "--to=6")
    assert replayed.returncode == 2
    assert "to 1, and 6 is not" in replayed.stderr
  finally:
    mean.write_bytes(whole)
