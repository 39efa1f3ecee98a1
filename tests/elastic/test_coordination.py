"""The coordinator's state machine: messages and a clock in, actions out."""

from harness import run_config
import pytest

from intellect_jax import config as config_lib
from intellect_jax.elastic import coordination, rpc
from intellect_jax.elastic.coordination import (
  Append,
  Close,
  Coordinator,
  EndLeases,
  History,
  SaveLease,
  Send,
  Stop,
)
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder

TOKENS = 40  # a window


class Driver:
  """A coordinator, its disk, and islands that say what a test tells them."""

  def __init__(self, **elastic):
    self.run = run_config(**elastic)
    self.now = 0.0
    self.log: list[pb.SealedRecord] = []
    self.leases = {}
    self.losses: list[pb.Loss] = []
    self.term = 0
    self.sessions: dict[str, int] = {}
    self.incarnations: dict[str, int] = {}
    self.trained: dict[str, int] = {}
    self.sent: dict[str, list[pb.ToIsland]] = {}
    self.restart()

  def restart(self) -> None:
    self.term += 1
    history = History(
      "run", self.term, list(self.log), dict(self.leases), list(self.losses)
    )
    self.machine = Coordinator(self.run, history, self.now)

  def act(self, actions) -> list[coordination.Action]:
    """Carries actions out, in order, as service.py does."""
    for action in actions:
      match action:
        case Send(session, message):
          for island, open_session in self.sessions.items():
            if session == open_session:
              self.sent.setdefault(island, []).append(message)
        case Append(record, sealed):
          self.log.append(sealed)
          for member in record.step.members:
            for window in member.windows:
              self.leases.pop(
                Holder(member.island, member.incarnation, window.number), None
              )
        case SaveLease(holder, samples):
          self.leases[holder] = samples
        case EndLeases(holders, loss):
          for holder in holders:
            del self.leases[holder]
          self.losses.extend([loss] if loss is not None else [])
    return actions

  def say(self, island: str, term: int = 0, **message):
    message = pb.FromIsland(term=term, **message)
    session = self.sessions[island]
    return self.act(self.machine.handle(session, message, self.now))

  def tick(self, seconds: float = 0.0):
    self.now += seconds
    return self.act(self.machine.tick(self.now))

  def wait(self, seconds: float, beating: str = "") -> None:
    """Time passes; islands in `beating` are heard, the others are not."""
    end = self.now + seconds
    while self.now < end:
      for island in beating:
        self.beat(island)
      self.tick(0.25)

  def beat(self, island: str) -> None:
    trained = self.trained.get(island, 0)
    self.say(island, heartbeat=pb.Heartbeat(tokens_trained=trained))

  def hello(self, island: str, incarnation: int = 1, record=None, **fields):
    """Opens a new stream; `record` is what the island stands at, if any."""
    self.incarnations[island] = incarnation
    self.sessions[island] = 1 + max(self.sessions.values(), default=0)
    hello = pb.Hello(
      protocol=rpc.PROTOCOL_VERSION,
      run_digest=config_lib.digest(self.run),
      island=island,
      incarnation=incarnation,
      process=b"%s%d" % (island.encode(), incarnation),
      addresses=[f"{island}:{incarnation}"],
    )
    if record is not None:
      hello.has_state, hello.record = True, record
      hello.record_hash = self.log[record].hash
    hello.MergeFrom(pb.Hello(**fields))
    return self.say(island, hello=hello)

  def cut(self, island: str) -> None:
    session = self.sessions[island]
    self.act(self.machine.disconnected(session, self.now))

  def take(self, island: str, kind: str):
    """The messages of a kind that came to an island since the last look."""
    messages = self.sent.get(island, [])
    found = [m for m in messages if m.WhichOneof("message") == kind]
    self.sent[island] = [m for m in messages if m not in found]
    return [getattr(m, kind) for m in found]

  def begin(self, islands: str) -> None:
    """The first makes record 0, the others restore it; all are in."""
    for island in islands:
      self.hello(island)
    self.offer(islands[0])
    for island in islands:
      self.say(island, ready=pb.Ready(record=0))
      self.sent[island] = []

  def offer(self, island: str) -> None:
    blob = pb.Blob(id=b"theta", parts=[pb.Part(addresses=[island])])
    ready = pb.StateReady(record=self.machine.head.number, state=blob)
    self.say(island, state_ready=ready)

  def propose(self, islands: str, window: int = 1, state: bytes = b"s") -> None:
    for island in islands:
      self.say(island, lease_request=pb.LeaseRequest(window=window, samples=4))
      (grant,) = self.take(island, "lease_grant")
      self.trained[island] = self.trained.get(island, 0) + TOKENS
      self.beat(island)
      done = pb.Window(number=window, tokens=TOKENS, samples=grant.samples)
      self.repeat(island, [done], state)

  def repeat(self, island: str, windows, state: bytes = b"s") -> None:
    proposal = pb.Proposal(
      base=self.machine.head.number,
      windows=windows,
      delta=pb.Blob(id=island.encode(), length=64 * 1024),
      norm=2.0,
      base_state=state,
    )
    self.say(island, proposal=proposal)

  def reduce(self, islands: str) -> bytes:
    """Owners report; returns the attempt."""
    for island in islands:
      plan = self.take(island, "plan")[-1]
      share = [s.owner for s in plan.shares].index(island)
      report = pb.ShareReduced(
        attempt=plan.attempt,
        share=share,
        mean=pb.Blob(id=b"mean" + island.encode()),
        squared_norms=[4.0 / len(plan.shares)] * len(plan.members),
      )
      self.say(island, share_reduced=report)
    return plan.attempt

  def prepare(self, islands: str, attempt: bytes):
    for island in islands:
      actions = self.say(island, prepared=pb.Prepared(attempt=attempt))
    return actions

  def commit(self, islands: str, window: int = 1) -> pb.Record:
    self.propose(islands, window)
    self.prepare(islands, self.reduce(islands))
    return self.machine.head


