"""Errors planted in the code, to see that the invariants find them.

make simulate-plants
"""

from collections.abc import Callable
import concurrent.futures
import contextlib
import math
import sys
from unittest import mock

from intellect_jax.elastic import (
  accounts,
  actions,
  books,
  chain,
  coordination,
  ending,
  membership,
  recovery,
  round,
  rounds,
  samples,
  tie,
  transfers,
  windows,
)
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer import feedback
from simulation import exchange, training
from simulation.run import simulate
from simulation.symbols import hash_of

MOST_SEEDS = 1000

Plant = Callable[[], contextlib.AbstractContextManager]


def skip_the_term_fence():
  """A coordinator goes on when an island has seen a higher term."""
  handle = coordination.Coordinator.handle

  def deaf(self, session: int, message: pb.FromIsland, now: float):
    message.term = 0
    return handle(self, session, message, now)

  return mock.patch.object(coordination.Coordinator, "handle", deaf)


@contextlib.contextmanager
def skip_the_eviction():
  """Who was evicted is not told, neither at its hello nor at a proposal."""
  admit = membership.Membership.admit

  def forgiving(self, hello, session, now):
    member, replaced, _ = admit(self, hello, session, now)
    return member, replaced, False

  with (
    mock.patch.object(membership.Membership, "admit", forgiving),
    mock.patch.object(rounds.Rounds, "_void_windows", lambda *_: None),
  ):
    yield


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

  return mock.patch.object(exchange, "mean_id", mean_id)


def drop_the_carry():
  """An island that a record leaves out forgets what it has trained."""
  decide = training.Training.decide

  def forgetful(self, record: pb.Record) -> None:
    decide(self, record)
    self.windows.drop()
    for x in self._x:
      x.clear()

  return mock.patch.object(training.Training, "decide", forgetful)


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


@contextlib.contextmanager
def adopt_without_the_chain():
  """Numbers count and hashes do not: to islands, nor to who welcomes them.

  Either of the two checks alone suffices, and is not missed.
  """
  adopt = round.IslandRound._adopt

  def trusting(self):
    self._tip = round._Tip(self._tip.number)
    return adopt(self)

  def on_chain(self, number: int, digest: bytes) -> bool:
    return number < len(self.log)

  with (
    mock.patch.object(round.IslandRound, "_adopt", trusting),
    mock.patch.object(chain.Chain, "has", on_chain),
  ):
    yield


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
    proposal.base = self._books.head.number
    on_proposal(self, member, proposal, now)

  return mock.patch.object(rounds.Rounds, "on_proposal", lenient)


def skip_the_chain_in_what_is_taken_over():
  """A coordinator takes any records that an island has after its own."""

  def trusting(last, candidates):
    before = 0 if last is None else pb.Record.FromString(last.body).number + 1
    opened = [(chain.opened(sealed), sealed) for sealed in candidates]
    return [(r, s) for r, s in opened if r is not None and r.number >= before]

  return mock.patch.object(chain, "continuation", trusting)


def change_the_mean_after_it_was_fixed():
  """An owner's later report replaces what everybody was told."""
  share_reduced = round.CoordinatorRound.share_reduced

  def fickle(self, island: str, report: pb.ShareReduced):
    self._fix = None
    report.mean.id = hash_of(report.mean.id, len(self._reduced))
    return share_reduced(self, island, report)

  return mock.patch.object(round.CoordinatorRound, "share_reduced", fickle)


def go_on_without_bytes_that_are_needed():
  """A member that dies before the mean is fixed is not missed."""
  gone = round.CoordinatorRound.gone

  def careless(self, island: str) -> bool:
    gone(self, island)
    return False

  return mock.patch.object(round.CoordinatorRound, "gone", careless)


def settle_before_the_record_decides():
  """Who is evicted has lost its work, also if an attempt goes on with it."""
  settle = accounts.Accounts.settle
  return mock.patch.object(
    accounts.Accounts,
    "settle",
    lambda self, in_use: settle(self, lambda island, incarnation: False),
  )


