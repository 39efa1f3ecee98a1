"""Who is let in, who is refused, and when a coordinator itself must stop."""

from typing import Any

from driver import TOKENS, Driver
import pytest

from intellect_jax import config as config_lib
from intellect_jax.elastic import chain, rpc
from intellect_jax.elastic.actions import (
  Close,
  Stop,
  Tell,
)
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder


def test_messages_of_a_replaced_process_are_ignored():
  driver = Driver()
  driver.begin("ab")
  old = driver.sessions["b"]
  driver.hello("b", incarnation=2, record=0)
  leave = pb.FromIsland(leave=pb.Leave(reason="the old one"))
  assert driver.machine.handle(old, leave, driver.now) == []


# ------------------------------------------------------------------- state


def test_a_restarted_coordinator_goes_on():
  driver = Driver()
  driver.begin("ab")
  driver.commit("ab")
  driver.propose("a", window=2)
  windows = driver.machine.rounds.round.proposals["a"].windows
  driver.restart()
  assert driver.machine.head.number == 1
  driver.hello("a", record=1)
  driver.say("a", ready=pb.Ready(record=1))
  driver.repeat("a", windows)
  assert driver.take("a", "plan") == []  # b has its lease to come back
  driver.hello("b", record=1)
  driver.say("b", ready=pb.Ready(record=1))
  driver.propose("b", window=2)
  driver.prepare("ab", driver.reduce("ab"))
  record = driver.machine.head
  assert (record.number, record.total_tokens) == (2, 4 * TOKENS)
  assert (record.term, record.previous) == (2, driver.log[1].hash)


def test_a_coordinator_that_has_lost_record_0_has_it_from_an_island():
  driver = Driver()
  driver.begin("ab")
  log = list(driver.log)
  driver.log.clear()
  driver.restart()
  driver.hello("b", record=0, record_hash=log[0].hash)
  (ask,) = driver.take("b", "ask_records")
  driver.say("b", records=pb.Records(records=log[ask.start :], end=1))
  assert driver.log == log
  driver.hello("a", record=0)
  for island in "ab":
    (welcome,) = driver.take(island, "welcome")
    assert welcome.start == pb.Welcome.START_GO_ON


def test_a_coordinator_that_sees_a_higher_term_stops_for_good():
  driver = Driver()
  driver.begin("a")
  (stop,) = driver.say("a", term=7, heartbeat=pb.Heartbeat())
  assert isinstance(stop, Stop)
  assert driver.say("a", lease_request=pb.LeaseRequest(window=1)) == []
  assert driver.tick(100.0) == []


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("protocol", 99, ("99", str(rpc.PROTOCOL_VERSION))),
    ("run_digest", "f" * 64, ("f" * 12,)),
    ("run_id", "another", ("another", "run run")),
  ],
)
def test_strangers_are_refused_and_cannot_stop_the_run(field, value, words):
  """Whatever term they have seen elsewhere."""
  driver = Driver()
  driver.begin("a")
  driver.sessions["z"] = 99
  hello = pb.Hello(
    protocol=rpc.PROTOCOL_VERSION,
    run_digest=config_lib.digest(driver.run),
    island="z",
    incarnation=1,
  )
  setattr(hello, field, value)
  actions = driver.say("z", term=1000, hello=hello)
  assert [type(a) for a in actions] == [Tell, Close]
  (refusal,) = driver.take("z", "refusal")
  assert all(word in refusal.reason for word in words)
  assert driver.commit("a").number == 1


def test_who_was_evicted_is_refused_unless_it_has_seen_a_higher_term():
  """It would not hear a refusal of a coordinator that has been replaced."""
  driver = Driver()
  driver.begin("ab")
  driver.control(evict=pb.Evict(island="b"))
  driver.restart()
  hello = pb.Hello(
    protocol=rpc.PROTOCOL_VERSION,
    run_digest=config_lib.digest(driver.run),
    island="b",
    incarnation=1,
  )
  for term in (driver.term - 1, driver.term):  # it hears the first refusal
    driver.say("b", term=term, hello=hello)
    assert "evicted" in driver.take("b", "refusal")[-1].reason
  (stop,) = driver.say("b", term=driver.term + 1, hello=hello)
  assert isinstance(stop, Stop)


def test_who_comes_when_all_is_over_is_told_so():
  driver = Driver()
  driver.run.tokens = TOKENS
  driver.restart()
  driver.begin("ab")
  driver.cut("b")
  driver.wait(driver.run.elastic.lease_seconds + 1, beating="a")
  assert driver.commit("a").final
  driver.hello("c")
  assert driver.take("c", "finished")
  driver.hello("b", record=0)  # may catch up, as long as a is there
  driver.wait(5.0, beating="ab")
  assert driver.take("b", "finished") == []
  driver.say("a", leave=pb.Leave(reason="final"))
  driver.tick()
  assert driver.take("b", "finished")
  assert driver.machine.done()


