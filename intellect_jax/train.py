"""Train: one island, alone or in a swarm.

  python -m intellect_jax.train --config=configs/demo.py --workdir=runs/alone
  python -m intellect_jax.train --coordinator=host:port --workdir=runs/island

Alone, the island is its own coordinator. In a swarm the run half of the config
comes from the coordinator, and only --config.island.… fields are set here. An
interrupted run goes on where it was: start it again with the same workdir.

An island that spans hosts is one such process on each, with one workdir that
all of them see (deploy/ has it for Slurm and Kubernetes):

  … --process_count=2 --process_id=1 --island_coordinator=first-host:7700
"""

import contextlib
import signal
from typing import Any

from absl import flags

from intellect_jax import command
from intellect_jax import config as config_lib
from intellect_jax.checkpoint import adapters
from intellect_jax.checkpoint.pretrained import Weights
from intellect_jax.data import chat
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.texts import identify
from intellect_jax.data.tokenizer import keep_file, tokenizer_of
from intellect_jax.elastic import rpc, team
from intellect_jax.elastic.describe import describe
from intellect_jax.elastic.host import Host
from intellect_jax.elastic.identity import Identity, run_of
from intellect_jax.elastic.mate import Mate
from intellect_jax.elastic.mesh import ElasticDeviceMesh
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.service import CoordinatorService
from intellect_jax.errors import UserError
from intellect_jax.inner.step import EvalStep, TrainStep
from intellect_jax.model import sharding
from intellect_jax.observe.island import IslandReport
from intellect_jax.observe.profile import Profile
from intellect_jax.observe.speed import Speed
from intellect_jax.outer import kernels

CONFIG = command.define_config()
WORKDIR = command.define_workdir("this island's log, checkpoints and metrics")
COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "host:port of a swarm's coordinator, or several with commas, tried in turn;"
  " none: train alone",
)
INIT_FROM = command.define_init_from()
INSECURE = command.define_insecure()
PROCESS_COUNT = flags.DEFINE_integer(
  "process_count",
  1,
  "Processes of this island, one a host; 0: as many as Slurm has started.",
  lower_bound=0,
)
PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this is, from 0; none: as Slurm counts."
)
ISLAND_COORDINATOR = flags.DEFINE_string(
  "island_coordinator",
  None,
  "host:port on the host of the island's process 0, where all of them meet.",
)
PROFILE_STEPS = flags.DEFINE_string(
  "profile_steps",
  "",
  "First:last, such as 10:15: write a trace of these steps to the workdir.",
)


def main() -> None:
  config = command.config_of(CONFIG)
  weights = command.weights(INIT_FROM, config)
  workdir = command.path(WORKDIR)
  credentials = rpc.Credentials(insecure=INSECURE.value)
  coordinators = rpc.split_list(COORDINATOR.value or "")
  island, data = config.island, config.island.data
  command.set_up_jax(island)
  description = None
  with contextlib.ExitStack() as stack:
    crew = stack.enter_context(
      team.join(PROCESS_COUNT.value, PROCESS_ID.value, ISLAND_COORDINATOR.value)
    )
    # What can be wrong with the settings shows before anything is written.
    if coordinators and crew.leads:
      patience = island.connect_patience
      run_id = run_of(workdir)
      description = describe(coordinators, credentials, patience, run_id)
    if coordinators:
      description = _told(crew, description)
      run = _run_half(config, description)
    else:
      identify(config)
      run = config.run
    credentials = credentials.for_lease(run.elastic.lease_seconds)
    config_lib.validate_island(run, island)
    tokenizer = tokenizer_of(run, data.folder)
    index = GlobalIndex(run.data, tokenizer, data)
    if weights is not None:
      weights.check(run, data.folder)
    devices = sharding.make_mesh(island.mesh.fsdp, island.mesh.tensor)
    train_step = TrainStep(run, island, devices)
    frozen = _frozen(train_step, weights)
    crew.check_shared(workdir)
    start = run, island, crew, workdir, train_step, index, weights, credentials
    if not crew.leads:
      _follow(*start)
      return

    profile = stack.enter_context(
      Profile(workdir / "profile", PROFILE_STEPS.value)
    )
    identity = Identity(workdir, island.name)
    stack.callback(identity.close)
    if description is None:
      service = CoordinatorService(run, workdir / "coordinator")
      stack.callback(service.close)
      coordinators, description = [service.address], service.description()
    identity.check_run(description.run_id)
    crew.same(identity.island.encode())
    crew.same(coordinators[0].encode())
    _told(crew, description)
    keep_file(run.data.tokenizer, data.folder, workdir)
    if run.data.chat_template:
      (workdir / chat.FILE).write_text(run.data.chat_template)
    if weights is not None:
      adapters.note(weights, workdir)
    speed = Speed(run, island, list(devices.devices.flat))
    report = stack.enter_context(
      IslandReport(workdir, run, speed, index.figures)
    )
    report.compiled(train_step.compile())
    kernels.compile_all()

    mesh = stack.enter_context(
      ElasticDeviceMesh(
        run,
        island,
        identity,
        train_step,
        index,
        _evaluator(run, island, devices, index, frozen, train_step.frozen),
        coordinators,
        description,
        credentials,
        alone=not COORDINATOR.value,
        weights=weights,
        team=crew,
      )
    )
    for signum in (signal.SIGINT, signal.SIGTERM):
      signal.signal(signum, lambda *_: mesh.stop())
    if mesh.state is None:
      print("The run is over: it has all its tokens.")
      return
    report.joined(mesh)
    state = mesh.state
    for batch in mesh.batches():
      profile.before_step(state)
      state, metrics = train_step(state, batch, mesh.schedule())
      state = mesh.after_step(state, metrics)
      report.take(mesh.events)
    report.finish(mesh)


