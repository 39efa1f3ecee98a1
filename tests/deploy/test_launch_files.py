"""The launch files are well formed, and name what the commands have."""

import operator
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from intellect_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "deploy" / "slurm").glob("*.sbatch"))
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))


def documents(name: str) -> dict[str, dict]:
  """The objects of a manifest, by kind."""
  text = (ROOT / "deploy" / "kubernetes" / name).read_text()
  return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(path):
  subprocess.run(["bash", "-n", path], check=True)
  assert path.read_text().startswith("#!/bin/bash\n")
  assert "set -euo pipefail" in path.read_text()


def given(text: str, module: str) -> set[str]:
  """Flags that a launch file gives to a module, without config fields."""
  after = text.split(f"intellect_jax.{module}", 1)[1]
  return set(re.findall(r"(?<![\w-])--([a-z_]+)(?==|\s|$)", after))


@pytest.mark.parametrize("module", ["train", "coordinator"])
def test_flags_are_those_of_the_commands(module):
  """And so are fields of the config."""
  command = [sys.executable, "-m", f"intellect_jax.{module}", "--helpfull"]
  known = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=False
  ).stdout
  files = [
    path
    for path in SCRIPTS + MANIFESTS
    if f"intellect_jax.{module}" in path.read_text()
  ]
  assert len(files) == 2
  for path in files:
    flags = given(path.read_text(), module)
    assert flags >= {"workdir", "insecure"}
    for flag in flags:
      assert re.search(rf"--(\[no\])?{flag}\b", known), f"{path.name}: {flag}"
    for field in re.findall(r"--config\.([a-z_.]+)=", path.read_text()):
      section, name = field.rsplit(".", 1)
      assert name in operator.attrgetter(section)(config_lib.base()), field


def test_a_job_set_is_one_island_that_restarts_as_a_whole():
  island = documents("island.yaml")["JobSet"]["spec"]
  (hosts,) = island["replicatedJobs"]
  job = hosts["template"]["spec"]
  pod = job["template"]["spec"]
  arguments = " ".join(pod["containers"][0]["args"])
  # A pod that dies fails its job at once, and so the set, which starts anew.
  assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
  assert island["failurePolicy"]["maxRestarts"] > 0
  # A mistake in the settings does not: see errors.UserError.
  (rule,) = job["podFailurePolicy"]["rules"]
  assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
  assert island["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
  # Every pod is a process, and knows which one.
  assert job["completionMode"] == "Indexed"
  assert job["parallelism"] == job["completions"]
  assert f"--process_count={job['completions']} " in arguments
  assert '--process_id="$JOB_COMPLETION_INDEX"' in arguments
  assert f"=island-{hosts['name']}-0-0.island:" in arguments
  # The checkpoint is written by all of them.
  claim = documents("island.yaml")["PersistentVolumeClaim"]
  assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_there_is_one_coordinator_at_a_time():
  objects = documents("coordinator.yaml")
  spec = objects["Deployment"]["spec"]
  assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")
  (container,) = spec["template"]["spec"]["containers"]
  ports = {p["name"]: p["containerPort"] for p in container["ports"]}
  served = {
    p["targetPort"]: p["port"] for p in objects["Service"]["spec"]["ports"]
  }
  assert ports == served  # islands are told of the relay at its own port
  assert f"--listen=0.0.0.0:{ports['control']}" in container["args"]
