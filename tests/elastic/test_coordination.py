"""The coordinator's state machine: messages and a clock in, actions out."""

from driver import BLOCK, TOKENS, Driver, lost
import pytest

from intellect_jax.elastic.actions import (
  Tell,
  Warn,
)
from intellect_jax.elastic.protocol import elastic_pb2 as pb


def test_a_record_is_durable_before_anyone_hears_of_it():
  driver = Driver()
  driver.begin("ab")
  driver.propose("ab")
  attempt = driver.reduce("ab")
  driver.prepare("a", attempt)
  actions = driver.prepare("b", attempt)
  kinds = [
    action.message.WhichOneof("message")
    if isinstance(action, Tell)
    else type(action).__name__
    for action in actions
  ]
  assert kinds == ["Append", "record", "record"]
  record = driver.machine.head
  assert record.total_tokens == 2 * TOKENS
  assert [m.island for m in record.step.members] == ["a", "b"]
  assert record.step.base_state == b"theta0"
  assert record.previous == driver.log[0].hash
  assert not any(m.HasField("delta") for m in record.step.members)


def test_the_first_round_waits_for_start_islands():
  driver = Driver(start_islands=2)
  driver.begin("a")
  driver.propose("a")
  assert driver.take("a", "plan") == []
  assert "1 more of start_islands" in driver.machine.status(0.0).phase
  driver.hello("b", record=0)
  driver.say("b", ready=pb.Ready(record=0))
  driver.propose("b")
  assert len(driver.take("a", "plan")) == 1


def test_a_round_waits_for_all_who_are_in_but_not_longer_than_their_lease():
  driver = Driver()
  driver.begin("ab")
  driver.propose("a")
  assert driver.take("a", "plan") == []
  assert driver.machine.status(0.0).phase == "waiting for proposals of b"
  lease = driver.run.elastic.lease_seconds
  driver.wait(lease / 2, beating="a")
  assert driver.take("a", "plan") == []
  driver.wait(lease / 2, beating="a")
  (plan,) = driver.take("a", "plan")  # in time for a record within the lease
  assert [m.island for m in plan.members] == ["a"]
  states = {
    i.island: i.state for i in driver.machine.status(driver.now).islands
  }
  assert states["b"] == "in"


def test_nobody_waits_for_the_first_window_of_a_newcomer():
  driver = Driver()
  driver.begin("ab")
  driver.commit("ab")
  driver.hello("c", record=1)
  driver.say("c", ready=pb.Ready(record=1))
  driver.propose("a", window=2)
  assert driver.machine.status(0.0).phase == "waiting for proposals of b"
  driver.propose("b", window=2)
  driver.prepare("ab", driver.reduce("ab"))
  assert [m.island for m in driver.machine.head.step.members] == ["a", "b"]
  driver.propose("ab", window=3)  # from now on it is waited for
  assert driver.machine.status(0.0).phase == "waiting for proposals of c"


def test_a_deadline_comes_from_past_rounds_and_leaves_out_the_late():
  driver = Driver(deadline=True, deadline_ratio=1.5)
  driver.begin("ab")
  driver.now += 1.0
  driver.propose("a")
  driver.wait(5.0, beating="ab")
  assert driver.take("a", "plan") == []  # no past, no deadline
  driver.propose("b")
  driver.prepare("ab", driver.reduce("ab"))
  start = driver.now
  driver.propose("a", window=2)
  driver.wait(30.0, beating="ab")
  (plan,) = driver.take("a", "plan")
  assert [m.island for m in plan.members] == ["a"]
  assert driver.now - start >= 30.0  # while b was heard all the time


def test_a_member_that_goes_ends_the_attempt_and_the_next_has_its_own_divisor():
  driver = Driver()
  driver.begin("abc")
  driver.propose("abc")
  (first,) = driver.take("a", "plan")
  driver.cut("b")
  (second,) = driver.take("a", "plan")
  assert [m.island for m in second.members] == ["a", "c"]
  assert sum(m.weight for m in second.members) == 2 * TOKENS
  assert second.attempt != first.attempt
  assert [m.delta.id for m in second.members] == [b"a", b"c"]


def test_pairs_that_cannot_reach_each_other_leave_out_the_fewest():
  driver = Driver()
  driver.begin("abc")
  driver.propose("abc")
  attempt = driver.take("a", "plan")[0].attempt
  driver.say("a", fetch_failed=pb.FetchFailed(attempt=attempt, peer="c"))
  (plan,) = driver.take("b", "plan")[1:]
  assert [m.island for m in plan.members] == ["a", "b"]
  states = {i.island: i.state for i in driver.machine.status(0.0).islands}
  assert states["c"] == "in"