def forget_the_lease_of_a_used_sample():
  """What a record uses is free again, and leased to the next one."""
  consume = samples.SamplePool.consume
  return mock.patch.object(
    samples.SamplePool,
    "consume",
    lambda self, holder, consumed: consume(self, holder, []),
  )


def keep_the_samples_of_annulled_records():
  return mock.patch.object(samples.SamplePool, "annul", lambda self, used: None)


def forget_leases_on_recovery():
  """A recovered coordinator does not ask islands what was leased to them."""
  return mock.patch.object(
    accounts.Accounts, "claim", lambda self, member, leases: None
  )


def trust_the_ledger_alone_in_what_is_lost():
  """What an island gave up while nobody heard is not asked for."""
  return mock.patch.object(
    accounts.Accounts, "compare", lambda self, member, trained, open_: None
  )


def apply_annulled_records():
  """An island that catches up applies what was taken back, too."""
  committed = round.IslandRound.committed

  def stubborn(self, log):
    kept = [s for s in log if not _is_annulment(s)]
    return committed(self, kept)

  return mock.patch.object(round.IslandRound, "committed", stubborn)


def _is_annulment(sealed: pb.SealedRecord) -> bool:
  return pb.Record.FromString(sealed.body).HasField("annulment")


def recover_from_whoever_comes_first():
  """The islands that are there have the newest record, surely."""
  return mock.patch.object(
    recovery.Recovery, "_missing", lambda self: ([], self._best() is None)
  )


def recover_in_the_very_next_term():
  """A recovered run may lead the term of a coordinator that is alive."""
  history = recovery.Recovery.history

  def near(self, now: float):
    found = history(self, now)
    if found is not None:
      found.term = self._term + 1
    return found

  return mock.patch.object(recovery.Recovery, "history", near)


@contextlib.contextmanager
def never_forget_an_offer():
  """Nor that it is too old, or annulled, nor that it could not be fetched.

  Who learns that one way asks for another, and goes on: either suffices.
  """
  with (
    mock.patch.object(
      transfers.Transfers, "_forget_the_old", lambda self, now: None
    ),
    mock.patch.object(
      transfers.Transfers,
      "could_not_fetch",
      lambda self, island: self._stateless.add(island),
    ),
  ):
    yield


def never_forgive_a_broken_pair():
  """Islands that once could not reach each other never share a round again."""
  on_fetch_failed = rounds.Rounds.on_fetch_failed

  def unforgiving(self, member, report: pb.FetchFailed, now: float) -> None:
    on_fetch_failed(self, member, report, now)
    if self._forgive_at > now:
      self._forgive_at = math.inf

  return mock.patch.object(rounds.Rounds, "on_fetch_failed", unforgiving)


def wait_for_the_dead():
  """A lease never runs out."""
  return mock.patch.object(
    membership.Membership, "expired", lambda self, now: []
  )


def settle_a_tie_by_the_first_word():
  right = tie.Tie.right

  def hasty(self, complete: bool) -> bytes:
    found = right(self, complete)
    return found or next(iter(self._claims.values()), b"")

  return mock.patch.object(tie.Tie, "right", hasty)


def leave_before_the_others_agree():
  """Who holds the final state leaves at once."""
  compare = ending.Ending._compare

  def hasty(self, now: float) -> None:
    self._dismiss(
      [m for m in self._inside() if self._ties.of(0).claimed(m.island)]
    )
    compare(self, now)

  return mock.patch.object(ending.Ending, "_compare", hasty)


def send_what_was_left_out_before_a_record_decides():
  """Error feedback moves with the proposal, whatever becomes of that."""
  propose = feedback.ErrorFeedback.propose

  def hasty(self, remainder) -> None:
    propose(self, remainder)
    self.values = remainder

  return mock.patch.object(feedback.ErrorFeedback, "propose", hasty)


