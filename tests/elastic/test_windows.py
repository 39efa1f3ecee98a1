"""Windows, and the displacement of each fragment."""

from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.windows import Windows

WHO = "ada", 1


def windows_of(fragments: int, steps: int = 4) -> Windows:
  windows = Windows(1, 10, max_carry=1, fragments=fragments)
  windows.start([(0, steps)])
  return windows


def step_of(proposal: pb.Proposal) -> pb.OuterStep:
  """A step that includes a proposal."""
  step = pb.OuterStep(fragment=proposal.fragment)
  step.members.add(island="ada", incarnation=1, serial=proposal.serial)
  return step


def train(windows: Windows) -> list[tuple[int, int]]:
  """A window of steps; all proposals are committed at once."""
  turns, moved = [], 0
  for number in range(1, windows.length + 1):
    windows.step()
    if windows.at_turn:
      turn = windows.turns[0]
      proposal = windows.propose(turn)
      assert windows.includes(step_of(proposal), *WHO)
      windows.commit(turn)
      windows.parts[turn].moved = moved = moved + 1
      turns.append((number, turn))
      if windows.open is None:
        break
  return turns


def test_each_fragment_has_its_turn_in_a_window_and_fragment_0_ends_it():
  assert train(windows_of(1)) == [(4, 0)]
  assert train(windows_of(2)) == [(2, 1), (4, 0)]
  assert train(windows_of(4)) == [(1, 1), (2, 2), (3, 3), (4, 0)]
  assert train(windows_of(3, steps=4)) == [(2, 1), (3, 2), (4, 0)]


def test_who_comes_between_takes_the_same_turn_as_the_others():
  windows = windows_of(4)
  for fragment, moved in enumerate((7, 8, 5, 6)):
    windows.parts[fragment].moved = moved
  windows.step()
  assert windows.turns == [2, 3, 0, 1]
  windows.propose(2)
  assert windows.turns == [3, 0, 1]


def test_who_is_asked_for_a_fragment_hands_in_those_before_it():
  """Else it waits for a record of one, and others for it in another round."""
  windows = windows_of(3)
  windows.step()
  windows.propose(1)
  assert windows.before(lambda f: f == 0) == [2, 0]
  assert windows.before(lambda f: f == 2) == [2]
  assert windows.before(lambda f: f == 1) == []


def test_tokens_go_with_fragment_0():
  windows = windows_of(2)
  windows.step()
  part = windows.propose(1)
  assert (part.steps, part.tokens, list(part.windows)) == (1, 10, [])
  windows.step()
  whole = windows.propose(0)
  assert [window.tokens for window in whole.windows] == [20]
  windows.commit(1)
  assert windows.parts[1].steps == 1  # of after its proposal
  assert (windows.tokens_committed, windows.tokens_uncommitted) == (0, 20)
  windows.commit(0)
  assert (windows.tokens_committed, windows.tokens_uncommitted) == (20, 0)


def test_a_window_that_ended_after_the_proposal_is_not_committed_by_it():
  windows = windows_of(2, steps=2)
  windows.step()
  windows.propose(0)
  windows.start([(2, 4)])
  windows.step()
  windows.end()
  windows.commit(0)
  assert (windows.tokens_committed, windows.tokens_uncommitted) == (10, 10)


def test_a_proposal_of_before_is_not_what_was_proposed_last():
  windows = windows_of(2)
  windows.step()
  old = windows.propose(1)
  windows.drop()
  windows.start([(4, 8)])
  windows.step()
  assert not windows.includes(step_of(old), *WHO)
  windows.propose(1)
  assert not windows.includes(step_of(old), *WHO)


def test_what_is_left_out_too_often_is_lost_by_fragment():
  windows = windows_of(2)
  windows.step()
  windows.propose(1)
  assert not windows.carry(1)
  assert windows.parts[1].steps == 1
  assert not windows.carry(1)  # it had proposed nothing
  windows.propose(1)
  assert windows.carry(1)


def test_what_is_thrown_away_is_lost_if_no_other_fragment_has_it():
  for fragments, lost in (1, [10]), (2, []):
    windows = windows_of(fragments)
    windows.step()
    windows.propose(0)
    windows.start([(4, 8)])
    windows.step()
    windows.commit(0)
    dropped = windows.throw_away(0)
    assert [window.tokens for window in dropped] == lost
    assert windows.tokens_lost == sum(lost)
    assert windows.parts[0].steps == 0
