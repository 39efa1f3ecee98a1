"""What every process of an island has, whether it leads or follows.

Process 0 leads: it is an ElasticDeviceMesh, and its folder is the island's
workdir. The others are mates; their folders lie in it.
"""

from collections.abc import Callable, Sequence
import pathlib

import grpc
from ml_collections import ConfigDict

from intellect_jax.checkpoint.pretrained import Weights
from intellect_jax.data.index import GlobalIndex
from intellect_jax.elastic import reduce, rpc
from intellect_jax.elastic.holdings import Holdings
from intellect_jax.elastic.inner import InnerNetwork
from intellect_jax.elastic.part import Part
from intellect_jax.elastic.reach import Reach
from intellect_jax.elastic.replica import Replica
from intellect_jax.elastic.team import Team
from intellect_jax.inner.step import TrainStep
from intellect_jax.outer.device_codec import delta_encoder


class Host:
  """The holdings, the network and the devices of one process.

  Attributes:
    held: theta and b, log and checkpoints.
    part: its part in the exchange.
    replica: its part of x, and what moves it.
    inner: the network inside the island.
    reach: the ways for other islands, once they are open.
  """

  def __init__(
    self,
    run: ConfigDict,
    island: ConfigDict,
    team: Team,
    name: str,
    workdir: pathlib.Path,
    run_id: str,
    train_step: TrainStep,
    index: GlobalIndex,
    weights: Weights | None,
    credentials: rpc.Credentials,
    add_services: Callable[[grpc.Server], None] = lambda server: None,
  ):
    """Opens what the workdir has.

    Args:
      run: the run half of the config, as the coordinator serves it.
      island: this island's half.
      team: the island's processes.
      name: of the island.
      workdir: of the island.
      run_id: of the run.
      train_step: compiled already, so that a join is quick.
      index: the global sample index.
      weights: that the run starts from, if it does and they are here.
      credentials: for servers and channels.
      add_services: adds what the other processes may call.

    Raises:
      UserError: if the workdir has checkpoints of another run.
    """
    self._island = island
    self._team = team
    self._credentials = credentials
    self.reach: Reach | None = None
    self._name = name
    self.held = held = Holdings(
      run, island, name, team, workdir, train_step, run_id, credentials
    )
    self.inner = InnerNetwork(
      team.process,
      team.processes,
      team.host,
      credentials,
      run.elastic.fetch_patience,
      add_services,
    )
    self.part = Part(
      reduce.Exchange(held.codec, held.store, held.fetcher),
      held.shelf,
      held.log,
      held.mean_bytes,
      self.inner,
      held.offer,
    )
    self.replica = Replica(
      run,
      held,
      self.part,
      train_step,
      index,
      weights,
      delta_encoder(
        island.encode_on_device, held.codec, held.layout, train_step.mesh
      ),
    )

  def open(self, relays: Sequence[str], coordinator: str) -> None:
    """Serves what is here to other islands.

    Args:
      relays: host:port of each.
      coordinator: host:port.

    Raises:
      UserError: if there is no way to reach this process.
    """
    self.reach = Reach(
      self.held.store,
      self._team.name(self._name),
      self._island.listen,
      self._island.advertise,
      relays,
      coordinator,
      self._credentials,
    )
    self.held.serve_log()

  def use_relays(self, relays: Sequence[str]) -> bool:
    """Goes on with these relays. Whether that is a change; see `Reach.use`."""
    return self.reach is not None and self.reach.use(relays)

  def __enter__(self) -> "Host":
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self.reach is not None:
      self.reach.close()
    self.part.close()
    self.inner.close()
    # If the others are gone, a checkpoint will never be whole.
    self.held.close(wait=error is None or self._team.processes == 1)
