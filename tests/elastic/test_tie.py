"""Islands that hold different states of one record: the coordinator's side."""

from driver import BLOCK, TOKENS, Driver, asked, lost

from intellect_jax.elastic.protocol import elastic_pb2 as pb


def replayed(
  driver: Driver, island: str, held: bytes, rebuilt=b"", start=0, agreed=True
) -> None:
  """An island says what its log comes to; it goes on with that if it may."""
  assert driver.take(island, "recheck"), f"{island} was not asked"
  mended = bool(rebuilt) and agreed and held != rebuilt
  if mended:
    window = pb.Window(number=2, tokens=TOKENS)
    dropped = pb.Dropped(windows=[window], cause="its state was wrong")
    driver.say(island, dropped=dropped)
  answer = pb.Rechecked(
    record=driver.machine.head.number,
    state=rebuilt if mended else held,
    rebuilt=rebuilt,
    checkpoint=start,
    agreed=agreed,
    mended=mended,
  )
  driver.say(island, rechecked=answer)
  driver.say(island, ready=pb.Ready(record=driver.machine.head.number))


def after_record_1(islands: str, **elastic) -> Driver:
  driver = Driver(**elastic)
  driver.begin(islands)
  driver.commit(islands)
  for island in islands:
    driver.sent[island] = []
  return driver


def planned(driver: Driver, island: str) -> list[str]:
  """Members of the newest plan that an island has heard of."""
  plans = [m.plan for m in driver.sent[island] if m.HasField("plan")]
  return [member.island for member in plans[-1].members] if plans else []


def test_a_minority_mends_itself_and_the_others_go_on():
  driver = after_record_1("abc")
  driver.propose("a", window=2, state=b"x")
  driver.propose("bc", window=2, state=b"s")
  assert planned(driver, "b") == ["b", "c"]
  assert driver.take("b", "recheck") == []
  replayed(driver, "a", b"x", b"s")
  assert lost(driver) == TOKENS
  driver.prepare("bc", driver.reduce("bc"))
  driver.propose("abc", window=3)
  assert planned(driver, "a") == ["a", "b", "c"]


def test_a_minority_without_a_way_back_is_given_the_others_state():
  driver = after_record_1("abc")
  driver.propose("a", window=2, state=b"x")
  driver.propose("bc", window=2, state=b"s")
  replayed(driver, "a", b"x")
  (welcome,) = driver.take("a", "welcome")
  assert (welcome.start, welcome.evicted) == (pb.Welcome.START_RESTORE, True)
  assert [(x.island, x.tokens) for x in driver.losses] == [("a", TOKENS)]
  for donor in asked(driver, "bc"):
    driver.offer(donor, state=b"s")
  assert driver.take("a", "restore")[0].state.id == b"s"


def test_a_minority_that_does_not_answer_is_given_the_others_state():
  driver = after_record_1("abc", recheck_patience=5.0)
  driver.propose("a", window=2, state=b"x")
  driver.propose("bc", window=2, state=b"s")
  driver.wait(6.0, beating="abc")
  assert driver.take("a", "welcome")[0].start == pb.Welcome.START_RESTORE


def test_a_tie_is_settled_by_replay():
  driver = after_record_1("ab")
  driver.propose("a", window=2, state=b"x")
  driver.propose("b", window=2, state=b"s")
  assert planned(driver, "b") == []
  replayed(driver, "a", b"x", b"s")
  assert planned(driver, "b") == ["b"]  # nobody waits for who was wrong
  replayed(driver, "b", b"s", b"s")
  driver.prepare("b", driver.reduce("b"))
  assert driver.machine.head.number == 2


def test_who_cannot_replay_is_given_the_state_of_who_can():
  driver = after_record_1("ab")
  driver.propose("a", window=2, state=b"x")
  driver.propose("b", window=2, state=b"s")
  replayed(driver, "a", b"x")
  assert planned(driver, "b") == []
  replayed(driver, "b", b"s", b"s")
  assert driver.take("a", "welcome")[0].start == pb.Welcome.START_RESTORE
  assert planned(driver, "b") == ["b"]