# ---------------------------------------------------- what must not go on


def test_records_that_the_disk_lost_are_taken_over_from_islands():
  driver = Driver()
  driver.begin("ab")
  driver.commit("ab", window=1)
  driver.commit("ab", window=2)
  kept = list(driver.log)
  del driver.log[2:]  # a write that was not synced
  driver.restart()
  hello: dict[str, Any] = dict(record=2, record_hash=kept[2].hash, head=2)
  driver.hello("a", **hello)
  assert driver.take("a", "welcome") == []
  (ask,) = driver.take("a", "ask_records")
  assert ask.start == 2
  driver.say("a", records=pb.Records(records=kept[2:], end=3))
  assert driver.log == kept
  assert driver.take("a", "welcome")[0].start == pb.Welcome.START_GO_ON
  assert driver.machine.status(driver.now).total_tokens == 4 * TOKENS
  driver.hello("b", **hello)
  for island in "ab":
    driver.say(island, ready=pb.Ready(record=2))
  assert driver.commit("ab", window=3).number == 3


def test_records_that_are_no_continuation_are_of_a_chain_that_lost():
  driver = Driver()
  driver.begin("ab")
  driver.commit("ab")
  foreign = chain.seal(pb.Record(number=2, previous=b"other", term=1))
  driver.hello("b", record=2, record_hash=foreign.hash, head=2)
  driver.say("b", records=pb.Records(records=[foreign], end=3))
  assert driver.machine.head.number == 1
  assert driver.take("b", "welcome")[-1].start == pb.Welcome.START_GO_BACK
  # What it finds on its own disk, and in the chain that won, will do.
  driver.hello("b", record=0)
  assert driver.take("b", "welcome")[-1].start == pb.Welcome.START_GO_ON
  driver.say("b", ready=pb.Ready(record=1))
  assert driver.commit("ab", window=2).number == 2


@pytest.mark.parametrize("answer", [slice(0, 1), slice(0, 3)])
def test_what_a_recovery_had_asked_for_is_no_chain_that_lost(answer):
  """It goes on by a short chain; the answer of who has more comes after that."""
  driver = Driver()
  driver.begin("ab")
  driver.commit("ab", window=1)
  driver.commit("ab", window=2)
  kept = list(driver.log)
  del driver.log[1:]
  driver.restart()
  driver.hello("a", record=2, record_hash=kept[2].hash, head=2)
  driver.say("a", records=pb.Records(records=kept[answer], end=3))
  if ask := driver.take("a", "ask_records")[1:]:
    sent = pb.Records(records=kept[ask[0].start :], end=3)
    driver.say("a", records=sent)
  assert driver.log == kept
  assert driver.take("a", "welcome")[0].start == pb.Welcome.START_GO_ON


@pytest.mark.parametrize("message", ["ready", "proposal"])
def test_who_learns_after_its_hello_of_what_the_disk_lost_says_it_again(
  message,
):
  driver = Driver()
  driver.begin("ab")
  driver.commit("ab", window=1)
  kept = list(driver.log)
  del driver.log[1:]
  driver.restart()
  driver.hello("a", record=0)  # it had record 1, but could not adopt it yet
  if message == "ready":
    actions = driver.say("a", ready=pb.Ready(record=1))
  else:
    actions = driver.say("a", proposal=pb.Proposal(base=1))
  assert [type(action) for action in actions] == [Close]
  driver.hello("a", record=1, record_hash=kept[1].hash, head=1)
  driver.say("a", records=pb.Records(records=kept[1:], end=2))
  assert driver.log == kept


def test_an_old_copy_of_the_ledger_stops_rather_than_lead():
  driver = Driver()
  driver.begin("a")
  driver.commit("a")
  kept = list(driver.log)
  del driver.log[1:]
  driver.term -= 1  # the copy does not know that the term was used
  driver.restart()
  driver.hello("a", record=1, record_hash=kept[1].hash, head=1)
  actions = driver.say("a", records=pb.Records(records=kept[1:], end=2))
  (stop,) = [a for a in actions if isinstance(a, Stop)]
  assert "--recover" in stop.reason


# ---------------------------------------------------------------- steering


def test_a_new_process_has_what_an_older_one_had_by_a_lost_ledger():
  """Both may say so of one sample: an older coordinator led the second."""
  driver = Driver()
  driver.begin("ab")
  driver.machine.books.recovered = True
  lease = pb.LeaseGrant(window=7)
  lease.samples.add(start=100, stop=104)
  driver.hello("a", incarnation=2, record=0, leases=[lease])
  driver.hello("a", incarnation=3, record=0, leases=[lease])
  assert driver.leases[Holder("a", 3, 7)] == [(100, 104)]
  assert Holder("a", 2, 7) not in driver.leases
