"""What becomes of x in an island's process, order by order."""

import concurrent.futures
import contextlib
import threading

import numpy as np
from one_process import committed, freeze, host, move
import pytest

from intellect_jax.elastic import chain
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.outer import overlap

STEPS = 0.25  # that x moves between the proposal and the record
EAGER = ipb.Eager(part=0.5, learning_rate=0.5, momentum=0.5)


def merge(made, record, anchor) -> None:
  order = ipb.Merge(record=record, anchor=anchor)
  made.replica.do(ipb.Order(merge=order))


@pytest.mark.parametrize("eager", [None, EAGER])
@pytest.mark.parametrize("included", [True, False])
def test_steps_ahead_stay_and_the_rest_is_what_the_record_says(
  tmp_path, eager, included
):
  """What is left out stays in x, though x had gone on without it."""
  with host(tmp_path, "float32") as made:
    flat, outer = made.held.layout.flatten, made.held.outer
    before, proposed = outer.theta.copy(), flat(made.replica.state.params)
    freeze(made, keep_x=True, eager=eager)
    went_on = flat(made.replica.state.params)
    move(made, STEPS)
    anchor = ipb.Merge.ANCHOR_FROZEN if included else ipb.Merge.ANCHOR_THETA
    merge(made, committed(made), anchor)
    x, theta = flat(made.replica.state.params), outer.theta
    assert not np.array_equal(theta, before)
  numbers = EAGER.part, EAGER.learning_rate, EAGER.momentum
  ahead = overlap.eager(proposed, before, np.zeros_like(before), *numbers)
  np.testing.assert_array_equal(went_on, ahead if eager else proposed)
  expected = theta + STEPS * (proposed != before)  # not in the padding
  if not included:
    expected += proposed - before
  np.testing.assert_allclose(x, expected, atol=1e-6)


def test_what_is_given_up_leaves_nothing_for_the_next_record(tmp_path):
  with host(tmp_path, "float32") as made:
    flat = made.held.layout.flatten
    freeze(made, keep_x=True, eager=EAGER)
    made.replica.do(ipb.Order(revert=ipb.Revert()))
    np.testing.assert_array_equal(
      flat(made.replica.state.params), made.held.outer.theta
    )
    merge(made, committed(made), ipb.Merge.ANCHOR_THETA)
    np.testing.assert_array_equal(
      flat(made.replica.state.params), made.held.outer.theta
    )


@pytest.mark.parametrize("island", ["ada", "bo"])
def test_error_feedback_of_another_island_s_checkpoint_is_not_taken_over(
  tmp_path, island
):
  """A copy from afar may be another's, who sends what was left out itself."""
  with host(tmp_path, "sparse2") as made:
    held = made.held
    assert held.feedback is not None
    held.log.keep(chain.seal(pb.Record(genesis=pb.Genesis())))
    left_out = np.ones_like(held.feedback.values)
    held.feedback.restore(left_out, b"attempt")
    held.save(made.replica.state)
    held.saves.wait()
    held._name = island
    restore = ipb.RestoreCheckpoint(checkpoint=0, record=0)
    made.replica.do(ipb.Order(restore=restore))
    kept = island == "ada"
    assert held.feedback.attempt == (b"attempt" if kept else b"")
    assert bool(held.feedback.values.any()) == kept


def test_a_state_that_is_offered_twice_at_once_is_served_once(
  tmp_path, monkeypatch
):
  """Else a whole copy of theta and b would never be withdrawn."""
  with host(tmp_path, "float32") as made:
    held, withdraw = made.held, made.held.store.withdraw
    both = threading.Barrier(2)

    def meet(blob_id: bytes) -> None:
      with contextlib.suppress(threading.BrokenBarrierError):
        both.wait(0.2)  # it must not come to that
      withdraw(blob_id)

    monkeypatch.setattr(held.store, "withdraw", meet)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      first, second = pool.map(lambda _: held.offer(), range(2))
    assert first.state.id == second.state.id
    held.outer.theta[0] += 1
    held.offer()
    assert held.store.manifest(first.state.id) is None
