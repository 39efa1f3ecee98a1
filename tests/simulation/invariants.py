"""What must be true after each event: docs/protocol.md, section 1."""

import collections
from collections.abc import Iterator, Sequence
import dataclasses

from blake3 import blake3

from intellect_jax.elastic import chain
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder, Interval, merge, subtract


def hash_of(*parts) -> bytes:
  return blake3(repr(parts).encode()).digest()


GENESIS = hash_of("initial parameters")
_FLIPPED = b"flipped: "


NOTHING = b""  # error feedback of who has left nothing out


def delta_id(
  island: str, incarnation: int, windows, base: bytes, left: bytes = NOTHING
) -> bytes:
  """A delta, as a symbol: whose, of which windows, from which theta.

  `left`: what was left out of those before, and is in the code of this one.
  """
  numbers = [window.number for window in windows]
  return hash_of("delta", island, incarnation, numbers, base, left)


def left_by(delta: bytes) -> bytes:
  """What a sparse code leaves of a delta, as a symbol."""
  return hash_of("left", delta)


def mean_id(members, start: int, stop: int, deltas: list[bytes]) -> bytes:
  """The mean of a share, as a symbol: who, with which weight, over what."""
  return hash_of(
    [(m.island, m.incarnation, m.weight, m.clip) for m in members],
    deltas,
    sum(m.weight for m in members),
    (start, stop),
  )


def next_theta(theta: bytes, record: pb.Record) -> bytes:
  if not record.HasField("step"):
    return theta
  moved = hash_of(theta, [share.mean.id for share in record.step.shares])
  return _FLIPPED + moved if is_flipped(theta) else moved


def flip(theta: bytes, which: float) -> bytes:
  """Another theta; what becomes of it is never the run's again."""
  return _FLIPPED + hash_of(theta, which)


def is_flipped(theta: bytes) -> bool:
  return theta.startswith(_FLIPPED)


@dataclasses.dataclass(frozen=True)
class Link:
  """A record, and what the chain up to it comes to.

  Attributes:
    theta: by the records alone.
    said: by the records, and by the newest one's word of its base.
  """

  record: pb.Record
  before: "Link | None"
  theta: bytes
  said: bytes
  effective: tuple["Link", ...]  # this one too, if it counts
  committed: frozenset[Holder]
  samples: tuple[Interval, ...]
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

  def __init__(self, sparse: bool):
    self._sparse = sparse
    self.links: dict[bytes, Link] = {}
    self.trained: dict[Holder, pb.Window] = {}
    self.tokens: collections.Counter = collections.Counter()  # trained
    # Processes that gave up what they had proposed, or went back.
    self.gave_up: set[tuple[str, int]] = set()
    self._fixed: dict[bytes, list[bytes]] = {}  # means by attempt
    self._numbers: dict[tuple[int, int], bytes] = {}  # (term, number): hash

  def has_trained(self, holder: Holder, window: pb.Window) -> None:
    self.trained[holder] = window
    self.tokens[holder[:2]] += window.tokens

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
  ) -> None:
    """One chain; each window and sample once in it; only fixed means.

    Args:
      record: that is durable now.
      sealed: the same.
      held: ids of means that some island has written to its log.
      claims: state hashes that islands, which are here, have proposed with.
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
      _check_base(record.step.base_state, before, claims)
    self.links[sealed.hash] = link

  def _link(
    self, record: pb.Record, before: Link | None, held: set[bytes]
  ) -> Link:
    if before is None:
      link = Link(record, None, GENESIS, GENESIS, (), frozenset(), (), {})
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
    moved = [x.record for x in before.effective]
    assert step.base == max(r.number for r in moved if chain.moves(r, 0))
    if self._sparse:
      left = self._check_feedback(step, before)
      link = dataclasses.replace(link, left=before.left | left)
    else:
      deltas = [
        delta_id(m.island, m.incarnation, m.windows, step.base_state)
        for m in step.members
      ]
      assert means == [
        mean_id(step.members, s.start, s.stop, deltas) for s in step.shares
      ], "the divisor or the members of the mean are not those of the record"
    committed, samples, tokens = link.committed, link.samples, 0
    for member in step.members:
      weight = sum(window.tokens for window in member.windows)
      assert member.weight == weight > 0
      tokens += weight
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
      said=next_theta(step.base_state, record),
      committed=committed,
      samples=samples,
    )

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
    self, step: pb.OuterStep, before: Link
  ) -> dict[str, tuple[int, bytes]]:
    """Each code has what that island's newest code left out, and only that.

    Or nothing, where the process that knew it has died, gave it up, or went
    back to before it.
    """
    left: dict[str, tuple[int, bytes]] = {}
    for member, share in zip(step.members, step.shares, strict=True):
      process = member.island, member.incarnation
      about = *process, member.windows, step.base_state
      known, was_left = before.left.get(member.island, (0, NOTHING))
      allowed = {delta_id(*about, was_left)}
      if known != member.incarnation or process in self.gave_up:
        allowed.add(delta_id(*about))
      assert share.mean.id in allowed, "error feedback is lost, or sent twice"
      left[member.island] = member.incarnation, left_by(share.mean.id)
    return left

  def check_announced(self, sealed: pb.SealedRecord) -> None:
    assert sealed.hash in self.links, "announced before it was durable"

  # ------------------------------------------------------ 2: the one state

  def check_adopted(self, sealed: pb.SealedRecord, theta: bytes) -> None:
    """What an island adopts is durable, and moves it to the one state."""
    self.check_announced(sealed)
    link = self.links[sealed.hash]
    place = link.record.term, link.record.number
    known = self._numbers.setdefault(place, sealed.hash)
    assert known == sealed.hash, f"two records (term, number) {place}"
    assert theta == link.theta, "another theta"

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


def _check_base(base: bytes, before: Link, claims: Sequence[bytes]) -> None:
  """A record starts from the run's state.

  From one with a flipped bit only if nobody could tell, for want of others, or
  if most who are here had fetched it: a minority is repaired. Such a record's
  word counts from then on, unless those who can replay from before say no.
  """
  if base not in (before.theta, before.said):
    assert is_flipped(base), "its base is not the run's state"
    held = claims.count(before.theta)
    assert not held or claims.count(base) > held, "a flipped bit has won"
