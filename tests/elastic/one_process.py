"""One process of an island by itself: real holdings, x and orders, no network."""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax

from intellect_jax import config as config_lib
from intellect_jax.elastic import chain, replica, rpc
from intellect_jax.elastic.host import Host
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.elastic.team import Team
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import sharding
from intellect_jax.outer import kernels


def host(
  folder: pathlib.Path,
  codec: str,
  scan_layers: bool = True,
  model: Mapping[str, int] = {},
  fragments: int = 1,
) -> Host:
  """With a state, of which x has gone from theta; `model`: of its fields."""
  kernels.compile_all()
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  run, island = config.run, config.island
  run.model.update(model)
  run.outer.update(codec=codec, fragments=fragments)
  if codec == "sparse2":
    run.outer.update(learning_rate=1.0, momentum=0.0)
  island.model.scan_layers = scan_layers
  step = TrainStep(run, island, sharding.make_mesh(devices=jax.devices()[:1]))
  nothing: Any = None  # it takes no steps, and needs no samples
  made = Host(
    *(run, island, Team(), "ada", folder, "run", step),
    *(nothing, nothing, rpc.LOOPBACK),
  )
  made.replica.do(ipb.Order(initialise=ipb.Initialise()))
  move(made, 0.125)
  return made


def move(made: Host, by: float) -> None:
  """As if by inner steps."""
  state = made.replica.state
  params = jax.tree.map(lambda x: x + by, state.params)
  made.replica.state = state._replace(params=params)


def freeze(
  made: Host, keep_x: bool = False, eager: ipb.Eager | None = None
) -> None:
  order = ipb.Freeze(keep_x=keep_x, eager=eager)
  made.replica.do(ipb.Order(freeze=order))


def committed(made: Host) -> pb.Record:
  """A record whose mean is the delta that was frozen; it is in the log."""
  held, length = made.held, made.held.mean_bytes[0]
  _, _, codes = made.part._kept[replica.delta_name(0)]
  attempt = b"attempt"
  held.shelf.open(attempt, length)[:] = codes
  step = pb.OuterStep(
    attempt=attempt, codec=held.codec.name, learning_rate=0.5, momentum=0.5
  )
  step.members.add(island="ada", weight=1.0, clip=1.0)
  record = pb.Record(number=1, step=step, islands=1)
  held.shelf.adopt(chain.seal(record))
  return record