def lost(driver: Driver) -> int:
  return sum(loss.tokens for loss in driver.losses)


# ------------------------------------------------------------------ rounds


def test_a_record_is_durable_before_anyone_hears_of_it():
  driver = Driver()
  driver.begin("ab")
  driver.propose("ab")
  attempt = driver.reduce("ab")
  driver.prepare("a", attempt)
  actions = driver.prepare("b", attempt)
  kinds = [
    action.message.WhichOneof("message")
    if isinstance(action, Send)
    else type(action).__name__
    for action in actions
  ]
  assert kinds == ["Append", "record", "record"]
  record = driver.machine.head
  assert record.total_tokens == 2 * TOKENS
  assert [m.island for m in record.step.members] == ["a", "b"]
  assert record.step.base_state == b"s"
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
  driver.wait(driver.run.elastic.lease_seconds + 0.5, beating="a")
  (plan,) = driver.take("a", "plan")
  assert [m.island for m in plan.members] == ["a"]


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


def test_a_diverged_minority_is_turned_away():
  driver = Driver()
  driver.begin("abc")
  driver.propose("a", state=b"x")
  driver.propose("bc", state=b"s")
  (refusal,) = driver.take("a", "refusal")
  assert "differs from the others'" in refusal.reason
  (plan,) = driver.take("b", "plan")
  assert [m.island for m in plan.members] == ["b", "c"]


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
  window = driver.machine._round.proposals["b"].windows
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
  window = driver.machine._round.proposals["b"].windows
  dropped = pb.Dropped(windows=window, cause="left out too often")
  driver.say("b", dropped=dropped)
  driver.say("b", dropped=dropped)
  assert lost(driver) == TOKENS
  driver.say("a", lease_request=pb.LeaseRequest(window=5, samples=4))
  assert driver.take("a", "lease_grant")[0].samples == window[0].samples


def test_a_frozen_coordinator_evicts_nobody_when_it_wakes():
  driver = Driver()
  driver.begin("ab")
  driver.tick(100.0)
  assert lost(driver) == 0
  states = {i.state for i in driver.machine.status(driver.now).islands}
  assert states == {"in"}


def test_messages_of_a_replaced_process_are_ignored():
  driver = Driver()
  driver.begin("ab")
  old = driver.sessions["b"]
  driver.hello("b", incarnation=2, record=0)
  leave = pb.FromIsland(leave=pb.Leave(reason="the old one"))
  assert driver.machine.handle(old, leave, driver.now) == []


# ------------------------------------------------------------------- state


def test_one_donor_is_asked_once_and_the_next_when_it_fails():
  driver = Driver()
  driver.begin("ab")
  driver.hello("c")
  assert driver.take("c", "welcome")[0].start == pb.Welcome.START_RESTORE
  driver.wait(1.0, beating="abc")
  asked = [i for i in "ab" for _ in driver.take(i, "offer_state")]
  assert len(asked) == 1
  driver.offer(asked[0])
  driver.wait(1.0, beating="abc")
  assert len(driver.take("c", "restore")) == 1
  assert not [i for i in "ab" for _ in driver.take(i, "offer_state")]
  driver.say("c", fetch_failed=pb.FetchFailed(peer=asked[0], reason="gone"))
  (second,) = [i for i in "ab" for _ in driver.take(i, "offer_state")]
  assert second != asked[0]


def test_another_donor_is_asked_when_one_dies():
  driver = Driver()
  driver.begin("ab")
  driver.hello("c")
  (donor,) = [i for i in "ab" for _ in driver.take(i, "offer_state")]
  driver.cut(donor)
  (other,) = [i for i in "ab" for _ in driver.take(i, "offer_state")]
  assert other != donor


def test_when_the_initialiser_dies_the_next_one_initialises():
  driver = Driver()
  driver.hello("a")
  driver.hello("b")
  starts = [driver.take(i, "welcome")[0].start for i in "ab"]
  assert starts == [pb.Welcome.START_INITIALISE, pb.Welcome.START_RESTORE]
  driver.cut("a")
  assert driver.take("b", "welcome")[0].start == pb.Welcome.START_INITIALISE


# -------------------------------------------------- restarts, terms, the end


def test_a_restarted_coordinator_goes_on():
  driver = Driver()
  driver.begin("ab")
  driver.commit("ab")
  driver.propose("a", window=2)
  windows = driver.machine._round.proposals["a"].windows
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
  assert [type(a) for a in actions] == [Send, Close]
  (refusal,) = driver.take("z", "refusal")
  assert all(word in refusal.reason for word in words)
  assert driver.commit("a").number == 1


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
