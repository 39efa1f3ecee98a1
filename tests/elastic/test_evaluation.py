"""Who evaluates theta, and when."""

from intellect_jax.elastic.evaluation import whose_turn

MEMBERS = ["a", "b", "c"]


def turns(every, records, final=None):
  return [
    whose_turn(record, record == final, every, MEMBERS)
    for record in range(records)
  ]


def test_members_take_turns():
  assert turns(1, 5) == ["a", "b", "c", "a", "b"]


def test_every_third_record_is_not_always_the_same_member():
  seen = [turn for turn in turns(3, 10) if turn]
  assert seen == ["a", "b", "c", "a"]


def test_the_final_record_is_always_evaluated():
  assert turns(4, 6, final=5) == ["a", None, None, None, "b", "b"]
