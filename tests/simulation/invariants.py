"""What must be true after each event: docs/protocol.md, section 1."""

import collections
from collections.abc import Iterator, Sequence
import dataclasses

from blake3 import blake3

from intellect_jax.elastic import chain
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder, Interval, merge, subtract
from simulation.symbols import (
  NOTHING,
  STEP_TOKENS,
  Delta,
  Theta,
  genesis,
  is_flipped,
  left_by,
  mean_id,
  moved,
  next_theta,
  replaced,
)


@dataclasses.dataclass(frozen=True)
class Link:
  """A record, and what the chain up to it comes to.

  Attributes:
    theta: by the records alone.
    said: by the records, and by the newest ones' word of their bases.
    displaced: whose steps have moved theta: fragment, island, incarnation, step.
  """

  record: pb.Record
  before: "Link | None"
  theta: Theta
  said: Theta
  effective: tuple["Link", ...]  # this one too, if it counts
  committed: frozenset[Holder]
  samples: tuple[Interval, ...]
  displaced: frozenset[tuple[int, str, int, int]]
  # By island: whose code is its newest, and what that left out.
  left: dict[str, tuple[int, bytes]]

  def at(self, number: int) -> "Link":
    """The link of a record before this one that counts."""
    return next(x for x in self.effective if x.record.number == number)