def test_below_min_islands_a_broken_pair_is_given_another_chance():
  driver = Driver(min_islands=2)
  driver.begin("ab")
  driver.propose("ab")
  attempt = driver.take("a", "plan")[0].attempt
  driver.say("a", fetch_failed=pb.FetchFailed(attempt=attempt, peer="b"))
  driver.tick()
  assert driver.take("a", "plan") == []
  driver.wait(driver.run.elastic.fetch_patience + 0.5, beating="ab")
  (plan,) = driver.take("a", "plan")
  assert plan.attempt != attempt
  assert [m.island for m in plan.members] == ["a", "b"]


def test_too_few_islands_are_a_warning():
  driver = Driver(min_islands=2)
  driver.begin("ab")
  driver.commit("ab")
  assert not driver.machine.status(driver.now).warnings
  driver.cut("b")
  (warning,) = driver.machine.status(driver.now).warnings
  assert "min_islands is 2: nothing is committed" in warning


def test_a_delta_that_stands_out_is_scaled_down_in_the_plan():
  driver = Driver()
  driver.begin("abc")
  ratio = pb.Set(values={"run.outer.clip_ratio": "2.0"})
  driver.control(set=ratio)
  driver.wait(0.1)
  for island in "abc":
    driver.say(island, ready=pb.Ready(record=1))
  driver.norms = {"b": 100.0}
  driver.propose("abc")
  clips = {m.island: m.clip for m in driver.take("a", "plan")[-1].members}
  assert clips["a"] == clips["c"] == 1.0
  assert clips["b"] * 100.0 == pytest.approx(2 * 2.0)


def share_sizes(driver: Driver) -> dict[str, int]:
  """Of the attempt that is open, in 64ths of the vector, by owner."""
  plan = driver.machine.rounds.round.plan
  assert plan is not None
  codec_blocks = BLOCK // 1024  # of float32, in a 64th
  return {
    share.owner: (share.stop - share.start) // codec_blocks
    for share in plan.shares
  }


def test_shares_follow_the_links_between_attempts():
  driver = Driver()
  driver.begin("abcd")
  driver.links = dict.fromkeys("abcd", (1e6, 1e6))
  driver.propose("abcd")
  equal = dict.fromkeys("abcd", 16)
  assert share_sizes(driver) == equal
  driver.links["a"] = 2e5, 1e6
  driver.beat("a")
  assert share_sizes(driver) == equal  # until the next one
  a = driver.machine.status(driver.now).islands[0].heartbeat
  assert (a.upload_rate, a.download_rate) == (2e5, 1e6)
  driver.prepare("abcd", driver.reduce("abcd"))
  driver.propose("abcd", window=2)
  sizes = share_sizes(driver)
  assert 4 * sizes["a"] < min(sizes[owner] for owner in "bcd")
  driver.cut("a")  # who is left has equal links
  assert sorted(share_sizes(driver).values()) == [21, 21, 22]


def test_shares_are_equal_whatever_the_links_if_the_run_says_so():
  driver = Driver(share_by="equal")
  driver.begin("abcd")
  driver.links = dict(a=(1e5, 1e6), b=(1e6, 1e6))
  driver.propose("abcd")
  assert share_sizes(driver) == dict.fromkeys("abcd", 16)


def test_a_stream_that_breaks_unnoticed_costs_no_attempt():
  driver = Driver()
  driver.begin("ab")
  driver.propose("ab")
  (before,) = driver.take("b", "plan")
  driver.hello("b", record=0)  # it heard nothing of the plan
  (again,) = driver.take("b", "plan")
  assert again == before
  attempt = driver.take("a", "plan")[0].attempt
  assert again.attempt == attempt


def test_a_record_of_an_operator_ends_the_attempt_that_it_completes():
  driver = Driver()
  driver.begin("abc")
  driver.propose("abc")
  attempt = driver.reduce("abc")
  driver.prepare("ab", attempt)
  assert driver.control(evict=pb.Evict(island="c")).refusal == ""
  assert driver.machine.head.HasField("settings")  # and no step on top of it
  again = driver.take("a", "plan")[-1]  # the record moved no fragment
  assert again.attempt != attempt
  assert again.number == driver.machine.head.number + 1


