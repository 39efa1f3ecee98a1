"""Rebuild theta and b at any record that an island's log reaches.

  python -m intellect_jax.replay --workdir=runs/demo/island-0 --to=7

Starts from the oldest checkpoint that is kept, applies the records after it
with the very kernels of the training, and compares each state hash with the
one that the next record holds.
"""

import pathlib

from absl import flags
import numpy as np

from intellect_jax import command
from intellect_jax.checkpoint.durable import read_outer
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.state import OuterState, runs_of
from intellect_jax.errors import UserError
from intellect_jax.outer.codec import make_codec

WORKDIR = command.define_workdir("an island that has trained")
TO = flags.DEFINE_integer(
  "to", None, "Record to stop at; none: the newest in the log.", 0
)
OUTPUT = command.define_output(
  "Where to write theta and momentum, as a .npz file.", required=False
)


def main() -> None:
  state = replay(command.path(WORKDIR), TO.value)
  if OUTPUT.value is not None:
    path = pathlib.Path(OUTPUT.value)
    np.savez(path, theta=state.theta, momentum=state.momentum)
    print(f"theta and momentum are in {path}")


def replay(workdir: pathlib.Path, to: int | None) -> OuterState:
  """Returns the state at record `to`, and prints how it got there.

  Raises:
    UserError: if the log does not reach that record, or a hash differs.
  """
  log = RecordLog(workdir / "log")
  outer = read_outer(workdir / "checkpoints", oldest=True)
  state = OuterState(len(outer.theta))
  state.replace(np.concatenate([outer.theta, outer.momentum]), outer.record)
  print(f"record {outer.record:5d}  from the checkpoint")
  _check(log, state)
  for record in log.after(outer.record):
    if to is not None and record.number > to:
      break
    if record.HasField("step"):
      mean = log.mean(record.number)
      assert mean is not None
      state.apply(record, mean, make_codec(record.step.codec))
    else:  # changed settings, which move nothing
      state.advance(record.number)
    _check(log, state)
  if to is not None and state.record != to:
    raise UserError(
      f"The log in {workdir} reaches from record {outer.record} to"
      f" {state.record}, and {to} is not among them. Another island's may: each"
      " keeps what its own checkpoints need (island.checkpoint.keep)."
    )
  return state


def _check(log: RecordLog, state: OuterState) -> None:
  """Prints the state hash, and compares it with the next record's base."""
  number = state.record
  following = log.record(number + 1)
  record = pb.Record.FromString(following.body if following else b"")
  step = record.step
  codec = make_codec(step.codec or "int8")
  runs = runs_of(step, len(state.theta), codec)
  found = state.fragment_hash(
    [(a * codec.block, b * codec.block) for a, b in runs]
  )
  if not record.HasField("step"):
    verdict = "no record after it to compare with"
  elif step.base_state != found:
    raise UserError(
      f"The state rebuilt at record {number} hashes to {found.hex()},"
      f" but record {number + 1} names {record.step.base_state.hex()}: the"
      " checkpoint or the log is damaged."
    )
  else:
    verdict = f"as record {number + 1} names it"
  print(f"record {number:5d}  {found.hex()[:16]}…  {verdict}")


if __name__ == "__main__":
  command.run(main)
