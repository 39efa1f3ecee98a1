"""The coordinator's state machine: messages and a clock in, actions out."""

from typing import Any

import pytest
from simulation.world import run_config

from intellect_jax import config as config_lib
from intellect_jax.elastic import chain, rpc
from intellect_jax.elastic.actions import (
  Append,
  Close,
  CoordinatorAction,
  EndLeases,
  SaveLease,
  Stop,
  Tell,
  Warn,
)
from intellect_jax.elastic.books import History
from intellect_jax.elastic.coordination import Coordinator
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
    self.norms: dict[str, float] = {}  # of deltas, other than 2
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

  def act(self, actions) -> list[CoordinatorAction]:
    """Carries actions out, in order, as service.py does."""
    for action in actions:
      match action:
        case Tell(session, message):
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
      hello.record_hash = fields.pop("record_hash", "") or (
        self.log[record].hash
      )
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

  def control(self, **change) -> pb.ControlReply:
    request = pb.ControlRequest(**change)
    reply, actions = self.machine.control(request, self.now)
    self.act(actions)
    return reply

  def offer(self, island: str, state: bytes = b"theta") -> None:
    blob = pb.Blob(id=state, parts=[pb.Part(addresses=[island])])
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
      norm=self.norms.get(island, 2.0),
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


def asked(driver: Driver, islands: str) -> list[str]:
  """Those that were asked for their state since the last look."""
  return [i for i in islands for _ in driver.take(i, "offer_state")]


def donors_in(restore: pb.Restore) -> list[str]:
  return [a for part in restore.state.parts for a in part.addresses]


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
    if isinstance(action, Tell)
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


def test_a_diverged_minority_is_given_the_others_state():
  driver = Driver()
  driver.begin("abc")
  driver.commit("abc")
  driver.propose("a", window=2, state=b"x")
  driver.propose("bc", window=2, state=b"s")
  (welcome,) = driver.take("a", "welcome")
  assert (welcome.start, welcome.evicted) == (pb.Welcome.START_RESTORE, True)
  plan = driver.take("b", "plan")[-1]
  assert [m.island for m in plan.members] == ["b", "c"]
  assert [(x.island, x.tokens) for x in driver.losses] == [("a", TOKENS)]
  for donor in asked(driver, "bc"):
    driver.offer(donor, state=b"s")
  assert driver.take("a", "restore")[0].state.id == b"s"


def test_a_donor_that_has_diverged_itself_is_found_out():
  driver = Driver()
  driver.begin("abcd")
  driver.commit("abcd")
  driver.propose("abd", window=2, state=b"s")
  driver.propose("c", window=2, state=b"x")
  first, *others = asked(driver, "abd")
  driver.offer(first, state=b"y")
  assert driver.take(first, "welcome")[0].evicted
  assert driver.take("c", "restore") == []
  for other in others:
    driver.offer(other, state=b"s")
  for island in "c" + first:
    (restore,) = driver.take(island, "restore")
    assert donors_in(restore) == others


def test_a_tie_pauses_the_run_until_an_operator_settles_it():
  driver = Driver()
  driver.begin("ab")
  driver.propose("a", state=b"x")
  driver.propose("b", state=b"s")
  status = driver.machine.status(driver.now)
  assert status.paused
  assert "disagree on the state at record 0" in status.phase
  assert driver.control(evict=pb.Evict(island="a")).refusal == ""
  assert driver.control(pause=pb.SetPause(paused=False)).refusal == ""
  driver.say("b", ready=pb.Ready(record=driver.machine.head.number))
  driver.propose("b", window=2)
  assert len(driver.take("b", "plan")) == 1


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


def test_a_newcomer_hears_of_several_donors_at_once():
  driver = Driver()
  driver.begin("abcd")
  driver.commit("abcd")
  driver.hello("e")
  assert driver.take("e", "welcome")[0].start == pb.Welcome.START_RESTORE
  donors = asked(driver, "abcd")
  assert len(donors) == 2  # and who made record 0 still offers that
  driver.offer(donors[0], state=b"t")
  assert driver.take("e", "restore") == []  # it waits a little for the other
  driver.offer(donors[1], state=b"t")
  (restore,) = driver.take("e", "restore")
  assert (restore.record, donors_in(restore)) == (1, donors)
  assert asked(driver, "abcd") == []
  driver.hello("f")  # what is offered already serves for the next one too
  assert driver.take("f", "restore") == [restore]
  driver.say("e", fetch_failed=pb.FetchFailed(peer="b", reason="gone"))
  assert len(asked(driver, "abcd")) == 3


def test_a_donor_that_dies_leaves_the_others():
  driver = Driver()
  driver.begin("abc")
  driver.commit("abc")
  driver.hello("e")
  first, second = asked(driver, "abc")
  driver.offer(first, state=b"t")
  driver.cut(second)
  (restore,) = driver.take("e", "restore")
  assert donors_in(restore) == [first]


def test_an_offer_of_a_state_that_was_annulled_counts_no_more():
  driver = Driver()
  driver.begin("ab")
  driver.commit("ab")
  driver.hello("e")
  for donor in asked(driver, "ab"):
    driver.offer(donor, state=b"t")
  driver.control(rollback=pb.Rollback(to=0))
  driver.hello("f")
  assert driver.take("f", "restore")[-1].record == 0


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
  assert [type(a) for a in actions] == [Tell, Close]
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


# ---------------------------------------------------- what must not go on


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


def test_a_donor_has_only_so_much_time():
  driver = Driver(offer_patience=3.0)
  driver.begin("abc")
  driver.commit("abc")
  driver.hello("e")
  donors = asked(driver, "abc")
  driver.offer(donors[0], state=b"t")
  assert driver.take("e", "restore") == []
  driver.wait(1.0, beating="abce")
  (restore,) = driver.take("e", "restore")
  assert donors_in(restore) == donors[:1]
  driver.cut(donors[0])
  driver.say("e", fetch_failed=pb.FetchFailed(peer="b", reason="gone"))
  driver.wait(4.0, beating="abce")
  assert set(asked(driver, "abc")) >= set("abc") - {donors[0]}


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
  assert driver.take("b", "welcome")[-1].start == pb.Welcome.START_RESTORE


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


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ({"run.model.layers": "3"}, "cannot be changed"),
    ({"run.outer.learning_rate": '"high"'}, "is not a float"),
    ({"run.outer.learning_rate": "7"}, "at most 2"),
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
  assert driver.control(rollback=pb.Rollback(to=5)).refusal
  assert driver.control(rollback=pb.Rollback(to=1)).refusal == ""
  head = driver.machine.head
  assert (head.annulment.to, head.total_tokens) == (1, 2 * TOKENS)
  assert lost(driver) == 2 * TOKENS
  status = driver.machine.status(driver.now)
  assert {i.state for i in status.islands} == {"joining"}
  for island in "ab":  # they went back themselves
    driver.say(island, ready=pb.Ready(record=3))
  assert driver.commit("ab", window=3).total_tokens == 4 * TOKENS
