"""How an island comes to stand at a state of the run.

Its own, from a checkpoint and the log; another island's, which it fetches; or
a new one, if it is the first.
"""

from collections.abc import Callable

from absl import logging
import grpc

from intellect_jax.elastic import chain, fetching
from intellect_jax.elastic.agent import Agent
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.holdings import Holdings
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.errors import UserError

_RETRY = 1.0  # seconds before the log is asked for again


def resume(
  crew: Crew, held: Holdings, replay: bool = True, to: int | None = None
) -> bool:
  """Goes back to the newest whole checkpoint that counts. Whether there is one.

  One that turns out to be damaged is set aside, and an older one is tried.

  Args:
    crew: the island's processes.
    held: of this one.
    replay: go on through the log.
    to: the newest record to stand at; None: any.
  """
  while (checkpoint := held.resumable(to)) is not None:
    record = checkpoint
    if replay:
      reach = crew.reach(checkpoint)
      record = reach if to is None else min(reach, to)
    restore = ipb.RestoreCheckpoint(checkpoint=checkpoint, record=record)
    own, *_ = crew.order(ipb.Order(restore=restore))
    if not own.failure:
      return True
    logging.error("%s", own.failure)  # all processes say so
    held.saves.set_aside(checkpoint)
  return False


def initialise(crew: Crew, agent: Agent, stopping: Callable[[], bool]) -> bool:
  """Makes record 0's state; every other island fetches these very bits.

  Args:
    crew: the island's processes.
    agent: speaks with the coordinator.
    stopping: whether the island is asked to end.

  Returns:
    Whether that is the run's state. If not, another island has been told to
    make it meanwhile, or the run or this island's part in it is over.

  Raises:
    UserError: if the run starts from weights that this island has not.
  """
  crew.order(ipb.Order(initialise=ipb.Initialise()))
  agent.initialised(crew.offer())
  news = agent.news

  def decided() -> bool:
    return bool(news.adopted) or not agent.standing or stopping()

  news.wait(decided, "record 0")
  return bool(news.adopted)


def take_over(
  crew: Crew,
  held: Holdings,
  agent: Agent,
  offer: pb.Restore,
  stopping: Callable[[], bool],
) -> list[pb.Record] | None:
  """Stands at a state that another island serves; x becomes its theta.

  Args:
    crew: the island's processes.
    held: of this one.
    agent: speaks with the coordinator.
    offer: of that state.
    stopping: whether the island is asked to end.

  Returns:
    The records up to there; None if the state could not be fetched, or is not
    in the coordinator's log, which the coordinator is told.

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
  log = _log_up_to(offer.record, agent, stopping)
  if log is None:
    crew.drop(fetched)
    reason = f"the log has no record {offer.record}"
    agent.say(fetch_failed=pb.FetchFailed(reason=reason))
    return None
  records = [pb.Record.FromString(sealed.body) for sealed in log]
  stand = ipb.Stand(record=records[-1], fetched=fetched)
  crew.order(ipb.Order(stand=stand))
  agent.stand_at(offer.record, log)  # from here on it may serve that state
  return records


def _log_up_to(
  record: int, agent: Agent, stopping: Callable[[], bool]
) -> list[pb.SealedRecord] | None:
  """From the coordinator, also from one that has yet to be started again.

  None: its log does not reach so far, or nobody needs it any more.
  """
  news = agent.news
  while not (news.finished or stopping()):
    try:
      log = agent.get_log()
      return log[: record + 1] if len(log) > record else None
    except grpc.RpcError as error:
      logging.info("Reading the log failed: %s", error)
      news.wait(stopping, "the log", _RETRY)
  return None


def go_back(
  crew: Crew, held: Holdings, agent: Agent, cause: str, to: int
) -> int | None:
  """Stands at a state of this island's own, from before what does not count.

  With the moments of the checkpoint. If it has none, the coordinator is told.

  Args:
    crew: the island's processes.
    held: of this one.
    agent: speaks with the coordinator.
    cause: why it goes back.
    to: the newest of its own that does; -1: what the coordinator's log says.

  Returns:
    The newest of its own that counts; it may stand before that. None: it has no
    such state.
  """
  if to < 0:
    to = _last_in_common(held, agent)
  went = to >= 0 and resume(crew, held, to=to)
  if went:
    agent.stand_at(held.record.number)
    return to
  agent.stand_nowhere(f"it has no older state: {cause}")
  return None


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
