"""What an operator changes in flight: the coordinator's side."""

from driver import TOKENS, Driver, lost
import numpy as np
import pytest

from intellect_jax.elastic.protocol import elastic_pb2 as pb


def test_settings_are_records_and_hold_from_their_record_on():
  driver = Driver()
  driver.begin("ab")
  change = pb.Set(values={"run.outer.learning_rate": "0.5"}, at_record=3)
  reply = driver.control(set=change, reason="the loss is flat")
  assert (reply.refusal, reply.record) == ("", 1)
  for island in "ab":
    driver.say(island, ready=pb.Ready(record=1))
  before = driver.commit("ab", window=1).step.learning_rate
  assert before == pytest.approx(0.7)
  driver.restart()
  for island in "ab":
    driver.hello(island, record=2)
    driver.say(island, ready=pb.Ready(record=2))
  assert driver.commit("ab", window=2).step.learning_rate == 0.5


def test_the_rate_may_be_left_to_the_table_and_taken_back():
  driver = Driver()
  driver.begin("ab")
  taken = []
  for window, rate in enumerate(('"auto"', "1", '"auto"', "0.5")):
    values = {"run.outer.learning_rate": rate}
    assert driver.control(set=pb.Set(values=values)).refusal == ""
    for island in "ab":
      driver.say(island, ready=pb.Ready(record=driver.machine.head.number))
    taken.append(driver.commit("ab", window + 1).step.learning_rate)
  assert taken == [np.float32(0.6), 1, np.float32(0.6), 0.5]


def test_schedules_follow_the_committed_tokens():
  driver = Driver()
  driver.begin("ab")
  values = {"run.outer.momentum_warmup_tokens": str(4 * TOKENS)}
  driver.control(set=pb.Set(values=values))
  for island in "ab":
    driver.say(island, ready=pb.Ready(record=1))
  steps = [driver.commit("ab", window).step for window in (1, 2, 3, 4)]
  assert [step.momentum for step in steps] == pytest.approx([0, 0.45, 0.9, 0.9])


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ({"run.model.layers": "3"}, "cannot be changed"),
    ({"run.outer.momentum": '"high"'}, "is not a float"),
    ({"run.outer.learning_rate": '"high"'}, "'auto', or a number"),
    ({"run.outer.learning_rate": "true"}, "'auto', or a number"),
    ({"run.outer.learning_rate": "7"}, "at most 2"),
    ({"run.outer.merge": '"median"'}, "mean or rda"),
    ({"run.outer.decay_to": "0"}, "above 0"),
    ({"run.elastic.nonsense": "1"}, "no setting"),
    ({}, "no values"),
  ],
)
def test_settings_that_cannot_be_are_refused(values, words):
  driver = Driver()
  driver.begin("a")
  assert words in driver.control(set=pb.Set(values=values)).refusal
  assert driver.machine.head.number == 0


def test_a_paused_run_plans_nothing_until_it_is_resumed():
  driver = Driver()
  driver.begin("a")
  assert driver.control(pause=pb.SetPause(paused=True)).refusal == ""
  driver.propose("a")
  assert driver.take("a", "plan") == []
  assert driver.machine.status(driver.now).phase.startswith("paused")
  driver.restart()
  assert driver.machine.status(driver.now).paused
  driver.hello("a", record=1)
  driver.say("a", ready=pb.Ready(record=1))
  assert driver.control(pause=pb.SetPause(paused=False)).refusal == ""
  driver.propose("a", window=2)
  assert len(driver.take("a", "plan")) == 1


def test_a_change_in_the_middle_of_a_round_costs_an_attempt_and_no_work():
  driver = Driver()
  driver.begin("ab")
  driver.propose("ab")
  windows = driver.machine.rounds.round.proposals["a"].windows
  others = driver.machine.rounds.round.proposals["b"].windows
  driver.control(set=pb.Set(values={"run.outer.momentum": "0.5"}))
  driver.repeat("a", windows)  # as IslandRound does when it adopts it
  driver.repeat("b", others)
  record_before = driver.machine.head.number
  driver.prepare("ab", driver.reduce("ab"))
  assert driver.machine.head.number == record_before + 1
  assert driver.machine.head.step.momentum == 0.5
  assert lost(driver) == 0


def test_finish_makes_the_next_step_final():
  driver = Driver()
  driver.begin("a")
  driver.control(finish=pb.Finish())
  assert not driver.machine.head.final
  driver.say("a", ready=pb.Ready(record=1))
  assert driver.commit("a").final
  assert "over" in driver.control(finish=pb.Finish()).refusal


def test_an_evicted_process_stays_out_and_a_newer_one_may_come():
  driver = Driver()
  driver.begin("ab")
  driver.propose("b")
  assert driver.control(evict=pb.Evict(island="b")).refusal == ""
  assert driver.take("b", "refusal")
  assert lost(driver) == TOKENS
  driver.restart()
  driver.hello("b", record=0)
  assert "operator evicted" in driver.take("b", "refusal")[0].reason
  driver.hello("b", incarnation=2, record=0)
  assert driver.take("b", "welcome")


def test_a_rollback_annuls_and_its_samples_are_leased_again():
  driver = Driver()
  driver.begin("ab")
  driver.commit("ab", window=1)
  driver.commit("ab", window=2)
  driver.kept["a"] = 2, [1, 2]
  driver.beat("a")
  assert driver.control(rollback=pb.Rollback(to=5)).refusal
  assert "only to 1" in driver.control(rollback=pb.Rollback(to=0)).refusal
  assert driver.control(rollback=pb.Rollback(to=1)).refusal == ""
  head = driver.machine.head
  assert (head.annulment.to, head.total_tokens) == (1, 2 * TOKENS)
  assert lost(driver) == 2 * TOKENS
  status = driver.machine.status(driver.now)
  assert {i.state for i in status.islands} == {"joining"}
  for island in "ab":  # they went back themselves
    driver.say(island, ready=pb.Ready(record=3))
  assert driver.commit("ab", window=3).total_tokens == 4 * TOKENS


def test_a_rollback_to_what_may_be_gone_by_now_is_refused():
  """An island keeps two checkpoints; each record may cost it the older one."""
  driver = Driver()
  driver.begin("ab")
  for window in (1, 2, 3):
    driver.commit("ab", window)
  driver.kept["a"] = 3, [2, 3]
  driver.beat("a")
  driver.commit("ab", window=4)
  assert "only to 3" in driver.control(rollback=pb.Rollback(to=2)).refusal
  driver.commit("ab", window=5)
  assert "pause" in driver.control(rollback=pb.Rollback(to=3)).refusal
  driver.kept["b"] = 5, [4, 5]
  driver.beat("b")
  assert driver.control(rollback=pb.Rollback(to=4)).refusal == ""
