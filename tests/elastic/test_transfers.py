"""Who waits for a state, and who serves it: the coordinator's side."""

from driver import Driver, asked, donors_in

from intellect_jax.elastic.protocol import elastic_pb2 as pb


def test_a_donor_that_has_diverged_itself_is_found_out():
  driver = Driver()
  driver.begin("abcd")
  driver.commit("abcd")
  driver.propose("abd", window=2, state=b"s")
  driver.propose("c", window=2, state=b"x")
  driver.say("c", rechecked=pb.Rechecked(record=1, state=b"x"))
  assert driver.take("c", "welcome")[0].evicted
  first, *others = asked(driver, "abd")
  driver.offer(first, state=b"y")
  assert driver.take(first, "recheck")
  driver.say(first, rechecked=pb.Rechecked(record=1, state=b"y"))
  assert driver.take(first, "welcome")[0].evicted
  assert driver.take("c", "restore") == []
  for other in others:
    driver.offer(other, state=b"s")
  for island in "c" + first:
    (restore,) = driver.take(island, "restore")
    assert donors_in(restore) == others


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
  driver.cut("a")  # and its offer of record 0 with it
  driver.wait(4.0, beating="bc")
  driver.commit("bc")
  driver.hello("e")
  first, second = asked(driver, "bc")
  driver.offer(first, state=b"t")
  driver.cut(second)
  (restore,) = driver.take("e", "restore")
  assert donors_in(restore) == [first]


def test_what_one_donor_alone_says_comes_after_what_the_chain_knows():
  driver = Driver()
  driver.begin("abc")
  driver.commit("abc")
  driver.hello("e")
  first, second = asked(driver, "abc")
  driver.offer(first, state=b"flipped, perhaps")
  driver.cut(second)
  (restore,) = driver.take("e", "restore")
  assert (restore.record, restore.state.id) == (0, b"theta0")


def test_an_offer_of_a_state_that_was_annulled_counts_no_more():
  driver = Driver()
  driver.begin("ab")
  driver.commit("ab")
  driver.hello("e")
  for donor in asked(driver, "ab"):
    driver.offer(donor, state=b"t")
  driver.kept["a"] = 1, [0, 1]
  driver.beat("a")
  assert driver.control(rollback=pb.Rollback(to=0)).refusal == ""
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


def test_a_donor_has_only_so_much_time():
  driver = Driver(offer_patience=3.0)
  driver.begin("abc")
  driver.cut("a")  # and its offer of record 0 with it
  driver.wait(4.0, beating="bc")
  driver.commit("bc")
  driver.hello("e")
  donors = asked(driver, "bc")
  driver.offer(donors[0], state=b"t")
  assert driver.take("e", "restore") == []
  driver.wait(1.0, beating="bce")
  (restore,) = driver.take("e", "restore")
  assert donors_in(restore) == donors[:1]
  driver.cut(donors[0])
  driver.say("e", fetch_failed=pb.FetchFailed(peer="b", reason="gone"))
  driver.wait(4.0, beating="abce")
  assert set(asked(driver, "bc")) >= set("bc") - {donors[0]}


def test_who_makes_the_initial_state_again_may_have_offered_another_before():
  driver = Driver()
  driver.begin("a")
  driver.hello("b")
  driver.say("b", fetch_failed=pb.FetchFailed(peer="a"))
  driver.offer("a", b"flipped")
  assert len(driver.take("a", "recheck")) == 1
  answer = pb.Rechecked(record=0, state=b"flipped")  # it has no way back
  driver.say("a", rechecked=answer)
  starts = [welcome.start for welcome in driver.take("a", "welcome")]
  assert starts == [pb.Welcome.START_RESTORE, pb.Welcome.START_INITIALISE]
  driver.offer("a", b"flipped")  # it had been asked before it heard that
  assert driver.take("a", "refusal") == []
  driver.offer("a")
  assert donors_in(driver.take("b", "restore")[-1]) == ["a"]
