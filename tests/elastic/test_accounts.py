"""Each sample and each token counts once, whatever becomes of its island."""

from driver import TOKENS, Driver, lost
import pytest

from intellect_jax.elastic.protocol import elastic_pb2 as pb


def fixed_then_evicted(come_back) -> Driver:
  """b's work is fixed and held by a; b goes for good before the commit."""
  driver = Driver()
  driver.begin("abc")
  driver.propose("abc")
  attempt = driver.reduce("abc")
  driver.prepare("a", attempt)
  come_back(driver)
  driver.prepare("c", attempt)
  return driver


@pytest.mark.parametrize("how", ["evicted", "replaced", "left"])
def test_fixed_work_counts_once_whatever_becomes_of_its_island(how):
  def end(driver: Driver) -> None:
    match how:
      case "evicted":
        driver.wait(driver.run.elastic.lease_seconds + 1, beating="ac")
      case "replaced":
        driver.hello("b", incarnation=2, record=0)
        driver.say("b", ready=pb.Ready(record=0))
      case "left":
        driver.say("b", leave=pb.Leave(reason="enough"))

  driver = fixed_then_evicted(end)
  record = driver.machine.head
  assert record.number == 1
  assert [m.island for m in record.step.members] == ["a", "b", "c"]
  assert lost(driver) == 0
  # Its samples are not leased again.
  committed = {
    i
    for member in record.step.members
    for window in member.windows
    for s in window.samples
    for i in range(s.start, s.stop)
  }
  driver.say("a", lease_request=pb.LeaseRequest(window=9, samples=100))
  (grant,) = driver.take("a", "lease_grant")
  again = {i for s in grant.samples for i in range(s.start, s.stop)}
  assert not again & committed


def test_who_came_back_keeps_what_it_asks_for_while_its_work_is_committed():
  grants = []

  def come_back(driver: Driver) -> None:
    request = pb.LeaseRequest(window=2, samples=4)
    driver.say("b", lease_request=request)  # in mid-window, for the next one
    driver.wait(driver.run.elastic.lease_seconds + 1, beating="ac")
    driver.hello("b", record=0)
    assert driver.take("b", "welcome")[0].evicted
    driver.say("b", lease_request=request)
    grants.append(driver.take("b", "lease_grant")[-1])

  driver = fixed_then_evicted(come_back)
  assert driver.machine.head.number == 1
  samples = grants[0].samples
  driver.repeat("b", [pb.Window(number=2, tokens=TOKENS, samples=samples)])
  assert driver.take("b", "welcome") == []


def test_eviction_revokes_leases_and_names_what_is_lost():
  driver = Driver()
  driver.begin("ab")
  driver.propose("b")
  driver.wait(driver.run.elastic.lease_seconds + 1, beating="a")
  assert [(x.island, x.tokens) for x in driver.losses] == [("b", TOKENS)]
  assert "not heard of" in driver.losses[0].cause
  assert driver.leases == {}
  driver.hello("b", record=0)
  (welcome,) = driver.take("b", "welcome")
  assert welcome.evicted


def test_an_eviction_that_a_restart_forgot_is_told_at_the_proposal():
  driver = Driver()
  driver.begin("ab")
  driver.propose("b")
  window = driver.machine.rounds.round.proposals["b"].windows
  driver.wait(driver.run.elastic.lease_seconds + 1, beating="a")
  driver.restart()
  for island in "ab":
    driver.hello(island, record=0)
    driver.say(island, ready=pb.Ready(record=0))
  assert not driver.take("b", "welcome")[0].evicted
  driver.repeat("b", window)
  assert driver.take("b", "welcome")[0].evicted
  assert driver.take("b", "refusal") == []


def test_dropped_windows_are_lost_once_and_their_samples_return():
  driver = Driver()
  driver.begin("ab")
  driver.propose("b")
  window = driver.machine.rounds.round.proposals["b"].windows
  dropped = pb.Dropped(windows=window, cause="left out too often")
  driver.say("b", dropped=dropped)
  driver.say("b", dropped=dropped)
  assert lost(driver) == TOKENS
  driver.say("a", lease_request=pb.LeaseRequest(window=5, samples=4))
  assert driver.take("a", "lease_grant")[0].samples == window[0].samples