def forget_what_was_left_out():
  """A record that has the code leaves no error feedback."""

  def forgetful(self, attempt: bytes, included: bool, lost: bool) -> None:
    self.clear()

  return mock.patch.object(feedback.ErrorFeedback, "decide", forgetful)


def send_what_another_process_has_sent():
  """Error feedback of a checkpoint stays as it is, whatever came after it."""
  decide = feedback.ErrorFeedback.decide

  def trusting(self, attempt: bytes, included: bool, lost: bool) -> None:
    decide(self, attempt, included, lost=False)

  return mock.patch.object(feedback.ErrorFeedback, "decide", trusting)


def take_turns_by_the_window():
  """Whose turn it is hangs on the island's own window, not on the chain."""

  def turns(self) -> list[int]:
    free = [f for f, part in enumerate(self.parts) if not part.proposed]
    return free[:: -1 if self.next % 2 else 1]

  return mock.patch.object(windows.Windows, "turns", property(turns))


def hand_in_only_what_is_asked_for():
  """Who is asked for a fragment hands in none of those before it."""

  def before(self, asked) -> list[int]:
    return [f for f in self.turns if asked(f) and self.parts[f].steps]

  return mock.patch.object(windows.Windows, "before", before)


def stay_in_other_rounds_when_one_fragment_was_wrong():
  """Attempts wait for an island that has withdrawn from them."""
  rechecked = coordination.Coordinator._on_rechecked

  def lenient(self, member, answer: pb.Rechecked, now: float) -> None:
    with mock.patch.object(self.rounds, "gone", lambda island: None):
      rechecked(self, member, answer, now)

  return mock.patch.object(coordination.Coordinator, "_on_rechecked", lenient)


PLANTS: list[Plant] = [
  take_turns_by_the_window,
  hand_in_only_what_is_asked_for,
  stay_in_other_rounds_when_one_fragment_was_wrong,
  send_what_was_left_out_before_a_record_decides,
  forget_what_was_left_out,
  announce_before_durable,
  commit_before_prepare,
  change_the_mean_after_it_was_fixed,
  lease_anew_when_asked_again,
  forget_the_lease_of_a_used_sample,
  reuse_the_old_divisor,
  drop_the_carry,
  adopt_without_the_chain,
  commit_twice,
  skip_the_term_fence,
  trust_the_ledger_alone_in_what_is_lost,
  go_on_without_bytes_that_are_needed,
  skip_the_eviction,
  keep_the_samples_of_annulled_records,
  apply_annulled_records,
  skip_the_chain_in_what_is_taken_over,
  plan_on_an_old_base,
  settle_before_the_record_decides,
  forget_leases_on_recovery,
  recover_from_whoever_comes_first,
  recover_in_the_very_next_term,
  never_forget_an_offer,
  never_forgive_a_broken_pair,
  wait_for_the_dead,
  settle_a_tie_by_the_first_word,
  leave_before_the_others_agree,
  send_what_another_process_has_sent,
]


def find(plant: Plant, most: int = MOST_SEEDS) -> tuple[int, str] | None:
  """Seeds until an invariant broke, and what it said; None: never."""
  for seed in range(most):
    with plant():
      try:
        simulate(seed)
      except AssertionError as error:
        if not isinstance(error.__cause__, AssertionError):
          raise  # the plant does not fit the code any more
        return seed + 1, str(error)[:100]
  return None


def main() -> int:
  """Looks for them on all cores, or for those that are named.

  Returns:
    How many were not found.
  """
  names = sys.argv[1:]
  plants = [p for p in PLANTS if p.__name__ in names] or PLANTS
  missed = 0
  with concurrent.futures.ProcessPoolExecutor() as pool:
    for plant, found in zip(plants, pool.map(find, plants), strict=True):
      missed += found is None
      seeds, said = found or (MOST_SEEDS, "NOT FOUND")
      print(f"{plant.__name__:43} {seeds:5}  {said}", flush=True)
  return missed


if __name__ == "__main__":
  sys.exit(min(1, main()))
