"""What an island notes down: for its own logs, and for the operator's screen."""

import collections
from collections.abc import Mapping
import concurrent.futures
import math
from typing import Any

import jax

from intellect_jax.elastic import figures
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.holdings import Holdings
from intellect_jax.elastic.meter import Meter
from intellect_jax.elastic.news import News
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.windows import Windows
from intellect_jax.errors import UserError

_EVALUATIONS_TOLD = 4  # newest, in each heartbeat: a lost one is made up for

Event = dict[str, Any]


class Diary:
  """The events of one island, and its heartbeat.

  Attributes:
    events: what happened since they were last taken: dicts with a "kind" of
      "step", "record", "direction", "evaluation", "lost" or "restored".
    hand_in_seconds: of the newest encoding.
  """

  def __init__(
    self,
    island: str,
    held: Holdings,
    crew: Crew,
    windows: Windows,
    news: News,
  ):
    self.events: collections.deque[Event] = collections.deque()
    self.hand_in_seconds = 0.0
    self.meter = Meter(crew)
    self._crew = crew
    self._island = island
    self._held = held
    self._windows = windows
    self._news = news
    self._step: dict[str, Any] | None = None  # the newest, not noted yet
    self._look: concurrent.futures.Future[None] | None = None

  def note(self, kind: str, **figures) -> None:
    """Something happened at the record that theta stands at."""
    figures |= self.meter.figures()
    tokens_lost, number = self._windows.tokens_lost, self._held.record.number
    self.events.append(
      dict(kind=kind, round=number, tokens_lost=tokens_lost, **figures)
    )

  def recorded(self, record: pb.Record, included: bool) -> None:
    """Theta was moved by a record, which this island is in or not."""
    self.wait()  # not for long: theta has moved on
    told = figures.of_step(record.step)
    self.note(
      "record",
      included=included,
      members=len(record.step.members),
      total_tokens=record.total_tokens,
      final=record.final,
      **told,
    )
    with self._news.changed:
      newest = pb.OuterFigures(record=record.number, **told)
      self._news.heartbeat.outer.CopyFrom(newest)
    self._look = self._held.look_back(
      lambda direction: self._directed(record.number, direction)
    )

  def _directed(self, record: int, direction: figures.Direction) -> None:
    """It is known where the step of a record went. From another thread."""
    told = direction._asdict()
    self.events.append(dict(kind="direction", round=record, **told))
    with self._news.changed:
      self._news.heartbeat.outer.MergeFrom(pb.OuterFigures(**told))

  def wait(self) -> None:
    """Waits for what is being found out; raises what that raised."""
    if self._look is not None:
      self._look.result()

  def evaluated(self, record: int, figures: Mapping[str, float]) -> None:
    """Theta at a record has this "loss" and the rest. From any thread."""
    named = {f"eval_{name}": value for name, value in figures.items()}
    self.events.append(dict(kind="evaluation", round=record, **named))
    with self._news.changed:
      told = self._news.heartbeat.evaluations
      told.add(record=record, loss=figures["loss"])
      del told[:-_EVALUATIONS_TOLD]

  def step(self, metrics: dict[str, jax.Array], position: float) -> None:
    """An inner step of the open window was dispatched, and is counted."""
    assert self._windows.open is not None
    self._step = dict(
      metrics=metrics,
      round=self._held.record.number + 1,
      window=self._windows.open.number,
      position=position,
      step=self._windows.steps,
    )

  def step_done(self) -> None:
    """Notes the newest step, waiting for it; once.

    Raises:
      UserError: if its loss is not finite.
    """
    told, self._step = self._step, None
    if told is None:
      return
    metrics, step = jax.device_get(told.pop("metrics")), told["step"]
    figures = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(figures["loss"]):
      raise UserError(
        f"The loss of inner step {step} is {figures['loss']}. Nothing of this"
        " window is proposed. Lower run.inner.learning_rate, or look at the"
        " data of the last batches."
      )
    meter = self.meter
    meter.trained()
    tokens = step * self._windows.tokens_a_step
    rate = tokens / max(meter.train_seconds, 1e-9)
    told.update(figures, tokens=tokens, tokens_per_second=rate)
    self.events.append(dict(kind="step", **told, **meter.figures()))
    self.stands()
    with self._news.changed:
      heartbeat = self._news.heartbeat
      heartbeat.window = told["window"]
      heartbeat.step = step
      heartbeat.activity = "training"
      step_seconds = meter.train_seconds / max(1, step)
      heartbeat.hand_in_seconds = step_seconds + self.hand_in_seconds
      heartbeat.loss = figures["loss"]
      heartbeat.tokens_per_second = rate
      heartbeat.train_seconds = meter.train_seconds
      heartbeat.blocked_seconds = meter.blocked_seconds

  def stands(self) -> None:
    """Tells where the island stands, and what of its work is undecided."""
    with self._news.changed:
      heartbeat = self._news.heartbeat
      heartbeat.record = self._held.record.number
      heartbeat.tokens_trained = self._windows.tokens_trained
      heartbeat.tokens_open = self._windows.tokens_uncommitted

  def summary(self) -> dict[str, Any]:
    """This island's figures, under the names of summary.json."""
    held, windows, meter = self._held, self._windows, self.meter
    sent, relayed, received = self._crew.traffic(anew=True)
    return dict(
      island=self._island,
      islands=[self._island],
      rounds=meter.rounds,
      members=meter.most_members,
      record=held.record.number,
      final=held.record.final,
      inner_steps=windows.steps,
      tokens_trained=windows.tokens_trained,
      tokens_committed=windows.tokens_committed,
      tokens_lost=windows.tokens_lost,
      theta_hash={self._island: held.whole_hash().hex()},
      bytes_sent={self._island: sent},
      bytes_relayed={self._island: relayed},
      bytes_received={self._island: received},
      codec_bytes_sent=meter.codec_bytes,
      train_seconds=meter.train_seconds,
      blocked_seconds=meter.blocked_seconds,
      compute_utilization=meter.compute_utilization,
      values=sum(tensor.size for tensor in held.layout.tensors),
    )