def test_an_operator_waits_for_an_island_that_knows_the_newest_record():
  driver = Driver()
  driver.begin("ab")
  driver.commit("ab")
  driver.restart()
  assert "no island is back" in driver.control(pause=pb.SetPause()).refusal
  driver.hello("a", record=1)
  assert driver.control(pause=pb.SetPause(paused=True)).refusal == ""


def test_a_false_norm_is_found_out_and_left_out():
  driver = Driver()
  driver.begin("ab")
  driver.propose("ab")
  for share, island in enumerate("ab"):
    plan = driver.take(island, "plan")[0]
    report = pb.ShareReduced(
      attempt=plan.attempt, share=share, squared_norms=[2.0, 50.0]
    )
    driver.say(island, share_reduced=report)
  assert driver.take("b", "refusal")
  assert driver.take("a", "fix") == []
  assert [m.island for m in driver.take("a", "plan")[-1].members] == ["a"]


# ------------------------------------------------------- members and losses


def test_a_frozen_coordinator_evicts_nobody_when_it_wakes():
  driver = Driver()
  driver.begin("ab")
  driver.tick(100.0)
  assert lost(driver) == 0
  states = {i.state for i in driver.machine.status(driver.now).islands}
  assert states == {"in"}


def test_the_record_that_reaches_the_tokens_is_final():
  driver = Driver()
  driver.run.tokens = 3 * TOKENS
  driver.restart()
  driver.begin("ab")
  assert not driver.commit("ab", window=1).final
  assert driver.commit("ab", window=2).final
  driver.propose("a", window=3)
  assert driver.take("a", "plan") == []
  assert not driver.machine.done()
  for island in "ab":
    driver.say(island, leave=pb.Leave(reason="final"))
  assert driver.machine.done()
  status = driver.machine.status(driver.now)
  assert status.tokens_trained == status.total_tokens + status.tokens_lost
  assert lost(driver) == TOKENS  # a's third window


def test_a_minority_waits_then_goes_on_and_says_so():
  driver = Driver(minority_patience=20.0)
  driver.begin("abc")
  driver.commit("abc")
  driver.propose("a", window=2)
  driver.wait(driver.run.elastic.lease_seconds + 1, beating="a")
  assert driver.take("a", "plan")[1:] == []
  (warning,) = driver.machine.status(driver.now).warnings
  assert "2 are half of those that made record 1" in warning
  driver.wait(20.0, beating="a")
  (warning,) = driver.machine.status(driver.now).warnings
  assert "going on without them" in warning
  actions = driver.prepare("a", driver.reduce("a"))
  assert any(isinstance(action, Warn) for action in actions)
  assert driver.machine.head.step.minority


def test_who_left_in_good_order_is_not_missed():
  driver = Driver()
  driver.begin("abc")
  driver.commit("abc")
  for island in "bc":
    driver.say(island, leave=pb.Leave(reason="enough"))
  record = driver.commit("a", window=2)
  assert (record.number, record.step.minority) == (2, False)


def test_a_hung_training_thread_is_evicted_and_comes_back_when_it_moves():
  driver = Driver(hang_seconds=5.0)
  driver.begin("ab")
  driver.propose("a")

  def beat(step: int, **fields) -> None:
    hung = pb.Heartbeat(activity="training", step=step, **fields)
    driver.say("b", heartbeat=hung)

  for _ in range(24):  # 6 s: heard all the time, and nothing moves
    driver.beat("a")
    beat(step=3)
    driver.tick(0.25)
  assert driver.machine.status(driver.now).islands[1].state == "gone"
  assert len(driver.take("a", "plan")) == 1
  driver.hello("b", record=0)
  driver.say("b", ready=pb.Ready(record=0))
  assert driver.machine.status(driver.now).islands[1].state == "joining"
  beat(step=4)
  driver.say("b", ready=pb.Ready(record=0))
  assert driver.machine.status(driver.now).islands[1].state == "in"


@pytest.mark.parametrize(
  "fields", [dict(activity="waiting for record 1"), dict(busy_seconds=60.0)]
)
def test_who_waits_or_says_that_it_takes_long_does_not_hang(fields):
  driver = Driver(hang_seconds=5.0)
  driver.begin("a")
  for _ in range(40):
    driver.say("a", heartbeat=pb.Heartbeat(**fields))
    driver.tick(0.25)
  assert driver.machine.status(driver.now).islands[0].state == "in"


