"""How an island comes to stand at a state of the run.

Its own, from a checkpoint and the log; another island's, which it fetches; or
a new one, if it is the first.
"""

from absl import logging
import grpc
import jax
from ml_collections import ConfigDict
import numpy as np

from intellect_jax.checkpoint.pretrained import Weights
from intellect_jax.elastic import blobs, chain
from intellect_jax.elastic.agent import Agent
from intellect_jax.elastic.holdings import Holdings
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.errors import UserError
from intellect_jax.inner.step import TrainState, TrainStep


def initialise(held: Holdings, agent: Agent, state: TrainState) -> None:
  """Makes record 0's state; every other island fetches these very bits."""
  theta = held.layout.flatten(state.params)
  both = np.concatenate([theta, np.zeros_like(theta)])
  held.stand_at(pb.Record(islands=1), both)
  agent.initialised(held.offer())
  agent.news.wait(lambda: len(agent.news.adopted) > 0, "record 0")


def initial_state(
  run: ConfigDict, train_step: TrainStep, weights: Weights | None
) -> TrainState:
  """Random, or from given weights; always with zero moments.

  Raises:
    UserError: if the run starts from weights that this island has not.
  """
  if not run.init_from:
    return train_step.init(jax.random.key(run.seed))
  if weights is None:
    raise UserError(
      f"This run starts from given weights ({run.init_from[:12]}…), and this"
      " island is its first. Start it with --init-from=FOLDER, as the"
      " coordinator was; the islands after it need no folder."
    )
  return train_step.from_params(weights.read(train_step.abstract_state.params))


def take_over(
  held: Holdings, agent: Agent, offer: pb.Restore
) -> list[pb.Record] | None:
  """Stands at a state that another island serves.

  Returns:
    The records up to there; None if the state could not be fetched, which the
    coordinator is told.
  """
  try:
    both = held.fetch(offer.state, agent.closing)
  except blobs.FetchError as error:
    logging.warning("Could not fetch a state: %s", error)
    failed = pb.FetchFailed(peer=error.peer, reason=error.reason)
    agent.say(fetch_failed=failed)
    return None
  log = agent.get_log()[: offer.record + 1]
  agent.stand_at(offer.record, log)
  records = [pb.Record.FromString(sealed.body) for sealed in log]
  held.stand_at(records[-1], both)
  return records


def go_back(
  held: Holdings, agent: Agent, record: int, to: int
) -> TrainState | None:
  """Stands at a state of this island's own, from before `record`.

  Args:
    record: that it stood at, and that does not count.
    to: the newest of its own that does; -1: what the coordinator's log says.

  Returns:
    The state there, with the moments of the checkpoint; None if it has none,
    which the coordinator is told.
  """
  state = None
  if to < 0:
    to = _last_in_common(held, agent)
  if to >= 0:
    state = held.restore(to=to)
  if state is None:
    agent.stand_nowhere(f"record {record}, at which it stands, was annulled")
  else:
    agent.stand_at(held.record.number)
  return state


def _last_in_common(held: Holdings, agent: Agent) -> int:
  """The newest record of this island that is in the run's chain; or -1."""
  try:
    log = agent.get_log()
  except grpc.RpcError as error:
    logging.warning("Reading the log failed: %s", error)
    return -1
  records = [pb.Record.FromString(sealed.body) for sealed in log]
  counting = {record.number for record in chain.effective(records)}
  common = -1
  for number, sealed in enumerate(log):
    own = held.log.record(number)
    if own is None or own.hash != sealed.hash:
      break
    common = number if number in counting else common
  return common
