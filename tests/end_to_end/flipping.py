"""An island in whose theta a bit flips, after record 2 and after the last.

  python flipping.py --coordinator=… --workdir=…

is such a train command; all else is as always.
"""

import functools

import numpy as np

from intellect_jax import command, train
from intellect_jax.elastic.holdings import Holdings
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.state import OuterState, runs_of
from intellect_jax.outer.codec import Codec

AT = 2  # and at the final record


def flip_bits() -> None:
  """Flips a bit of what a record has moved here, not in a replay."""
  apply = Holdings.apply

  @functools.wraps(apply)
  def flipping(held: Holdings, record: pb.Record) -> None:
    move = held.outer.apply

    def move_and_flip(record: pb.Record, data: np.ndarray, codec: Codec):
      move(record, data, codec)
      if record.number == AT or record.final:
        (start, _), *_ = runs_of(record.step, held.outer.theta.size, codec)
        held.outer.theta.view(np.uint32)[start * codec.block] ^= 1
        print(f"flipped a bit at record {record.number}", flush=True)

    held.outer.apply = move_and_flip
    try:
      apply(held, record)
    finally:
      held.outer.apply = functools.partial(OuterState.apply, held.outer)

  Holdings.apply = flipping


if __name__ == "__main__":
  flip_bits()
  command.run(train.main)
