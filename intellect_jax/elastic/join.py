"""How an island comes to stand at a state of the run.

Its own, from a checkpoint and the log; another island's, which it fetches; or
a new one, if it is the first.
"""

from absl import logging
import grpc

from intellect_jax.elastic import chain, fetching
from intellect_jax.elastic.agent import Agent
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.holdings import Holdings
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.errors import UserError


def resume(
  crew: Crew, held: Holdings, replay: bool = True, to: int | None = None
) -> bool:
  """Goes back to the newest whole checkpoint that counts. Whether there is one.

  Args:
    crew: the island's processes.
    held: of this one.
    replay: go on through the log.
    to: the newest record to stand at; None: any.
  """
  checkpoint = held.resumable(to)
  if checkpoint is None:
    return False
  record = checkpoint
  if replay:
    reach = crew.reach(checkpoint)
    record = reach if to is None else min(reach, to)
  restore = ipb.RestoreCheckpoint(checkpoint=checkpoint, record=record)
  crew.order(ipb.Order(restore=restore))
  return True


def initialise(crew: Crew, agent: Agent) -> None:
  """Makes record 0's state; every other island fetches these very bits.

  Raises:
    UserError: if the run starts from weights that this island has not.
  """
  crew.order(ipb.Order(initialise=ipb.Initialise()))
  agent.initialised(crew.offer())
  agent.news.wait(lambda: len(agent.news.adopted) > 0, "record 0")


def take_over(
  crew: Crew, held: Holdings, agent: Agent, offer: pb.Restore
) -> list[pb.Record] | None:
  """Stands at a state that another island serves; x becomes its theta.

  Returns:
    The records up to there; None if the state could not be fetched, which the
    coordinator is told.

  Raises:
    UserError: if it is a state of another model.
  """
  length = held.outer.bytes
  if offer.state.length != length:
    raise UserError(
      f"The run's state has {offer.state.length} bytes, but this model's has"
      f" {length}: the configs differ. Start without --config."
    )
  try:
    fetched = crew.fetch(offer.state, agent.closing)
  except fetching.FetchError as error:
    logging.warning("Could not fetch a state: %s", error)
    failed = pb.FetchFailed(peer=error.peer, reason=error.reason)
    agent.say(fetch_failed=failed)
    return None
  log = agent.get_log()[: offer.record + 1]
  records = [pb.Record.FromString(sealed.body) for sealed in log]
  stand = ipb.Stand(record=records[-1], fetched=fetched)
  crew.order(ipb.Order(stand=stand))
  agent.stand_at(offer.record, log)  # from here on it may serve that state
  return records


def go_back(
  crew: Crew, held: Holdings, agent: Agent, cause: str, to: int
) -> bool:
  """Stands at a state of this island's own, from before what does not count.

  With the moments of the checkpoint. If it has none, the coordinator is told.

  Args:
    crew: the island's processes.
    held: of this one.
    agent: speaks with the coordinator.
    cause: why it goes back.
    to: the newest of its own that does; -1: what the coordinator's log says.

  Returns:
    Whether it has such a state.
  """
  if to < 0:
    to = _last_in_common(held, agent)
  went = to >= 0 and resume(crew, held, to=to)
  if went:
    agent.stand_at(held.record.number)
  else:
    agent.stand_nowhere(f"it has no older state: {cause}")
  return went


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