def test_a_replay_from_an_agreed_checkpoint_counts_before_others():
  driver = after_record_1("abcd")
  for island, state in zip("abcd", [b"x", b"x", b"s", b"s"], strict=True):
    driver.propose(island, window=2, state=state)
  for island in "ab":
    replayed(driver, island, b"x", b"x", start=1, agreed=False)
  replayed(driver, "c", b"s")
  assert planned(driver, "d") == []
  replayed(driver, "d", b"s", b"s")
  assert planned(driver, "d") == ["c", "d"]
  for island in "ab":
    assert driver.take(island, "welcome")[0].start == pb.Welcome.START_RESTORE


def test_of_as_many_replays_the_one_that_goes_back_furthest_is_right():
  driver = after_record_1("ab")
  driver.propose("a", window=2, state=b"x")
  driver.propose("b", window=2, state=b"s")
  replayed(driver, "a", b"x", b"x", start=1)
  replayed(driver, "b", b"s", b"s", start=0)
  assert planned(driver, "b") == ["b"]


def test_a_checkpoint_of_the_very_state_is_no_witness_however_old():
  driver = after_record_1("ab")
  settings = pb.Set(values={"run.outer.learning_rate": "0.5"})
  assert driver.control(set=settings).refusal == ""  # record 2: theta stays
  for island in "ab":
    driver.say(island, ready=pb.Ready(record=2))
  driver.propose("a", window=2, state=b"x")
  driver.propose("b", window=2, state=b"s")
  replayed(driver, "a", b"x", b"x", start=1, agreed=False)
  replayed(driver, "b", b"s", b"s", start=2, agreed=False)
  assert planned(driver, "a") == planned(driver, "b") == []
  assert driver.machine.status(driver.now).paused


def test_who_does_not_answer_in_time_is_left_out():
  driver = after_record_1("ab", recheck_patience=5.0)
  driver.propose("a", window=2, state=b"x")
  driver.propose("b", window=2, state=b"s")
  replayed(driver, "b", b"s", b"s")
  driver.wait(6.0, beating="ab")
  assert planned(driver, "b") == ["b"]
  assert driver.take("a", "welcome")[0].start == pb.Welcome.START_RESTORE


def test_who_missed_the_question_is_asked_again():
  driver = after_record_1("ab")
  driver.propose("a", window=2, state=b"x")
  driver.propose("b", window=2, state=b"s")
  driver.take("a", "recheck")
  driver.hello("a", record=1)
  driver.say("a", ready=pb.Ready(record=1))
  replayed(driver, "b", b"s", b"s")
  driver.tick()
  assert planned(driver, "b") == []
  replayed(driver, "a", b"x", b"s")
  assert planned(driver, "b") == ["b"]


def test_a_tie_that_replay_does_not_settle_is_for_an_operator():
  driver = after_record_1("ab")
  driver.propose("a", window=2, state=b"x")
  driver.propose("b", window=2, state=b"s")
  replayed(driver, "a", b"x")
  replayed(driver, "b", b"s")
  status = driver.machine.status(driver.now)
  assert status.paused
  assert "disagree on the state at record 1" in status.phase
  assert driver.control(evict=pb.Evict(island="a")).refusal == ""
  assert driver.control(pause=pb.SetPause(paused=False)).refusal == ""
  driver.say("b", ready=pb.Ready(record=driver.machine.head.number))
  driver.propose("b", window=3, state=b"s")
  assert planned(driver, "b") == ["b"]


def test_votes_that_may_be_copies_give_way_to_a_replay():
  driver = after_record_1("abc")
  driver.propose("ab", window=2, state=b"x")
  driver.propose("c", window=2, state=b"s")
  assert planned(driver, "a") == ["a", "b"]
  replayed(driver, "c", b"s", b"s")
  driver.propose("c", window=2, state=b"s")  # said again, as it is not void
  for island in "ab":
    replayed(driver, island, b"x", b"x", start=1, agreed=False)
  for island in "ab":
    assert driver.take(island, "welcome")[0].start == pb.Welcome.START_RESTORE
  assert driver.take("c", "welcome") == []
  assert driver.machine.head.number == 1


def test_a_proposal_from_another_state_ends_the_attempt():
  driver = after_record_1("abc")
  driver.cut("c")
  driver.wait(4.0, beating="ab")
  driver.propose("ab", window=2, state=b"x")
  attempt = driver.reduce("ab")
  driver.hello("c", record=1)
  driver.say("c", ready=pb.Ready(record=1))
  driver.propose("c", window=2, state=b"s")
  assert driver.prepare("ab", attempt) == []  # c may be right: most are asked
  assert planned(driver, "a") == ["a", "b"]
  assert driver.take("c", "recheck")


