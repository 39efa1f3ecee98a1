"""What an operator changed in flight: settings records, in their order.

A change is a record, so that every island, who joins later and a replay agree
on it. What a rollback annuls is undone.
"""

from collections.abc import Sequence
import dataclasses
import json

from ml_collections import ConfigDict

from intellect_jax import config as config_lib
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.errors import UserError

# What no compiled step and no layout depends on.
SETTABLE = (
  "run.tokens",
  "run.outer.clip_ratio",
  "run.outer.decay_to",
  "run.outer.decay_tokens",
  "run.outer.eager",
  "run.outer.inner_steps",
  "run.outer.learning_rate",
  "run.outer.max_ahead_steps",
  "run.outer.max_carry",
  "run.outer.merge",
  "run.outer.merge_alpha",
  "run.outer.momentum",
  "run.outer.momentum_warmup_tokens",
  "run.outer.overlap_steps",
)
_SETTABLE_SECTIONS = ("run.elastic.",)


@dataclasses.dataclass
class Steering:
  """Where the settings records of a chain have brought the run.

  Attributes:
    paused: why no round is planned; empty if it is.
    finish: whether the next step is the last.
    evicted: (island, incarnation) that may not come back.
    values: (from which record on, name, value as JSON), in order.
  """

  paused: str = ""
  finish: bool = False
  evicted: set[tuple[str, int]] = dataclasses.field(default_factory=set)
  values: list[tuple[int, str, str]] = dataclasses.field(default_factory=list)

  @classmethod
  def of(cls, records: Sequence[pb.Record]) -> "Steering":
    """The sum of the settings in `records`, which all count."""
    steering = cls()
    for record in records:
      if not record.HasField("settings"):
        continue
      settings = record.settings
      if settings.pause == pb.Settings.PAUSE_BEGIN:
        steering.paused = settings.reason or "an operator paused the run"
      elif settings.pause == pb.Settings.PAUSE_END:
        steering.paused = ""
      steering.finish |= settings.finish
      if settings.HasField("evicted"):
        out = settings.evicted
        steering.evicted.add((out.island, out.incarnation))
      for name, value in sorted(settings.values.items()):
        steering.values.append((settings.at_record, name, value))
    return steering

  def changed(self, number: int) -> dict[str, str]:
    """The changed settings that hold for record `number`, as JSON."""
    return {name: value for at, name, value in self.values if at <= number}

  def run_at(self, run: ConfigDict, number: int) -> ConfigDict:
    """The run half as it holds for record `number`; `run` is as started."""
    changed = self.changed(number)
    return with_values(run, changed) if changed else run


def settings_of(
  request: pb.ControlRequest, steering: Steering, run: ConfigDict, number: int
) -> pb.Settings:
  """The settings that an operator asks for, as record `number` would have them.

  Raises:
    UserError: why they cannot be.
  """
  settings = pb.Settings(reason=request.reason)
  match request.WhichOneof("change"):
    case "set":
      values, at = dict(request.set.values), request.set.at_record
      if not values or 0 < at <= number:
        raise UserError(f"no values, or record {at} is not ahead of {number}")
      with_values(run, values)
      settings.values.update(values)
      settings.at_record = at or number + 1
    case "pause":
      if request.pause.paused == bool(steering.paused):
        told = "the run is paused already"
        raise UserError(told if steering.paused else "it is not paused")
      begin, end = pb.Settings.PAUSE_BEGIN, pb.Settings.PAUSE_END
      settings.pause = begin if request.pause.paused else end
    case "finish":
      settings.finish = True
    case _:
      raise UserError("it asks for nothing")
  return settings


def with_values(run: ConfigDict, values: dict[str, str]) -> ConfigDict:
  """A copy of the run half with some settings changed, and checked.

  Raises:
    UserError: if a setting is unknown, fixed for the run, or impossible.
  """
  changed = config_lib.base().run
  changed.update(run.to_dict())
  for name, text in values.items():
    if name not in SETTABLE and not name.startswith(_SETTABLE_SECTIONS):
      raise UserError(
        f"{name} cannot be changed while a run is under way. These can:"
        f" {', '.join(SETTABLE)} and all of run.elastic."
      )
    *path, field = name.split(".")[1:]
    section = changed
    for part in path:
      section = section[part]
    if field not in section:
      raise UserError(f"There is no setting {name}; see configs/base.py.")
    try:
      section[field] = _cast(json.loads(text), section.get_type(field))
    except (ValueError, TypeError) as error:
      raise UserError(
        f"{name}={text} is not a {section.get_type(field).__name__}."
      ) from error
  config_lib.validate_run(changed)
  return changed


def _cast(value: object, kind: type) -> object:
  """`value` as a field of a kind takes it: 1 may stand for 1.0, and no more.

  Of the kind `object` is a field that has a number or a word: what it may be
  is checked with the rest.
  """
  if kind is float and type(value) is int:
    return float(value)
  if kind is not object and type(value) is not kind:
    raise TypeError
  return value
