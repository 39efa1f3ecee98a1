"""Who is in: leases by the coordinator's clock, incarnations that fence."""

from intellect_jax.elastic.membership import Membership, State
from intellect_jax.elastic.protocol import elastic_pb2 as pb

LEASE = 10.0


def hello(island="a", incarnation=1, process=b"p1") -> pb.Hello:
  return pb.Hello(island=island, incarnation=incarnation, process=process)


def test_a_lease_runs_out_only_after_silence():
  members = Membership(LEASE)
  member, _, _ = members.admit(hello(), session=1, now=0.0)
  assert members.expired(LEASE) == []
  members.renew(member, 5.0)
  assert members.expired(5.0 + LEASE) == []
  assert members.expired(5.1 + LEASE) == [member]
  assert member.state is State.GONE
  assert members.expired(100.0) == []  # told once


def test_renewing_all_covers_the_coordinators_own_gap():
  members = Membership(LEASE)
  members.admit(hello(), session=1, now=0.0)
  members.renew_all(100.0)
  assert members.expired(100.0 + LEASE) == []


def test_a_newer_incarnation_replaces_and_fences_the_older():
  members = Membership(LEASE)
  old, _, _ = members.admit(hello(), session=1, now=0.0)
  newer = hello(incarnation=2, process=b"p2")
  assert members.refusal(newer, 1.0) == ""
  member, replaced, evicted = members.admit(newer, session=2, now=1.0)
  assert (member.incarnation, replaced, evicted) == (2, old, False)
  assert members.by_session(1) is None
  assert "newer process of island 'a'" in members.refusal(hello(), 2.0)


def test_a_copied_workdir_is_refused_and_a_reconnection_is_not():
  members = Membership(LEASE)
  members.admit(hello(), session=1, now=0.0)
  assert "was copied" in members.refusal(hello(process=b"p2"), 1.0)
  assert members.refusal(hello(), 1.0) == ""
  member, replaced, evicted = members.admit(hello(), session=2, now=1.0)
  assert (member.session, replaced, evicted) == (2, None, False)


def test_who_comes_back_after_its_lease_is_told_so():
  members = Membership(LEASE)
  member, _, _ = members.admit(hello(), session=1, now=0.0)
  member.state = State.IN
  members.expired(LEASE + 1)
  _, _, evicted = members.admit(hello(), session=2, now=20.0)
  assert evicted
  assert member.state is State.JOINING


def test_a_place_is_held_for_members_of_before_a_restart():
  members = Membership(LEASE)
  expected = members.expect("a", 3, now=0.0)
  assert [m.island for m in members.inside()] == ["a"]
  assert members.reachable() == set()
  # Its process was not known, so it cannot be mistaken for a copy.
  assert members.refusal(hello(incarnation=3), 1.0) == ""
  member, _, evicted = members.admit(hello(incarnation=3), session=1, now=1.0)
  assert member is expected
  assert not evicted
  assert members.reachable() == {"a"}