class Invariants:
  """What was seen in a run, and what must hold of it.

  Attributes:
    links: every record that any coordinator made durable, by its hash.
    trained: every window that an island has trained on.
  """

  def __init__(self, fragments: int, sparse: bool):
    self._fragments = fragments
    self._sparse = sparse
    self.links: dict[bytes, Link] = {}
    self.trained: dict[Holder, pb.Window] = {}
    self.tokens: collections.Counter = collections.Counter()  # trained
    # Processes that gave up what they had proposed, or went back.
    self.gave_up: set[tuple[str, int]] = set()
    # Deltas by island, incarnation and serial.
    self._deltas: dict[tuple[str, int, int], Delta] = {}
    self._fixed: dict[bytes, list[bytes]] = {}  # means by attempt
    self._numbers: dict[tuple[int, int], bytes] = {}  # (term, number): hash

  def has_trained(self, holder: Holder, window: pb.Window) -> None:
    known = self.trained.get(holder, pb.Window()).tokens
    self.trained[holder] = window
    self.tokens[holder[:2]] += window.tokens - known

  def has_encoded(self, delta: Delta) -> None:
    self._deltas[delta.island, delta.incarnation, delta.serial] = delta

  # ------------------------------------------------- 1, 3, 4: the records

  def check_fix(self, fix: pb.Fix) -> None:
    """An attempt has one mean and no other."""
    means = [mean.id for mean in fix.means]
    known = self._fixed.setdefault(fix.attempt, means)
    assert known == means, "an attempt was fixed twice, to different bytes"

  def check_appended(
    self,
    record: pb.Record,
    sealed: pb.SealedRecord,
    held: set[bytes],
    claims: Sequence[bytes],
    votes: Sequence[bytes],
  ) -> None:
    """One chain; each window and sample once in it; only fixed means.

    Args:
      record: that is durable now.
      sealed: the same.
      held: ids of means that some island has written to its log.
      claims: state hashes of its fragment that islands, which are here, have
        proposed with.
      votes: those that any island has, here or not, its newest process.
    """
    assert sealed.hash == blake3(sealed.body).digest()
    before = self.links.get(record.previous)
    if sealed.hash in self.links:
      return  # taken over from an island
    if record.number == 0:
      assert not record.previous
    else:
      assert before is not None, "it follows a record that never was"
      assert before.record.number == record.number - 1
      assert before.record.term <= record.term
    link = self._link(record, before, held)
    if before is not None and record.HasField("step"):
      _check_base(record.step, before, claims, votes)
    self.links[sealed.hash] = link

  def _link(
    self, record: pb.Record, before: Link | None, held: set[bytes]
  ) -> Link:
    if before is None:
      theta, none = genesis(self._fragments), frozenset()
      link = Link(record, None, theta, theta, (), none, (), none, {})
    elif record.HasField("annulment"):
      to = record.annulment.to
      back = before.at(to)
      assert record.total_tokens == back.record.total_tokens
      kept = [x for x in before.effective if x.record.number <= to]
      link = dataclasses.replace(
        back, record=record, before=before, effective=tuple(kept)
      )
    else:
      link = dataclasses.replace(before, record=record, before=before)
    if record.HasField("step"):
      link = self._stepped(link, held)
    return dataclasses.replace(link, effective=(*link.effective, link))

  def _stepped(self, link: Link, held: set[bytes]) -> Link:
    record, before = link.record, link.before
    step = record.step
    assert before is not None
    means = [share.mean.id for share in step.shares]
    assert means == self._fixed.get(step.attempt), "it was never fixed"
    assert set(means) <= held, "committed before anyone held the mean"
    fragment, counting = step.fragment, [x.record for x in before.effective]
    bases = [r.number for r in counting if chain.moves(r, fragment)]
    assert step.base == max(bases)
    deltas = [self._delta(member, step) for member in step.members]
    if self._sparse:
      left = self._check_feedback(step, deltas, before)
      link = dataclasses.replace(link, left=before.left | left)
    else:
      ids = [delta.id for delta in deltas]
      assert means == [
        mean_id(step.members, s.start, s.stop, ids) for s in step.shares
      ], "the divisor or the members of the mean are not those of the record"
    displaced = {
      (fragment, delta.island, delta.incarnation, number)
      for delta in deltas
      for number in delta.steps
    }
    assert len(displaced) == sum(len(delta.steps) for delta in deltas)
    assert not displaced & link.displaced, "a step moves a fragment twice"
    committed, samples, tokens = link.committed, link.samples, 0
    for member, delta in zip(step.members, deltas, strict=True):
      weight = sum(window.tokens for window in member.windows)
      tokens += weight
      assert member.weight == (weight or STEP_TOKENS * len(delta.steps)) > 0
    for holder, window in chain.windows_of(record):
      assert holder not in committed, f"{holder} is committed twice"
      assert window == self.trained[holder]
      committed |= {holder}
      used = chain.intervals(window)
      assert subtract(used, list(samples)) == merge(used), "a sample twice"
      samples = tuple(merge([*samples, *used]))
    assert record.total_tokens == before.record.total_tokens + tokens
    return dataclasses.replace(
      link,
      theta=next_theta(before.theta, record),
      said=replaced(before.said, fragment, moved(step.base_state, step)),
      committed=committed,
      samples=samples,
      displaced=link.displaced | displaced,
    )

  def _delta(self, member: pb.Member, step: pb.OuterStep) -> Delta:
    """What a member has proposed; the record has it as it was."""
    delta = self._deltas[member.island, member.incarnation, member.serial]
    assert delta.fragment == step.fragment
    assert delta.base == step.base_state, "it starts from another state"
    windows = tuple(window.number for window in member.windows)
    assert windows == delta.windows, "the windows are not those of the delta"
    assert not (step.fragment and windows), "windows are of fragment 0"
    return delta

  def check_recovered(self, head: pb.SealedRecord, heard: set[str]) -> None:
    """A lost ledger's run goes on from what most members of its end have."""
    steps = [x.record.step for x in self._until(head) if x.record.step.members]
    members = {member.island for member in steps[0].members} if steps else set()
    few = "recovered from half of the newest members, or fewer"
    assert not members or 2 * len(members & heard) > len(members), few

  def _until(self, head: pb.SealedRecord) -> Iterator[Link]:
    """All links back from a record, annulled ones too."""
    link = self.links.get(head.hash)
    while link is not None:
      yield link
      link = link.before

  def _check_feedback(
    self, step: pb.OuterStep, deltas: Sequence[Delta], before: Link
  ) -> dict[str, tuple[int, bytes]]:
    """Each code has what that island's newest code left out, and only that.

    Or nothing, where the process that knew it has died, gave it up, or went
    back to before it.
    """
    left: dict[str, tuple[int, bytes]] = {}
    for delta, share in zip(deltas, step.shares, strict=True):
      process = delta.island, delta.incarnation
      known, was_left = before.left.get(delta.island, (0, NOTHING))
      allowed = {was_left}
      if known != delta.incarnation or process in self.gave_up:
        allowed.add(NOTHING)
      assert delta.left in allowed, "error feedback is lost, or sent twice"
      assert share.mean.id == delta.id
      left[delta.island] = delta.incarnation, left_by(delta.id)
    return left

  def check_announced(self, sealed: pb.SealedRecord) -> None:
    assert sealed.hash in self.links, "announced before it was durable"

  # ------------------------------------------------------ 2: the one state

  def check_adopted(self, sealed: pb.SealedRecord, theta: Theta) -> None:
    """What an island adopts is durable, and moves it to the one state.

    But for fragments in which a bit has flipped.
    """
    self.check_announced(sealed)
    link = self.links[sealed.hash]
    place = link.record.term, link.record.number
    known = self._numbers.setdefault(place, sealed.hash)
    assert known == sealed.hash, f"two records (term, number) {place}"
    for held, right in zip(theta, link.theta, strict=True):
      assert held == right or is_flipped(held), "another theta"

  # ------------------------------------------------------- 7: every token

  def check_settled(
    self, head: pb.SealedRecord | None, losses: list[pb.Loss]
  ) -> None:
    """No token is both committed and lost, or lost twice."""
    settled: collections.Counter = collections.Counter()
    if head is not None:
      for holder in self.links[head.hash].committed:
        settled[holder[:2]] += self.trained[holder].tokens
    for loss in losses:
      assert loss.cause, "tokens were lost without a word"
      settled[loss.island, loss.incarnation] += loss.tokens
    for process, tokens in settled.items():
      assert tokens <= self.tokens[process], f"{process}: settled twice"


def _check_base(
  step: pb.OuterStep,
  before: Link,
  claims: Sequence[bytes],
  votes: Sequence[bytes],
) -> None:
  """A record starts from the run's state.

  From one with a flipped bit only if nobody who is here could tell, or if more
  had fetched it, some of whom may have left since: a minority is repaired. Such
  a record's word counts from then on, unless those who can replay from before
  say no.
  """
  base, right = step.base_state, before.theta[step.fragment]
  if base not in (right, before.said[step.fragment]):
    assert is_flipped(base), "its base is not the run's state"
    held = claims.count(right)
    assert not held or votes.count(base) > held, "a flipped bit has won"