def test_what_is_dropped_and_committed_all_the_same_is_not_lost():
  driver = Driver()
  driver.begin("ab")
  driver.propose("ab")
  window = driver.machine.rounds.round.proposals["b"].windows
  attempt = driver.reduce("ab")
  driver.say("b", dropped=pb.Dropped(windows=window, cause="its own word"))
  driver.trained["b"] += TOKENS  # it trains on
  driver.beat("b")
  driver.prepare("ab", attempt)
  members = driver.machine.head.step.members
  assert [member.island for member in members] == ["a", "b"]
  assert lost(driver) == 0


def test_leases_of_who_never_comes_back_after_a_restart_are_free_again():
  driver = Driver()
  driver.begin("ab")
  driver.say("b", lease_request=pb.LeaseRequest(window=1, samples=4))
  samples = driver.take("b", "lease_grant")[0].samples
  driver.restart()
  driver.hello("a", record=0)
  driver.wait(driver.run.elastic.lease_seconds + 1, beating="a")
  driver.say("a", lease_request=pb.LeaseRequest(window=1, samples=4))
  assert driver.take("a", "lease_grant")[0].samples == samples


def test_a_lone_island_that_goes_back_repeats_the_same_samples():
  driver = Driver()
  driver.begin("a")
  first = driver.commit("a", window=1)
  second = driver.commit("a", window=2)
  driver.hello("a", incarnation=2, record=1, alone=True)
  annulment = driver.machine.head
  assert (annulment.number, annulment.annulment.to) == (3, 1)
  assert annulment.total_tokens == first.total_tokens
  assert lost(driver) == TOKENS
  driver.say("a", ready=pb.Ready(record=3))
  driver.trained["a"] = 0
  third = driver.commit("a", window=1)
  assert third.total_tokens == second.total_tokens
  samples = [r.step.members[0].windows[0].samples for r in (second, third)]
  assert samples[0] == samples[1]
  driver.restart()  # and reads the same from its log
  assert driver.machine.status(0.0).total_tokens == second.total_tokens


def test_tokens_trained_while_nobody_heard_are_counted():
  driver = Driver()
  driver.begin("ab")
  driver.propose("b")
  driver.wait(driver.run.elastic.lease_seconds + 1, beating="a")
  assert lost(driver) == TOKENS
  driver.hello("b", record=0, tokens_trained=3 * TOKENS)
  assert lost(driver) == 3 * TOKENS


def test_a_proposal_tells_of_its_tokens_as_well_as_a_heartbeat():
  driver = Driver()
  driver.begin("ab")
  driver.say("b", lease_request=pb.LeaseRequest(window=1, samples=4))
  (grant,) = driver.take("b", "lease_grant")
  driver.repeat("b", [pb.Window(number=1, tokens=7, samples=grant.samples)])
  driver.cut("b")
  driver.wait(driver.run.elastic.lease_seconds + 1, beating="a")
  assert lost(driver) == 7


# ------------------------------------------------- what the disk has lost


def test_a_record_taken_over_gives_back_what_an_older_process_had_lost():
  driver = Driver()
  driver.begin("ab")
  driver.propose("ab")
  leases = dict(driver.leases)
  driver.prepare("ab", driver.reduce("ab"))
  kept, driver.leases = list(driver.log), leases
  del driver.log[1:]  # an old copy of the ledger
  driver.restart()
  driver.hello("b", record=0, tokens_trained=TOKENS)
  driver.hello("b", incarnation=2, record=0)  # it lost its newest record too
  assert lost(driver) == TOKENS
  driver.hello("a", record=1, record_hash=kept[1].hash, head=1)
  driver.say("a", records=pb.Records(records=kept[1:], end=2))
  assert driver.log == kept
  assert lost(driver) == 0