def test_the_slow_are_told_the_closing_time_early_enough():
  driver = Driver(deadline=True)
  driver.begin("abc")
  driver.now += 10.0
  driver.commit("abc")
  start = driver.now
  driver.propose("ab", window=2)
  driver.take("a", "plan")
  told = None
  while driver.now < start + 30.0 and not driver.take("a", "plan"):
    slow = pb.Heartbeat(hand_in_seconds=2.0, activity="training")
    driver.say("c", heartbeat=slow)
    driver.wait(0.25, beating="ab")
    for closing in driver.take("c", "closing"):
      assert (told, closing.number) == (None, 2)
      told = driver.now
  assert told is not None
  assert driver.now - told >= 2.0


def test_the_mean_that_nobody_has_any_more_is_annulled():
  """Its only holder is lost; its samples are leased again."""
  driver = Driver(annul_patience=10.0)
  driver.begin("abc")
  driver.propose("abc")
  attempt = driver.reduce("abc")
  driver.prepare("a", attempt)
  for island in "bc":
    driver.cut(island)  # they hold nothing; a does, and it is committed
  assert driver.machine.head.number == 1
  for island in "bc":
    driver.hello(island, record=0)
  driver.cut("a")
  driver.wait(15.0, beating="bc")
  annulment = driver.machine.head.annulment
  assert (driver.machine.head.number, annulment.to) == (2, 0)
  assert "no island had the state of record 1" in annulment.reason
  assert lost(driver) == 3 * TOKENS
  for island in "bc":
    driver.say(island, ready=pb.Ready(record=2))
  assert driver.commit("bc", window=2).total_tokens == 2 * TOKENS
  driver.hello("a", incarnation=2, record=1)  # too late: it reads of it
  assert driver.take("a", "welcome")[0].start == pb.Welcome.START_GO_ON


def test_nothing_is_annulled_before_others_have_had_time_to_come_too():
  """All were started again, and who was behind is there first."""
  driver = Driver(annul_patience=10.0)
  driver.begin("abc")
  driver.propose("abc")
  driver.prepare("ab", driver.reduce("abc"))
  driver.cut("c")  # it lacks the mean
  assert driver.machine.head.number == 1
  driver.restart()
  driver.wait(60.0)
  driver.hello("c", record=0)
  driver.hello("b", incarnation=2)  # half of the members, with its mean lost
  driver.wait(5.0, beating="bc")
  assert driver.machine.head.number == 1
  driver.hello("a", record=1)
  driver.say("a", ready=pb.Ready(record=1))
  driver.wait(15.0, beating="abc")
  assert driver.machine.head.number == 1


def test_islands_without_a_state_of_the_run_look_for_one_of_their_own():
  """Nothing is annulled for want of those who may have it; an operator may."""
  driver = Driver(annul_patience=10.0)
  driver.begin("ab")
  for window in (1, 2, 3):
    driver.commit("ab", window)
  driver.cut("b")
  driver.hello("a", incarnation=2)  # with nothing that counts, so far
  assert driver.take("a", "welcome")[0].start == pb.Welcome.START_RESTORE
  driver.wait(15.0, beating="a")
  (welcome,) = driver.take("a", "welcome")
  assert welcome.start == pb.Welcome.START_GO_BACK
  assert driver.machine.head.number == 3
  assert "or roll back" in driver.machine.status(driver.now).warnings[-1]
  assert driver.control(rollback=pb.Rollback(to=1)).refusal
  driver.kept["a"] = 0, [1, 2]
  driver.beat("a")
  assert driver.control(rollback=pb.Rollback(to=1)).refusal == ""
  driver.wait(15.0, beating="a")
  (welcome,) = driver.take("a", "welcome")
  assert welcome.start == pb.Welcome.START_GO_BACK
  driver.hello("a", incarnation=2, record=1)
  assert driver.take("a", "welcome")[0].start == pb.Welcome.START_GO_ON
  driver.say("a", ready=pb.Ready(record=4))
  assert driver.commit("a", window=1).number == 5


def test_an_attempt_ends_when_a_member_is_to_make_the_initial_state_again():
  """It had asked for another state than record 0's, which it stood at."""
  driver = Driver()
  driver.begin("a")
  driver.propose("a")
  assert driver.take("a", "plan")
  driver.say("a", fetch_failed=pb.FetchFailed(reason="no mean of record 1"))
  driver.tick()
  (welcome,) = driver.take("a", "welcome")
  assert welcome.start == pb.Welcome.START_INITIALISE
  driver.offer("a", state=b"theta0")
  driver.say("a", ready=pb.Ready(record=0))
  assert driver.commit("a", window=2).number == 1
