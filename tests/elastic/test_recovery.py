"""A lost ledger: whose records count, and how many must answer."""

import pytest
from simulation.world import run_config

from intellect_jax import config as config_lib
from intellect_jax.elastic import chain, rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.recovery import TERMS, Recovery

RUN = run_config()


def make_chain(length: int, term: int = 1, members="abc"):
  """Records 0 … length - 1, each step made by `members`."""
  sealed: list[pb.SealedRecord] = []
  for number in range(length):
    record = pb.Record(number=number, term=term)
    record.previous = sealed[-1].hash if sealed else b""
    for island in members if number else "":
      record.step.members.add(island=island, incarnation=1)
    sealed.append(chain.seal(record))
  return sealed


class Driver:
  """Islands that answer a recovery."""

  def __init__(self, force: bool = False):
    self.machine = Recovery(RUN, force, serial=7, now=0.0)

  def answer(self, session: int, island: str, log, term: int = 1, **fields):
    """Says hello, then sends what it is asked for."""
    hello = pb.Hello(
      protocol=rpc.PROTOCOL_VERSION,
      run_digest=config_lib.digest(RUN),
      run_id="run",
      island=island,
      has_state=bool(log),
    )
    for name, value in fields.items():  # also an empty one
      setattr(hello, name, value)
    actions = self.say(session, term, hello=hello)
    sent = actions[0].message if actions else pb.ToIsland(term=term)
    assert sent.term == term  # or the island would not obey
    if sent.HasField("ask_records"):
      ask = sent.ask_records
      records = pb.Records(records=log[ask.start :], end=len(log))
      self.say(session, term, records=records)
    return actions

  def say(self, session: int, term: int, **message):
    said = pb.FromIsland(term=term, **message)
    return self.machine.handle(session, said, 0.0)


def test_more_than_half_of_the_newest_members_must_be_heard():
  driver = Driver()
  log = make_chain(4)
  driver.answer(1, "a", log)
  assert driver.machine.history(99.0) is None
  assert "waiting for 1 of b, c" in driver.machine.status(0.0).phase
  driver.answer(2, "z", make_chain(4))  # not a member of the newest
  assert driver.machine.history(99.0) is None
  driver.answer(3, "b", log[:2])  # late, but it has committed nothing else
  history = driver.machine.history(99.0)
  assert history is not None
  assert (history.run_id, history.log) == ("run", log)
  assert history.recovered
  assert driver.machine.may_be_lost() == ""


def test_the_highest_term_wins_over_the_longest_chain():
  driver = Driver()
  driver.answer(1, "a", make_chain(9, term=1))
  newer = make_chain(3, term=4)
  driver.answer(2, "b", newer, term=TERMS + 3)
  driver.answer(3, "c", newer)
  history = driver.machine.history(0.0)
  assert history is not None
  assert history.log == newer
  assert history.term == 2 * TERMS + 7


def test_force_goes_on_with_few_and_says_what_may_be_lost():
  driver = Driver(force=True)
  driver.answer(1, "a", make_chain(4))
  assert driver.machine.history(0.0) is None  # the others have a lease
  assert driver.machine.history(RUN.elastic.lease_seconds + 1) is not None
  assert "records after 3 may be lost" in driver.machine.may_be_lost()


def test_who_goes_away_does_not_count():
  driver = Driver()
  log = make_chain(4)
  driver.answer(1, "a", log)
  driver.answer(2, "b", log)
  driver.machine.disconnected(1, 0.0)
  assert driver.machine.history(99.0) is None


@pytest.mark.parametrize(
  "fields", [dict(run_digest="f" * 64), dict(run_id="another")]
)
def test_islands_of_another_run_are_refused(fields):
  driver = Driver()
  driver.answer(1, "a", make_chain(2))
  refusal, _ = driver.answer(2, "b", [], **fields)
  assert refusal.message.refusal.reason


@pytest.mark.parametrize("order", ["az", "za"])
def test_who_asked_the_coordinator_of_before_and_comes_anew_is_let_in(order):
  """It has no run yet by its own workdir; whose ledger it is, others know."""
  driver = Driver()
  for session, island in enumerate(order):
    if island == "a":
      driver.answer(session, island, make_chain(2, members="a"))
    else:
      assert driver.answer(session, island, [], run_id="") == []
  history = driver.machine.history(0.0)
  assert history is not None and history.run_id == "run"
  assert set(driver.machine.hellos) == {0, 1}
