"""An island that stops where it is to be killed.

  python stopping.py reduce@2 --coordinator=… --workdir=…

is a train command in which the second call of that work never goes on. All
else does: it trains, serves its blobs and renews its lease.
"""

import functools
import itertools
import sys
import threading

from intellect_jax import command, train
from intellect_jax.checkpoint.durable import DurableCheckpoints
from intellect_jax.elastic.part import Part
from intellect_jax.elastic.reduce import Exchange

WORK = dict(
  reduce=(Exchange, "reduce_share"),  # its own share of a mean
  gather=(Exchange, "gather"),  # the others' shares
  adopt=(Part, "_adopt"),  # a record is committed
  save=(DurableCheckpoints, "_publish"),  # Orbax is writing
)


def stopped(where: str) -> str:
  """The line that such a process says when it has stopped."""
  return f"stopped in {where}"


def stop_in(where: str) -> None:
  name, nth = where.split("@")
  owner, method = WORK[name]
  work, calls = getattr(owner, method), itertools.count(1)

  @functools.wraps(work)
  def stopping(*arguments):
    if next(calls) == int(nth):
      print(stopped(where), flush=True)
      threading.Event().wait()
    return work(*arguments)

  setattr(owner, method, stopping)


if __name__ == "__main__":
  stop_in(sys.argv.pop(1))
  command.run(train.main)
