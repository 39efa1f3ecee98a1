"""A round message by message: what each side says, and what it ignores."""

import itertools

import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.elastic import blobs, chain
from intellect_jax.elastic import round as round_lib
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.round import CoordinatorRound, IslandRound
from intellect_jax.elastic.shares import capacity, cover, share_bounds
from intellect_jax.outer.codec import make_codec

CODEC = make_codec("int8")
BLOCK_BYTES = CODEC.block_bytes
BLOCKS = 1000
MEAN_SQUARE = 4.0  # of the whole mean


def proposal(window=1, tokens=10, norm=3.0, blocks=BLOCKS) -> pb.Proposal:
  length = blocks * BLOCK_BYTES
  return pb.Proposal(
    windows=[pb.Window(number=window, tokens=tokens)],
    delta=pb.Blob(id=b"delta", length=length),
    norm=norm,
  )


def opened(islands="abc", serial=1) -> CoordinatorRound:
  """A round with an open attempt of these islands."""
  round_ = CoordinatorRound(CODEC)
  for island in islands:
    assert round_.propose(island, 1, proposal()) == ""
  sent = round_.start(1, list(islands), term=1, serial=serial)
  assert [island for island, _ in sent] == list(islands)
  return round_


def open_plan(round_: CoordinatorRound) -> pb.Plan:
  assert round_.plan is not None
  return round_.plan


def report(round_, share: int, squared=None) -> pb.ShareReduced:
  plan = open_plan(round_)
  squared = 9.0 if squared is None else squared
  members = len(plan.members)
  return pb.ShareReduced(
    attempt=plan.attempt,
    share=share,
    mean=pb.Blob(id=b"mean%d" % share),
    squared_norms=[squared / len(plan.shares)] * members,
    mean_squared_norm=MEAN_SQUARE / len(plan.shares),
  )


def fixed(islands="abc") -> CoordinatorRound:
  round_ = opened(islands)
  for share, island in enumerate(islands):
    sent = round_.share_reduced(island, report(round_, share))
  assert [message.WhichOneof("message") for _, message in sent] == [
    "fix"
  ] * len(islands)
  return round_


# ------------------------------------------------------------- coordinator


@pytest.mark.parametrize(
  ("bad", "why"),
  [
    (proposal(norm=float("nan")), "norm"),
    (proposal(norm=float("inf")), "norm"),
    (proposal(tokens=0), "no tokens"),
    (proposal(blocks=BLOCKS + 1), "another length"),
  ],
)
def test_a_bad_proposal_is_refused_and_leaves_no_trace(bad, why):
  round_ = CoordinatorRound(CODEC)
  assert round_.propose("a", 1, proposal()) == ""
  assert why in round_.propose("b", 1, bad)
  assert list(round_.proposals) == ["a"]