def test_at_record_0_the_chain_knows_who_is_right():
  driver = Driver()
  driver.begin("ab")
  driver.propose("a", state=b"x")
  driver.propose("b")
  assert driver.take("a", "recheck")
  assert driver.take("b", "recheck") == []
  assert planned(driver, "b") == ["b"]


def test_at_the_end_nobody_leaves_before_all_hold_the_same_state():
  driver = Driver()
  driver.run.tokens = 3 * TOKENS
  driver.restart()
  driver.begin("abc")
  assert driver.commit("abc").final
  for island, state in zip("abc", [b"x", b"s", b"s"], strict=True):
    driver.offer(island, state=state)
    assert driver.take(island, "finished") == []
  driver.tick()
  assert driver.take("b", "finished") == []
  replayed(driver, "a", b"x", b"s")
  driver.tick()
  assert all(driver.take(island, "finished") for island in "abc")
  for island in "abc":
    driver.say(island, leave=pb.Leave(reason="the run is final"))
  assert driver.machine.done()


def test_at_the_end_nobody_waits_for_long_for_who_says_nothing():
  driver = Driver()
  driver.run.tokens = 3 * TOKENS
  driver.restart()
  driver.begin("abc")
  assert driver.commit("abc").final
  for island in "ab":
    driver.offer(island)
  driver.tick()
  assert driver.take("a", "finished") == []
  driver.wait(3.0, beating="abc")
  assert driver.take("a", "finished")
  assert driver.take("b", "finished")


# ------------------------------------------------------- several fragments


def propose_part(driver: Driver, island: str, state: bytes) -> None:
  """Fragment 1, of which nobody commits windows."""
  part = pb.Part(addresses=[f"{island}:1"])
  proposal = pb.Proposal(
    fragment=1,
    base=driver.machine.head.number,
    delta=pb.Blob(id=island.encode(), length=64 * BLOCK, parts=[part]),
    norm=2.0,
    base_state=state,
    tokens=TOKENS,
    steps=1,
  )
  driver.say(island, proposal=proposal)


def part_replayed(driver: Driver, island: str, held: bytes, right: bytes):
  (recheck,) = driver.take(island, "recheck")
  assert recheck.fragment == 1
  answer = pb.Rechecked(
    fragment=1,
    record=driver.machine.head.number,
    state=right,
    rebuilt=right,
    agreed=True,
    mended=held != right,
  )
  driver.say(island, rechecked=answer)


def test_a_tie_over_one_of_several_fragments_is_settled_by_replay():
  driver = Driver(outer=dict(fragments=2))
  driver.begin("ab")
  for island in "ab":
    propose_part(driver, island, b"theta0")
  driver.prepare("ab", driver.reduce("ab"))
  assert driver.machine.head.step.fragment == 1
  driver.propose("ab", state=b"theta0")
  attempt = driver.reduce("ab")  # of fragment 0: it is under way
  propose_part(driver, "a", b"x")
  propose_part(driver, "b", b"s")
  part_replayed(driver, "b", b"s", b"s")
  part_replayed(driver, "a", b"x", b"s")
  assert not driver.machine.books.steering.paused
  # Who was wrong has withdrawn from all rounds: the attempt is made anew.
  driver.prepare("ab", attempt)
  assert driver.machine.head.number == 1
  propose_part(driver, "a", b"s")
  assert planned(driver, "a") == ["a", "b"]
  driver.prepare("ab", driver.reduce("ab"))
  assert driver.machine.head.step.base_state == b"s"


def test_a_fragment_that_is_not_the_runs_is_found_in_an_offer():
  driver = Driver(outer=dict(fragments=2))
  driver.begin("abc")
  for island in "abc":
    propose_part(driver, island, b"theta0")
  driver.prepare("abc", driver.reduce("abc"))
  for island in "abc":
    propose_part(driver, island, b"s")
  driver.prepare("abc", driver.reduce("abc"))
  blob = pb.Blob(id=b"whole", parts=[pb.Part(addresses=["a"])])
  ready = pb.StateReady(record=1, state=blob, fragments=[b"theta0", b"x"])
  driver.say("a", state_ready=ready)
  (recheck,) = driver.take("a", "recheck")
  assert recheck.fragment == 1
