"""How an island settles from its own disk what its theta and b must be.

It replays its log from a checkpoint of which the chain has the state hash, by
the word of another island: no bit that flipped here since can be in that. What
the replay comes to is right, and the island goes on with it (docs/protocol.md,
4). Without such a checkpoint the replay is only a vote.
"""

from collections.abc import Sequence
from typing import NamedTuple

from absl import logging

from intellect_jax.elastic import chain
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.holdings import Holdings
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb


class Start(NamedTuple):
  """A checkpoint to replay from."""

  checkpoint: int  # record
  agreed: bytes  # its state hash by another island's word; empty: there is none


def starts(
  records: Sequence[pb.Record],
  island: str,
  checkpoints: Sequence[int],
  fragment: int,
) -> list[Start]:
  """Checkpoints that a replay may begin from, the best first.

  The newest that others confirm; without any, the oldest is the likeliest to be
  from before a flip.

  Args:
    records: of the island's log from 0 on, annulled ones too.
    island: whose own word does not count.
    checkpoints: records of those that are here.
    fragment: of theta and b.
  """
  counting = chain.effective(records)
  numbers = {record.number for record in counting}
  found = [
    Start(number, _agreed(counting, number, island, fragment))
    for number in sorted(numbers.intersection(checkpoints))
  ]
  confirmed = [start for start in found if start.agreed]
  return confirmed[::-1] + [start for start in found if not start.agreed]


def _agreed(
  counting: list[pb.Record], number: int, island: str, fragment: int
) -> bytes:
  """The state hash at a record that others have said; empty: nobody has."""
  steps = chain.steps_of(counting, fragment)
  for record in steps:
    if record.number > number:
      others = {member.island for member in record.step.members} - {island}
      return record.step.base_state if others else b""
  return b"" if steps else chain.first_state(counting[0].genesis, fragment)


def recheck(
  crew: Crew, held: Holdings, island: str, wanted: pb.Recheck
) -> pb.Rechecked:
  """Replays the log, and goes on with that if it is sure to be right.

  Args:
    crew: the island's processes.
    held: of this one.
    island: its name.
    wanted: of which fragment, and what its state hash must be, if that is known.

  Returns:
    What the coordinator is to hear. If the fragment was mended, x is still what
    it was.

  Raises:
    RuntimeError: if the island's processes come to different bits.
  """
  record, fragment, right = held.record.number, wanted.fragment, wanted.right
  answer = pb.Rechecked(
    record=record, fragment=fragment, state=held.actual_hash(fragment)
  )
  records, checkpoints = held.log.records(), held.saves.numbers()
  for start in starts(records, island, checkpoints, fragment):
    if start.checkpoint > record or crew.reach(start.checkpoint) < record:
      continue
    order = ipb.Rebuild(
      checkpoint=start.checkpoint,
      record=record,
      agreed=start.agreed,
      right=right,
      fragment=fragment,
    )
    reports = crew.order(ipb.Order(rebuild=order))
    if len({report.rebuilt for report in reports}) > 1:
      raise RuntimeError(
        "The processes of this island replay one log to different bits. It has"
        " to be started again; if it comes back, test the hosts' memory."
      )
    rebuilt = reports[0].rebuilt
    if not rebuilt:
      continue  # the checkpoint itself is not what others had there
    wrong = any(report.state_hash != rebuilt for report in reports)
    logging.warning(
      "Replayed record %d from checkpoint %d: fragment %d is %s.",
      record,
      start.checkpoint,
      fragment,
      "not that" if wrong else "that",
    )
    sure = bool(start.agreed) or rebuilt == right
    if sure or not answer.rebuilt:
      answer.checkpoint, answer.rebuilt = start.checkpoint, rebuilt
      answer.agreed, answer.mended = bool(start.agreed), wrong and sure
      answer.state = rebuilt if answer.mended else answer.state
    if sure or not right:
      break
  return answer
