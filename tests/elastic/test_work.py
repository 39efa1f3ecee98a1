"""What an island's hands leave behind: nothing that nobody will need."""

import threading
from typing import Any

from absl import logging
import pytest

from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.work import ExchangeWork

SECONDS = 30  # bound of every wait


class Crew:
  """Reduces when it is let, to a share that is named after the attempt."""

  def __init__(self):
    self.served: list[bytes] = []
    self.begun, self.go_on = threading.Event(), threading.Event()

  def reduce(
    self, plan: pb.Plan, index: int, cancelled: threading.Event
  ) -> pb.ShareReduced:
    self.begun.set()
    assert self.go_on.wait(SECONDS)
    self.served.append(plan.attempt)
    return pb.ShareReduced(mean=pb.Blob(id=plan.attempt))

  def withdraw(self, blob_id: bytes) -> None:
    self.served.remove(blob_id)


@pytest.fixture
def crew():
  return Crew()


@pytest.fixture
def work(crew):
  made: Any = crew
  hands = ExchangeWork("ada", made, 1, lambda event: None, lambda error: None)
  yield hands
  hands.close()


def done(work: ExchangeWork) -> None:
  """Waits for all that was begun: there is one thread."""
  event = threading.Event()
  work.submit(event.set)
  assert event.wait(SECONDS)


def test_the_share_of_an_attempt_that_is_over_is_served_no_more(crew, work):
  """It was cancelled when all was reduced, and before that was noted."""
  work.reduce(pb.Plan(attempt=b"first"), 0)
  assert crew.begun.wait(SECONDS)
  work.cancel(0)
  work.reduce(pb.Plan(attempt=b"second"), 0)
  crew.go_on.set()
  done(work)
  assert crew.served == [b"second"]
  work.reduce(pb.Plan(attempt=b"third"), 0)
  done(work)
  assert crew.served == [b"third"]


def test_work_that_fails_is_heard_of(work, monkeypatch):
  said = []
  monkeypatch.setattr(
    logging, "exception", lambda *_, exc_info: said.append(exc_info)
  )

  def fails() -> None:
    raise MemoryError("a copy of the state")

  work.submit(fails)
  done(work)
  assert [str(error) for error in said] == ["a copy of the state"]
