"""What an operator types, and what the coordinator makes of it."""

import pytest

from intellect_jax import control
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.errors import UserError


def change_of(line: str, to=None, at_record=0) -> pb.ControlRequest:
  change = control.change_of(line.split(), to, at_record)
  assert change is not None
  return change


def test_status_changes_nothing():
  assert control.change_of(["status"], None, 0) is None


@pytest.mark.parametrize(
  ("line", "change"),
  [
    ("pause", dict(pause=pb.SetPause(paused=True))),
    ("resume", dict(pause=pb.SetPause(paused=False))),
    ("finish", dict(finish=pb.Finish())),
    ("evict ada", dict(evict=pb.Evict(island="ada"))),
  ],
)
def test_a_command_is_a_change(line, change):
  assert change_of(line) == pb.ControlRequest(**change)


def test_rollback_names_the_newest_record_that_counts():
  assert change_of("rollback", to=3).rollback.to == 3
  for to in (None, -1):
    with pytest.raises(UserError, match="--to=N"):
      change_of("rollback", to=to)


@pytest.mark.parametrize(
  ("typed", "json"),
  [("0.65", "0.65"), ("5", "5"), ("True", "true"), ("int8", '"int8"')],
)
def test_values_travel_as_json(typed, json):
  change = change_of(f"set run.outer.learning_rate={typed}", at_record=7)
  assert dict(change.set.values) == {"run.outer.learning_rate": json}
  assert change.set.at_record == 7


def test_several_fields_are_one_change():
  change = change_of("set run.outer.momentum=0.8 run.elastic.min_islands=2")
  assert len(change.set.values) == 2


@pytest.mark.parametrize(
  "line", ["", "stop", "pause now", "evict", "set", "set a", "set =1", "set a="]
)
def test_what_is_not_clear_is_refused(line):
  with pytest.raises(UserError):
    change_of(line)
