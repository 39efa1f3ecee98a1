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
from intellect_jax.elastic.history import Moment, moments
from intellect_jax.elastic.state import OuterState
from intellect_jax.errors import UserError

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
  reached: list[int] = []
  state = OuterState(0)
  for moment in moments(workdir):
    if moment.restored and reached:
      break  # a gap: what is after it is not replayed
    state = moment.state
    reached.append(state.record)
    print(_line(moment))
    if state.record == to:
      return state
  if to is not None:
    raise UserError(
      f"The log in {workdir} reaches from record {reached[0]} to {reached[-1]},"
      f" and {to} is not among them. Another island's may: each keeps what its"
      " own checkpoints need (island.checkpoint.keep)."
    )
  return state


def _line(moment: Moment) -> str:
  number = moment.state.record
  told = "no record after it to compare with"
  if moment.confirmed:
    told = f"as record {number + 1} names it"
  line = f"record {number:5d}  {moment.hash.hex()[:16]}…  {told}"
  return f"{line}  (a checkpoint)" if moment.restored else line


if __name__ == "__main__":
  command.run(main)