def _follow(
  run, island, crew, workdir, train_step, index, weights, credentials
) -> None:
  """What a process other than the first does: what that one wants."""
  mate = Mate(crew.same().decode())
  coordinator = crew.same().decode()
  description = _told(crew, None)
  train_step.compile()
  kernels.compile_all()
  with Host(
    run,
    island,
    crew,
    mate.island,
    workdir,
    description.run_id,
    train_step,
    index,
    weights,
    credentials,
    mate.add_to,
  ) as host:
    mate.part = host.part
    host.open(list(description.relays), coordinator)
    crew.each(host.inner.address)
    for signum in (signal.SIGINT, signal.SIGTERM):
      signal.signal(signum, signal.SIG_IGN)  # process 0 leaves for all
    mate.follow(host.replica.do)


def _told(crew: team.Team, description: pb.Description | None):
  """The description that process 0 has, on every process."""
  own = b"" if description is None else description.SerializeToString()
  return pb.Description.FromString(crew.same(own))


def _run_half(config, description):
  """The run half, from the coordinator; an explicit one must be the same."""
  run = config_lib.from_json(description.run_json)
  given = flags.FLAGS["config"].present or any(
    field.startswith("run.") for field in command.overridden()
  )
  if given:
    identify(config)
  if given and config_lib.digest(config.run) != description.run_digest:
    raise UserError(
      f"The run half of the config given here has digest"
      f" {config_lib.digest(config.run)[:12]}, the coordinator's"
      f" {description.run_digest[:12]}: they are different runs. Leave out"
      " --config and --config.run.…: the coordinator has them. Fields of this"
      " island alone are set by --config.island.…"
    )
  return run


def _frozen(train_step: TrainStep, weights: Weights | None) -> Any:
  """The weights that a run keeps, on the host; they are on the mesh then."""
  if train_step.abstract_frozen is None:
    return None
  if weights is None:
    raise UserError(
      "This run keeps the weights that it starts from, for DPO or beside"
      " adapters. Start every island with --init-from=FOLDER."
    )
  frozen = weights.read(train_step.abstract_frozen)
  train_step.freeze(frozen)
  return frozen


def _evaluator(run, island, devices, index, frozen, on_mesh):
  sequences = run.evaluation.sequences
  if not sequences:
    return None
  batches = index.held_out(sequences, run.inner.batch_size)
  local = sharding.local_mesh(devices)
  kept = on_mesh if local is devices else frozen  # not twice on one device
  evaluate = EvalStep(run, island, local, kept)
  return lambda params: evaluate.figures(params, batches)


if __name__ == "__main__":
  command.run(main)
