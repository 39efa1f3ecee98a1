"""What must be true after each event: docs/protocol.md, section 1."""

import collections
import dataclasses
from typing import NamedTuple

from blake3 import blake3

from intellect_jax.elastic import chain
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import (
  Holder,
  Interval,
  merge,
  subtract,
  take,
)
from intellect_jax.elastic.windows import Window


def hash_of(*parts) -> bytes:
  return blake3(repr(parts).encode()).digest()


Theta = tuple[bytes, ...]  # by fragment


NOTHING = b""  # error feedback of who has left nothing out


def genesis(fragments: int) -> Theta:
  return tuple(hash_of("initial parameters", f) for f in range(fragments))


def state_id(theta: Theta) -> bytes:
  """Of the whole; of one fragment it is that of the fragment."""
  return theta[0] if len(theta) == 1 else hash_of(theta)


def delta_id(
  island: str,
  incarnation: int,
  fragment: int,
  serial: int,
  base: bytes,
  left: bytes = NOTHING,
) -> bytes:
  """A delta, as a symbol: whose, which proposal's, from which theta.

  `left`: what was left out of those before, and is in the code of this one.
  """
  return hash_of("delta", island, incarnation, fragment, serial, base, left)


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


def next_theta(theta: Theta, record: pb.Record) -> Theta:
  if not record.HasField("step"):
    return theta
  moved, step = list(theta), record.step
  means = [share.mean.id for share in step.shares]
  moved[step.fragment] = hash_of(theta[step.fragment], means)
  return tuple(moved)


class Span(NamedTuple):
  """Inner steps of a process whose displacement in a fragment is committed."""

  process: tuple[str, int]
  fragment: int
  start: int
  stop: int


@dataclasses.dataclass(frozen=True)
class Link:
  """A record, and what the chain up to it comes to."""

  record: pb.Record
  before: "Link | None"
  theta: Theta
  effective: tuple["Link", ...]  # this one too, if it counts
  committed: frozenset[Holder]
  spans: frozenset[Span]
  samples: tuple[Interval, ...]
  # By island: whose code is its newest, and what that left out.
  left: dict[str, tuple[int, bytes]]

  def at(self, number: int) -> "Link":
    """The link of a record before this one that counts."""
    return next(x for x in self.effective if x.record.number == number)

  def moved(self, fragment: int) -> int:
    """Number of the newest record that a fragment stands at."""
    return max(
      x.record.number for x in self.effective if chain.moves(x.record, fragment)
    )


class Invariants:
  """What was seen in a run, and what must hold of it.

  Attributes:
    links: every record that any coordinator made durable, by its hash.
    trained: every window that an island has trained on.
  """

  def __init__(self, fragments: int, sparse: bool):
    self._genesis = genesis(fragments)
    self._sparse = sparse
    self.links: dict[bytes, Link] = {}
    self.trained: dict[Holder, pb.Window] = {}
    # By island, incarnation and serial: what was proposed, and its steps.
    self._proposals: dict[tuple[str, int, int], tuple[pb.Proposal, Span]] = {}
    self.tokens: collections.Counter = collections.Counter()  # trained
    # Processes that gave up what they had proposed, or went back.
    self.gave_up: set[tuple[str, int]] = set()
    self._fixed: dict[bytes, list[bytes]] = {}  # means by attempt
    self._numbers: dict[tuple[int, int], bytes] = {}  # (term, number): hash

  def has_trained(self, holder: Holder, window: Window, tokens: int) -> None:
    """A window has so many tokens more."""
    before = self.trained.get(holder, pb.Window())
    trained = pb.Window(number=window.number, steps=window.steps)
    trained.tokens = before.tokens + tokens
    for start, stop in take(window.lease, window.steps):
      trained.samples.add(start=start, stop=stop)
    self.trained[holder] = trained
    self.tokens[holder[:2]] += tokens

  def has_proposed(
    self, process: tuple[str, int], proposal: pb.Proposal, steps: int
  ) -> None:
    """A process that has made so many steps proposes its newest ones."""
    start = steps - proposal.steps
    span = Span(process, proposal.fragment, start, steps)
    kept = pb.Proposal()
    kept.CopyFrom(proposal)
    self._proposals[*process, proposal.serial] = kept, span

  # ------------------------------------------------- 1, 3, 4: the records

  def check_fix(self, fix: pb.Fix) -> None:
    """An attempt has one mean and no other."""
    means = [mean.id for mean in fix.means]
    known = self._fixed.setdefault(fix.attempt, means)
    assert known == means, "an attempt was fixed twice, to different bytes"

  def check_appended(
    self, record: pb.Record, sealed: pb.SealedRecord, held: set[bytes]
  ) -> None:
    """One chain; each window and sample once in it; only fixed means.

    `held`: ids of means that some island has written to its log.
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
    self.links[sealed.hash] = self._link(record, before, held)

  def _link(
    self, record: pb.Record, before: Link | None, held: set[bytes]
  ) -> Link:
    if before is None:
      none = frozenset()
      link = Link(record, None, self._genesis, (), none, none, (), {})
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
    base = before.theta[step.fragment]
    assert step.base == before.moved(step.fragment)
    assert step.base_state == base, "its base is not the run's state"
    if self._sparse:
      left = self._check_feedback(step, before)
      link = dataclasses.replace(link, left=before.left | left)
    else:
      deltas = [
        delta_id(m.island, m.incarnation, step.fragment, m.serial, base)
        for m in step.members
      ]
      assert means == [
        mean_id(step.members, s.start, s.stop, deltas) for s in step.shares
      ], "the divisor or the members of the mean are not those of the record"
    committed, samples, tokens = link.committed, link.samples, 0
    spans = link.spans
    for member in step.members:
      who = member.island, member.incarnation, member.serial
      proposal, span = self._proposals[who]
      assert list(proposal.windows) == list(member.windows)
      assert proposal.fragment == step.fragment
      weight = sum(window.tokens for window in member.windows)
      tokens += weight
      weight = weight if step.fragment == 0 else proposal.tokens
      assert member.weight == weight > 0
      assert not any(
        span[:2] == other[:2]
        and max(span.start, other.start) < min(span.stop, other.stop)
        for other in spans
      ), f"{span} is committed twice"
      spans |= {span}
    assert step.fragment == 0 or not tokens, "tokens go with fragment 0"
    for holder, window in chain.windows_of(record):
      assert holder not in committed, f"{holder} is committed twice"
      assert window == self.trained[holder]
      committed |= {holder}
      used = chain.intervals(window)
      assert subtract(used, list(samples)) == merge(used), "a sample twice"
      samples = tuple(merge([*samples, *used]))
    assert record.total_tokens == before.record.total_tokens + tokens
    theta = next_theta(before.theta, record)
    return dataclasses.replace(
      link, theta=theta, committed=committed, spans=spans, samples=samples
    )

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
      base = before.theta[step.fragment]
      about = *process, step.fragment, member.serial, base
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

  def check_adopted(self, sealed: pb.SealedRecord, theta: Theta) -> None:
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
