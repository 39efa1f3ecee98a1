"""What one island tells: lines in a terminal, metrics.jsonl, summary.json."""

from collections import deque
from collections.abc import Callable
import contextlib
import math
import pathlib
import time
from typing import Any

from ml_collections import ConfigDict

from intellect_jax import config as config_lib
from intellect_jax.elastic.mesh import ElasticDeviceMesh, Event
from intellect_jax.observe.metrics import MetricsLog, write_summary
from intellect_jax.observe.speed import Speed
from intellect_jax.outer.schedule import payload_reduction

_LINE_SECONDS = 2.0  # between two lines about inner steps


class IslandReport:
  """Writes down the events of one island's process."""

  def __init__(
    self,
    workdir: pathlib.Path,
    run: ConfigDict,
    speed: Speed | None = None,
    data: Callable[[], dict[str, float]] = dict,
  ):
    """Opens the logs.

    Args:
      workdir: where they are; made if needed.
      run: the run half of the config.
      speed: adds figures of speed to each step.
      data: returns figures of the data so far, for each step and the summary.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    self._workdir = workdir
    self._run, self._unit = run, config_lib.loss_unit(run)
    self._speed = speed
    self._data = data
    self._log = MetricsLog(workdir / "metrics.jsonl")
    self._island = ""
    self._started = time.monotonic()
    self._last_line = -math.inf
    self._evaluations: dict[int, float] = {}

  def compiled(self, memory: dict[str, int]) -> None:
    seconds = time.monotonic() - self._started
    plan = ", ".join(f"{n} {b / 2**20:.1f} MiB" for n, b in memory.items())
    _say(f"compiled in {seconds:.1f} s; a device holds {plan}")

  def joined(self, mesh: ElasticDeviceMesh) -> None:
    self._island = mesh.island
    _say(
      f"island {mesh.island} stands at record {mesh.record}"
      f" of run {self._run.name!r}"
    )

  def take(self, events: deque[Event]) -> None:
    """Writes and shows events, and empties the queue."""
    while events:
      event = events.popleft()
      if event["kind"] == "step":
        event |= self._data()
        event |= self._speed.of(event) if self._speed else {}
      self._log.write(dict(island=self._island, **event))
      getattr(self, f"_{event['kind']}")(event)

  def _step(self, event: Event) -> None:
    now = time.monotonic()
    if now - self._last_line >= _LINE_SECONDS:
      self._last_line = now
      _say(
        f"round {event['round']:4d}  step {event['step']:6d}"
        f"  loss {self._loss(event)}"
        f"  {event['tokens_per_second']:8,.0f} tokens/s"
        + (f"  MFU {event['mfu']:.1%}" if "mfu" in event else "")
      )

  def _record(self, event: Event) -> None:
    spent = event["train_seconds"] + event["blocked_seconds"]
    _say(
      f"record {event['round']:3d}  {event['members']} islands"
      f"  {event['total_tokens']:,} of {self._run.tokens:,} tokens"
      f"  blocked {100 * event['blocked_seconds'] / max(spent, 1e-9):.1f} %"
      + ("" if event["included"] else "  (this island was left out)")
    )

  def _direction(self, event: Event) -> None:
    cosine = event["delta_cosine"]
    _say(
      f"record {event['round']:3d}  outer gain {event['gain']:.2f}"
      + ("" if cosine is None else f", cosine with the last {cosine:+.2f}")
    )

  def _evaluation(self, event: Event) -> None:
    loss = self._evaluations[event["round"]] = event["eval_loss"]
    said = (
      f"record {event['round']:3d}  held-out loss {self._loss(event, 'eval_')}"
    )
    if self._unit == "token":
      said += (
        f", perplexity {math.exp(loss) if not loss > 700 else math.inf:.1f}"
      )
    _say(said)

  def _loss(self, event: Event, prefix: str = "") -> str:
    """A loss with its unit, and what DPO tells beside it."""
    said = f"{event[f'{prefix}loss']:.4f} nats/{self._unit}"
    if self._unit == "pair":
      if "pairs" in event:
        said += f" of {event['pairs']:.0f}"
      accuracy = event[f"{prefix}preference_accuracy"]
      said += f", accuracy {100 * accuracy:.1f} %"
      said += f", margin {event[f'{prefix}margin']:+.3f}"
      said += f", chosen NLL {event[f'{prefix}chosen_nll']:.3f}"
    return said

  def _lost(self, event: Event) -> None:
    _say(f"lost {event['tokens_lost']:,} tokens so far: {event['cause']}")

  def _restored(self, event: Event) -> None:
    _say(f"restored record {event['round']} from {event['source']}")

  def finish(self, mesh: ElasticDeviceMesh) -> dict[str, Any]:
    """Writes summary.json and says where it is."""
    self.take(mesh.events)
    summary: dict[str, Any] = {**mesh.summary(), **self._data()}
    if not summary["inner_steps"] and (self._workdir / "summary.json").exists():
      _say("The run was final already; nothing has changed.")
      return summary
    evaluations = sorted(self._evaluations.items())
    summary.update(
      initial_eval_loss=evaluations[0][1] if evaluations else None,
      final_eval_loss=evaluations[-1][1] if evaluations else None,
      payload_reduction=payload_reduction(
        summary["members"],
        summary["values"],
        self._run.outer.inner_steps,
        summary["codec_bytes_sent"] / max(summary["rounds"], 1),
      ),
      wall_seconds=time.monotonic() - self._started,
    )
    write_summary(self._workdir / "summary.json", summary)
    _say(f"Results are in {self._workdir}/summary.json and metrics.jsonl.")
    return summary

  def __enter__(self) -> "IslandReport":
    return self

  def __exit__(self, *_) -> None:
    self._log.close()


def _say(line: str) -> None:
  """Prints a line. Where it goes to a full disk, that ends no island."""
  with contextlib.suppress(OSError):
    print(line, flush=True)
