"""Errors planted in the code, to see that the invariants find them.

make simulate-plants
"""

from collections.abc import Callable
import contextlib
import sys
from unittest import mock

from intellect_jax.elastic import (
  actions,
  books,
  coordination,
  membership,
  round,
  rounds,
  samples,
)
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from simulation import island as island_lib
from simulation.invariants import hash_of
from simulation.run import simulate

MOST_SEEDS = 1000

Plant = Callable[[], contextlib.AbstractContextManager]


def skip_the_term_fence():
  """A coordinator goes on when an island has seen a higher term."""
  handle = coordination.Coordinator.handle

  def deaf(self, session: int, message: pb.FromIsland, now: float):
    message.term = 0
    return handle(self, session, message, now)

  return mock.patch.object(coordination.Coordinator, "handle", deaf)


def skip_the_eviction():
  """Who was evicted comes back as if nothing had been."""
  admit = membership.Membership.admit

  def forgiving(self, hello, session, now):
    member, replaced, _ = admit(self, hello, session, now)
    return member, replaced, False

  return mock.patch.object(membership.Membership, "admit", forgiving)


def commit_before_prepare():
  """The record is written as soon as the mean is fixed."""
  return mock.patch.object(
    round.CoordinatorRound, "complete", lambda self: self._fix is not None
  )


def reuse_the_old_divisor():
  """A later attempt divides by the weights of the first."""
  first: dict[bytes, float] = {}

  def mean_id(members, start, stop, deltas) -> bytes:
    total = first.setdefault(deltas[0], sum(m.weight for m in members))
    who = [(m.island, m.incarnation, m.weight, m.clip) for m in members]
    return hash_of(who, deltas, total, (start, stop))

  return mock.patch.object(island_lib, "mean_id", mean_id)


def drop_the_carry():
  """An island that a record leaves out forgets what it has trained."""
  decide = island_lib.Island.decide

  def forgetful(self, record: pb.Record) -> None:
    decide(self, record)
    self.carried = []

  return mock.patch.object(island_lib.Island, "decide", forgetful)


def announce_before_durable():
  """Islands hear of a record, then it is written."""
  append = books.Books.append

  def hasty(self, record: pb.Record, now: float) -> None:
    append(self, record, now)
    said = self._outbox._actions
    last = next(a for a in said[::-1] if isinstance(a, actions.Append))
    said.remove(last)
    said.append(last)

  return mock.patch.object(books.Books, "append", hasty)


def adopt_without_the_chain():
  """An island takes any record that has the next number."""
  adopt = round.IslandRound._adopt

  def trusting(self):
    self._tip = round._Tip(self._tip.number)
    return adopt(self)

  return mock.patch.object(round.IslandRound, "_adopt", trusting)


def lease_anew_when_asked_again():
  """A repeated request gets other samples, and the first are forgotten."""
  lease = samples.SamplePool.lease

  def anew(self, holder, count):
    self.leased.pop(holder, None)
    return lease(self, holder, count)

  return mock.patch.object(samples.SamplePool, "lease", anew)


def commit_twice():
  """Windows that are no longer leased may be proposed all the same."""
  return mock.patch.object(
    samples.SamplePool, "holds", lambda self, holder, consumed: True
  )


def plan_on_an_old_base():
  """A proposal counts, whatever record its delta starts from."""
  on_proposal = rounds.Rounds.on_proposal

  def lenient(self, member, proposal: pb.Proposal, now: float) -> None:
    proposal.base = self.number - 1
    on_proposal(self, member, proposal, now)

  return mock.patch.object(rounds.Rounds, "on_proposal", lenient)


PLANTS: list[Plant] = [
  skip_the_term_fence,
  skip_the_eviction,
  commit_before_prepare,
  reuse_the_old_divisor,
  drop_the_carry,
  announce_before_durable,
  adopt_without_the_chain,
  lease_anew_when_asked_again,
  commit_twice,
  plan_on_an_old_base,
]


def find(plant: Plant, most: int = MOST_SEEDS) -> tuple[int, str] | None:
  """Seeds until an invariant broke, and what it said; None: never."""
  for seed in range(most):
    with plant():
      try:
        simulate(seed)
      except AssertionError as error:
        return seed + 1, str(error)[:100]
  return None


if __name__ == "__main__":
  missed = 0
  for planted in PLANTS:
    found = find(planted)
    missed += found is None
    seeds, said = found or (MOST_SEEDS, "NOT FOUND")
    name = planted.__name__.replace("_", " ")
    print(f"{name:30} {seeds:5}  {said}", flush=True)
  sys.exit(1 if missed else 0)
