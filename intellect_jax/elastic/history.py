"""The states that an island's disk can build again, one after the other.

Each is what training had, bit for bit: a checkpoint, and from there the records
of the log, applied by the very kernels of the training.
"""

from collections.abc import Iterator
import pathlib
from typing import NamedTuple

import numpy as np

from intellect_jax.checkpoint import durable
from intellect_jax.elastic import chain
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.state import OuterState
from intellect_jax.errors import UserError
from intellect_jax.outer.average import Average, Part
from intellect_jax.outer.codec import make_codec


class Moment(NamedTuple):
  """A state, and how it was come by."""

  state: OuterState  # moved on by the next moment: copy what is to stay
  record: pb.Record  # that it stands at; empty if the log has not got that
  restored: bool  # from a checkpoint, and not by applying the record
  hash: bytes  # of the state
  confirmed: bool  # the next record names the same hash


def moments(workdir: pathlib.Path) -> Iterator[Moment]:
  """Yields all states from the oldest checkpoint on.

  Where the log has a gap they go on from the next checkpoint after it.
  Checkpoints of records that were annulled are passed over.

  Raises:
    UserError: if there is no checkpoint; or a state is not what the next record
      says that it was.
  """
  log = RecordLog(workdir / "log")
  folder = workdir / "checkpoints"
  known = {r.number: r for r in chain.effective(log.records())}
  reached = -1
  for number in durable.records(folder):
    annulled = number not in known and number <= max(known, default=-1)
    if annulled or number <= reached:
      continue
    outer = durable.read_outer(folder, number)
    state = OuterState(len(outer.theta))
    state.replace(np.concatenate([outer.theta, outer.momentum]), number)
    yield _moment(log, state, known.get(number, pb.Record()), True)
    for record in log.after(number):
      move(log, state, record)
      yield _moment(log, state, record, False)
    reached = state.record
  if reached < 0:
    raise UserError(
      f"All checkpoints in {folder} are of records that were rolled back. Start"
      " the island again: it restores what counts."
    )


def move(log: RecordLog, state: OuterState, record: pb.Record) -> None:
  """Moves a state by the next record, whose mean the log has."""
  if record.HasField("step"):
    mean = log.mean(record.number)
    assert mean is not None, f"record {record.number} is here without its mean"
    state.apply(record, mean, make_codec(record.step.codec))
  else:  # changed settings, which move nothing
    state.advance(record.number)


def average(
  workdir: pathlib.Path, to: int, part: Part, newest: int | None = None
) -> tuple[np.ndarray, list[int]]:
  """The average of theta over the outer steps up to record `to`.

  Args:
    workdir: of an island.
    to: a record.
    part: which average.
    newest: steps that count; None: all that the disk can build again.

  Returns:
    A canonical vector, float32, and the records that it is over.

  Raises:
    UserError: as `moments`; or if the disk has fewer than `newest`, or than 2.
  """
  known = chain.effective(RecordLog(workdir / "log").records())
  stands = {r.number for r in known if not _moves(r)}
  numbers = {r.number for r in known if _moves(r)}
  numbers.update(durable.records(workdir / "checkpoints"))
  wanted = sorted(n for n in numbers - stands if n <= to)[-(newest or 0) :]
  found, total = [], Average(part)
  for moment in moments(workdir):
    number = moment.state.record
    if number > to:
      break
    if number in wanted:
      found.append(number)
      total.add(moment.state.theta)
  if len(found) < (newest or 2):
    raise UserError(
      f"The average is to be over {newest or 'at least 2'} records up to {to},"
      f" and {workdir} can build again {len(found)} of them: {found}. An island"
      " keeps the records since its oldest checkpoint: let it have more, or"
      " older ones, with --config.island.checkpoint.keep=… and …every=…."
    )
  return total.value, found


def _moves(record: pb.Record) -> bool:
  return record.HasField("step") or record.HasField("genesis")


def _moment(
  log: RecordLog, state: OuterState, record: pb.Record, restored: bool
) -> Moment:
  """Compares a state with the base of the record after it."""
  number, manifest = state.manifest()
  sealed = log.record(number + 1)
  following = pb.Record.FromString(sealed.body if sealed else b"")
  told, step, found = following.HasField("step"), following.step, manifest.id
  if step.blocks:
    block = make_codec(step.codec).block
    places = [(run.start * block, run.stop * block) for run in step.blocks]
    found = state.fragment_hash(places)
  if told and step.base_state != found:
    raise UserError(
      f"The state rebuilt at record {number} hashes to {found.hex()},"
      f" but record {number + 1} names {following.step.base_state.hex()}: the"
      " checkpoint or the log is damaged."
    )
  return Moment(state, record, restored, manifest.id, told)
