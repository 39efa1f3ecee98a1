"""Error feedback: what a record decides, and that nothing is counted twice."""

import numpy as np
import pytest

from intellect_jax.outer.codec import make_codec
from intellect_jax.outer.feedback import ErrorFeedback

CODEC = make_codec("sparse2")
SIZE = 2 * CODEC.block
NEITHER = dict(included=False, lost=False)


class Sender:
  """An island's parameters along one line: theta - x, and e."""

  def __init__(self, beta=1.0):
    self.feedback = ErrorFeedback(np.zeros(SIZE, np.float32), beta)
    self.displacement = np.zeros(SIZE, np.float32)  # theta - x
    self.rng = np.random.default_rng(0)

  def train(self) -> None:
    # Of few digits, so that sums of them are exact in any order.
    steps = self.rng.integers(-1000, 1000, SIZE).astype(np.float32)
    self.displacement = self.displacement + steps

  def propose(self) -> np.ndarray:
    """The decoded code."""
    a = self.displacement.copy()
    for start in range(0, SIZE, CODEC.block):  # in pieces, as an island does
      self.feedback.add_to(a[start : start + CODEC.block], start)
    codes = np.empty(SIZE // CODEC.block * CODEC.block_bytes, np.uint8)
    CODEC.encode(a, codes)
    decoded = np.empty_like(a)
    CODEC.decode(codes, decoded)
    CODEC.accumulate(a, codes, -1.0)
    self.feedback.propose(a)
    return decoded

  def included(self, attempt=b"1") -> None:
    self.feedback.decide(attempt, included=True, lost=True)
    self.displacement = np.zeros(SIZE, np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_sent_and_what_is_kept_is_what_was_trained(seed):
  """Whatever records do: retry, leave out, include. With beta 1, exactly."""
  sender, rng = Sender(), np.random.default_rng(seed)
  trained, sent = np.zeros(SIZE), np.zeros(SIZE)
  for _ in range(30):
    before = sender.displacement.copy()
    sender.train()
    trained += sender.displacement - before
    decoded = sender.propose()
    for _ in range(rng.integers(3)):  # attempts: the code stays as it is
      np.testing.assert_array_equal(sender.propose(), decoded)
    if rng.random() < 0.6:
      sender.included()
      sent += decoded
    elif rng.random() < 0.5:
      sender.feedback.decide(b"of others", **NEITHER)
    else:
      sender.feedback.withdraw()  # and proposes it later
    kept = sender.feedback.values + sender.displacement.astype(np.float64)
    np.testing.assert_array_equal(sent + kept, trained)


def test_beta_decays_what_was_left_out_once_a_record():
  sender = Sender(beta=0.5)
  sender.train()
  decoded = sender.propose()
  left = sender.displacement - decoded
  sender.included()
  for _ in range(2):  # left out: it does not decay again
    decoded = sender.propose()
    sender.feedback.decide(b"of others", **NEITHER)
    np.testing.assert_array_equal(sender.feedback.values, left)
  decoded = sender.propose()
  sender.included(b"2")
  np.testing.assert_array_equal(
    sender.feedback.values, np.float32(0.5) * left - decoded
  )


def test_a_code_of_which_nobody_knows_what_it_left_out_takes_it_along():
  """A process that died had proposed it, from the same e: it is sent."""
  sender = Sender()
  sender.train()
  sender.propose()
  sender.included()
  assert sender.feedback.values.any() and sender.feedback.attempt == b"1"
  sender.feedback.decide(b"of the one before", included=False, lost=True)
  assert not sender.feedback.values.any() and not sender.feedback.attempt


def test_a_checkpoint_brings_it_back_without_what_was_undecided():
  sender = Sender()
  sender.train()
  sender.propose()
  sender.included()
  values, attempt = sender.feedback.values, sender.feedback.attempt
  saved = values.tobytes()
  sender.train()
  sender.propose()
  assert values.tobytes() == saved  # may be written while training goes on
  sender.feedback.restore(np.frombuffer(saved, np.float32), attempt)
  sender.feedback.decide(b"of others", **NEITHER)
  np.testing.assert_array_equal(sender.feedback.values, values)
  assert sender.propose().any()  # from read-only bytes, too