@pytest.mark.parametrize("members", [1, 2, 3, 7, 64, 200])
@pytest.mark.parametrize("blocks", [1, 63, 64, 1000, 9000])
def test_shares_tile_the_vector_between_chunks(members, blocks):
  length = blocks * BLOCK_BYTES
  bounds = share_bounds(length, BLOCK_BYTES, [8] * members)
  assert len(bounds) == members
  assert bounds[0][0] == 0
  assert bounds[-1][1] == blocks
  for (_, stop), (start, _) in itertools.pairwise(bounds):
    assert stop == start
    edge = stop * BLOCK_BYTES
    assert edge % blobs.chunk_bytes(length, BLOCK_BYTES) == 0 or edge == length
  chunks = -(-length // blobs.chunk_bytes(length, BLOCK_BYTES))
  sizes = [stop - start for start, stop in bounds]
  if chunks >= members:
    per_chunk = blobs.chunk_bytes(length, BLOCK_BYTES) // BLOCK_BYTES
    assert max(sizes) - min(sizes) <= 2 * per_chunk


def test_shares_are_small_behind_a_relay():
  def ways(*addresses: str) -> pb.Blob:
    return pb.Blob(parts=[pb.Part(addresses=addresses)])

  direct, both = ways("a:1"), ways("a:1", "relay:b:2/ada")
  relayed = ways("relay:b:2/ada", "relay:c:3/ada")
  capacities = [capacity(d) for d in (direct, both, relayed)]
  assert capacities[0] == capacities[1] > 4 * capacities[2] > 0
  blocks = 9000
  bounds = share_bounds(blocks * BLOCK_BYTES, BLOCK_BYTES, capacities)
  sizes = [stop - start for start, stop in bounds]
  assert sum(sizes) == blocks
  assert sizes[2] * 4 < sizes[0]


def test_an_island_of_two_hosts_has_twice_the_share():
  hosts = [pb.Part(addresses=[f"{host}:1"]) for host in "ab"]
  assert capacity(pb.Blob(parts=hosts)) == 2 * capacity(
    pb.Blob(parts=hosts[:1])
  )


def test_weights_are_tokens_and_attempts_never_alike():
  first, second = opened(serial=1), opened(serial=2)
  assert [m.weight for m in open_plan(first).members] == [10, 10, 10]
  assert open_plan(first).attempt != open_plan(second).attempt


def test_only_owners_reports_of_the_open_attempt_fix_the_mean():
  round_ = opened("ab")
  assert round_.share_reduced("b", report(round_, 0)) == []  # not its share
  stale = report(round_, 0)
  stale.attempt = b"another"
  assert round_.share_reduced("a", stale) == []
  assert round_.share_reduced("a", report(round_, 0)) == []
  assert round_.share_reduced("a", report(round_, 0)) == []  # said again
  sent = round_.share_reduced("b", report(round_, 1))
  assert [mean.id for mean in sent[0][1].fix.means] == [b"mean0", b"mean1"]
  assert round_.share_reduced("b", report(round_, 1)) == []  # too late


def test_nobody_is_prepared_before_the_mean_is_fixed():
  round_ = opened("ab")
  for island in "ab":
    round_.prepared(island, open_plan(round_).attempt)
  assert not round_.complete()


def test_a_commit_needs_every_member_that_is_there():
  round_ = fixed("abc")
  attempt = open_plan(round_).attempt
  round_.prepared("a", attempt)
  round_.prepared("b", b"another")
  assert not round_.complete()
  round_.prepared("b", attempt)
  assert not round_.complete()
  assert not round_.gone("c")  # its bytes are not needed: its work counts
  assert round_.complete()


def test_a_member_gone_before_the_mean_is_fixed_ends_the_attempt():
  round_ = opened("abc")
  assert round_.gone("b")
  assert set(round_.proposals) == {"a", "c"}


def test_a_member_gone_while_nobody_holds_the_mean_ends_the_attempt():
  assert fixed("abc").gone("b")
  round_ = fixed("abc")
  round_.prepared("a", open_plan(round_).attempt)
  assert not round_.gone("b")
  assert round_.gone("a")  # the only one that held it


def test_nobody_waits_for_a_member_that_went_and_came_back():
  round_ = fixed("ab")
  round_.prepared("a", open_plan(round_).attempt)
  round_.gone("b")
  assert round_.propose("b", 2, proposal(window=7)) == ""
  assert round_.complete()


def test_a_reconnected_member_hears_the_attempt_again():
  round_ = opened("ab")
  (said,) = round_.again("a")
  assert said[1].plan == open_plan(round_)
  assert round_.again("c") == []
  before = pb.Plan()
  before.CopyFrom(open_plan(round_))
  round_.share_reduced("a", report(round_, 0))
  round_.share_reduced("b", report(round_, 1))
  plan, fix = round_.again("b")
  assert plan[1].plan == before  # the plan, as it was said first
  assert [mean.id for mean in fix[1].fix.means] == [b"mean0", b"mean1"]


def test_who_claims_another_norm_than_its_readers_see_is_found():
  round_ = opened("ab")
  for share, island in enumerate("ab"):
    lying = report(round_, share)
    lying.squared_norms[1] = 100.0
    round_.share_reduced(island, lying)
  assert round_.liars() == ["b"]


def run_of(**outer):
  run = config_lib.base().run
  run.outer.update(outer)
  return run


def test_a_record_says_what_its_deltas_and_their_mean_are():
  step = fixed("abc").step(run_of(momentum_warmup_tokens=100), 50)
  assert [member.norm for member in step.members] == [3, 3, 3]
  assert step.mean_norm == 2
  assert step.scale == 1
  assert (step.learning_rate, step.momentum) == (
    np.float32(0.7),
    np.float32(0.45),
  )
  auto = fixed("abc").step(run_of(learning_rate="auto"), 50)
  assert auto.learning_rate == np.float32(0.6)


def test_the_mean_may_be_given_the_norm_of_its_deltas():
  assert fixed("abc").step(run_of(merge="rda"), 0).scale == 1.5
  clipped = fixed("abc")
  open_plan(clipped).members[0].clip = 0.5
  scale = clipped.step(run_of(merge="rda"), 0).scale
  assert scale == pytest.approx((0.5 * 3 + 3 + 3) / 3 / 2)


@pytest.mark.parametrize("square", [0.0, -1.0, float("nan"), float("inf")])
def test_what_no_mean_can_measure_scales_nothing(square):
  round_ = opened("a")
  odd = report(round_, 0)
  odd.mean_squared_norm = square
  round_.share_reduced("a", odd)
  step = round_.step(run_of(merge="rda"), 0)
  assert (step.scale, step.mean_norm) == (1, 0)


def test_broken_pairs_count_only_between_members():
  round_ = opened("abc")
  failed = pb.FetchFailed(attempt=open_plan(round_).attempt, peer="c")
  assert not round_.fetch_failed("x", failed)
  assert not round_.fetch_failed(
    "a", pb.FetchFailed(attempt=open_plan(round_).attempt, peer="x")
  )
  assert not round_.fetch_failed("a", pb.FetchFailed(attempt=b"old", peer="c"))
  assert round_.left_out() == set()
  assert round_.fetch_failed("a", failed)
  assert round_.left_out() == {"c"}
  round_.forgive()
  assert round_.left_out() == set()


def test_the_cover_is_smallest_and_blames_who_could_not_be_read():
  work = dict.fromkeys("abcde", 10) | {"d": 5}
  proposals = {island: proposal(tokens=t) for island, t in work.items()}
  assert cover([], proposals) == set()
  # A star: one member in the middle of all pairs.
  assert cover([("a", "c"), ("c", "b"), ("d", "c")], proposals) == {"c"}
  # One pair: who was read is left out; both, who has less work.
  assert cover([("a", "b")], proposals) == {"b"}
  assert cover([("a", "d"), ("d", "a")], proposals) == {"d"}
  # Pairs with a member that is gone need nobody else.
  assert cover([("a", "x")], proposals) == set()


def test_a_large_cover_covers():
  names = [f"i{index:02d}" for index in range(30)]
  proposals = {name: proposal() for name in names}
  broken = [(a, b) for a, b in itertools.pairwise(names)]
  left = cover(broken, proposals)
  assert all(a in left or b in left for a, b in broken)


# ------------------------------------------------------------------ island


def plan(number=1, attempt=b"A", owners="ab") -> pb.Plan:
  made = pb.Plan(number=number, attempt=attempt)
  for index, owner in enumerate(owners):
    made.members.add(island=owner)
    made.shares.add(start=index, stop=index + 1, owner=owner)
  return made


def fix(attempt=b"A") -> pb.Fix:
  return pb.Fix(attempt=attempt, means=[pb.Blob(id=b"0"), pb.Blob(id=b"1")])


def sealed(
  number: int, attempt=b"", annul_to=None, after=None, term=1, **change
) -> pb.SealedRecord:
  """A record of one chain, unless it is said to come after another."""
  record = pb.Record(number=number, term=term, **change)
  if number > 0:
    record.previous = (after or sealed(number - 1)).hash
  if annul_to is not None:
    record.annulment.to = annul_to
  elif not change:
    record.step.attempt = attempt or b"attempt %d" % number
  return chain.seal(record)


def kinds(actions) -> list[str]:
  return [
    a.message.WhichOneof("message")
    if isinstance(a, round_lib.Send)
    else type(a).__name__
    for a in actions
  ]


def adopted(actions) -> list[int]:
  return [a.record.number for a in actions if isinstance(a, round_lib.Adopt)]


def test_an_island_goes_through_a_round():
  island = IslandRound("b", record=0)
  assert kinds(island.propose(proposal())) == ["proposal"]
  (reduce,) = island.plan(plan())
  assert (type(reduce), reduce.index) == (round_lib.Reduce, 1)
  assert kinds(island.reduced(pb.ShareReduced(attempt=b"A"))) == [
    "share_reduced"
  ]
  assert kinds(island.fix(fix())) == ["Gather"]
  assert kinds(island.gathered(b"A")) == ["prepared"]
  actions = island.committed([sealed(1, b"A")])
  assert kinds(actions) == ["Cancel", "Adopt"]
  assert island.record == 1


def test_nothing_is_adopted_before_its_mean_is_here():
  island = IslandRound("b", record=0)
  island.plan(plan())
  island.fix(fix())
  (gather,) = island.committed([sealed(1, b"A")])
  assert gather.late == 1
  assert adopted(island.gathered(b"another")) == []
  assert adopted(island.gathered(b"A")) == [1]


def test_what_belongs_to_another_attempt_is_ignored():
  island = IslandRound("b", record=0)
  island.plan(plan())
  assert kinds(island.plan(plan(attempt=b"B"))) == ["Cancel", "Reduce"]
  assert island.reduced(pb.ShareReduced(attempt=b"A")) == []
  assert island.fix(fix(b"A")) == []
  assert island.failed(b"A", "a", "") == []
  assert island.gathered(b"A") == []


def test_old_plans_are_ignored():
  island = IslandRound("b", record=5)
  assert island.plan(plan(number=5)) == []


def test_what_is_said_in_an_attempt_is_said_again():
  """Streams break at any point, and a coordinator forgets at a restart."""
  island = IslandRound("b", record=0)
  island.propose(proposal())
  island.plan(plan())
  assert kinds(island.reconnected()) == ["proposal"]
  island.reduced(pb.ShareReduced(attempt=b"A"))
  assert kinds(island.plan(plan())) == ["share_reduced"]
  island.fix(fix())
  island.gathered(b"A")
  assert kinds(island.fix(fix())) == ["share_reduced", "prepared"]
  assert kinds(island.reconnected()) == [
    "proposal",
    "share_reduced",
    "prepared",
  ]


def test_a_failed_fetch_is_said_again():
  island = IslandRound("b", record=0)
  island.plan(plan())
  assert kinds(island.failed(b"A", "a", "cut")) == ["fetch_failed"]
  assert kinds(island.reconnected()) == ["fetch_failed"]


def test_records_are_adopted_in_order_whatever_order_they_come_in():
  island = IslandRound("b", record=0)
  assert kinds(island.committed([sealed(3)])) == ["ReadLog"]
  assert kinds(island.committed([sealed(2), sealed(1), sealed(3)])) == [
    "Gather"
  ]
  for number in (1, 2, 3):
    assert adopted(island.gathered(b"attempt %d" % number)) == [number]
  assert island.committed([sealed(2)]) == []  # heard again


def test_a_mean_that_nobody_delivers_is_asked_for_anew():
  """Its holders may have left since the record was announced."""
  island = IslandRound("b", record=0)
  island.committed([sealed(1)])
  read, want_state = island.late_fetch_failed(1)
  assert read == round_lib.ReadLog(1)
  assert kinds([want_state]) == ["fetch_failed"]
  fresh = sealed(1)
  fresh.holders.append("elsewhere:1")
  (gather,) = island.committed([fresh])
  assert gather.holders == ["elsewhere:1"]


def test_annulled_records_are_passed_over():
  """Also when the annulment lies ahead of records that still count."""
  island = IslandRound("b", record=2)
  annulment = sealed(7, annul_to=4)
  log = [sealed(n) for n in (3, 4, 5, 6)]
  island.committed([*log, annulment, sealed(8, after=annulment)])
  assert adopted(island.gathered(b"attempt 3")) == [3]
  actions = island.gathered(b"attempt 4")
  # The log keeps what was annulled: who recovers the run from it needs a chain.
  assert kinds(actions) == ["Adopt", "Keep", "Keep", "Adopt", "Gather"]
  assert adopted(actions) == [4, 7]
  assert adopted(island.gathered(b"attempt 8")) == [8]


def test_an_island_on_an_annulled_record_says_so():
  island = IslandRound("b", record=5)
  annulment = sealed(7, annul_to=4)
  assert island.committed([annulment]) == [round_lib.ReadLog(6)]
  (diverged,) = island.committed([sealed(6), annulment])
  assert diverged == round_lib.Diverged(record=5, to=4)


def test_annulments_of_a_chain_that_lost_are_forgotten_with_it():
  """It has heard of records 1 to 3 of one chain, and has no mean of them."""
  island = IslandRound("b", record=0)
  annulment = sealed(3, annul_to=1)
  island.committed([sealed(0), sealed(1), sealed(2), annulment])
  first = sealed(1, b"other 1", term=2)
  second = sealed(2, b"other 2", after=first, term=2)
  third = sealed(3, b"other 3", after=second, term=2)
  island.committed([first, second, third])
  assert adopted(island.gathered(b"other 1")) == [1]
  assert adopted(island.gathered(b"other 2")) == [2]
  assert adopted(island.gathered(b"other 3")) == [3]


def test_a_second_rollback_leads_to_the_newest_record_that_counts():
  """Not to before the first one, whose records were annulled long ago."""
  island = IslandRound("b", record=2)
  first = sealed(4, annul_to=2)
  fifth = sealed(5, after=first)
  island.committed([sealed(3), first, fifth])
  assert adopted(island.gathered(b"attempt 5")) == [5]
  second = sealed(6, annul_to=4, after=fifth)
  assert island.committed([second]) == [round_lib.Diverged(record=5, to=4)]


def test_an_island_without_a_state_waits_for_one():
  island = IslandRound("b", record=None)
  assert island.committed([sealed(1)]) == []
  assert island.plan(plan(number=2)) == []
  assert island.stand(0) == []
  assert kinds(island.committed([sealed(1)])) == ["Gather"]  # from the log
  assert adopted(island.gathered(b"attempt 1")) == [1]


def test_an_evicted_island_takes_its_proposal_back():
  island = IslandRound("b", record=0)
  island.propose(proposal())
  island.plan(plan())
  assert kinds(island.withdraw()) == ["Cancel"]
  assert island.reconnected() == []


def test_bytes_that_are_not_what_was_sealed_are_not_adopted():
  island = IslandRound("b", record=0)
  torn = sealed(1)
  torn.body += b"x"
  assert island.committed([torn]) == []
  assert kinds(island.committed([sealed(1)])) == ["Gather"]


def test_a_record_of_another_chain_is_not_adopted():
  """An older coordinator's is passed over, a newer one's shows who is wrong."""
  island = IslandRound("b", record=0)
  island.committed([sealed(0), sealed(1)])
  island.gathered(b"attempt 1")
  older = sealed(2, after=sealed(1, b"other", term=0), term=0)
  assert kinds(island.committed([older])) == []
  newer = sealed(2, after=sealed(1, b"other", term=2), term=2)
  assert kinds(island.committed([newer])) == ["Diverged"]


def test_another_record_in_the_place_of_its_own_shows_a_lost_chain():
  island = IslandRound("b", record=1)
  island.committed([sealed(1)])
  assert kinds(island.committed([sealed(1, b"other", term=2)])) == ["Diverged"]


def test_settings_move_no_theta_and_what_was_proposed_is_proposed_again():
  island = IslandRound("b", record=0)
  island.propose(proposal())
  island.plan(plan())
  settings = sealed(1, settings=pb.Settings(finish=True))
  actions = island.committed([settings])
  assert kinds(actions) == ["Cancel", "Adopt", "proposal"]
  assert actions[-1].message.proposal.base == 1
  # A training thread that has not heard of them proposes on the old base.
  (again,) = island.propose(proposal())
  assert again.message.proposal.base == 1


def test_the_closing_time_is_for_who_has_not_proposed():
  island = IslandRound("b", record=0)
  assert island.closing(pb.Closing(number=1)) == [round_lib.HandIn(1)]
  island.propose(proposal())
  assert island.closing(pb.Closing(number=1)) == []
  assert IslandRound("b", record=1).closing(pb.Closing(number=1)) == []
