"""A swarm in a terminal: one screen that shows which island or link is slow.

`render` is a function of what the coordinator says; `Progress` asks it twice a
second. Without a terminal it writes a line at each record instead.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
import math
import statistics
import textwrap
import threading
import time
from typing import Any

from ml_collections import ConfigDict
from rich import box
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal as size_text
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from intellect_jax import config as config_lib
from intellect_jax.elastic.protocol import elastic_pb2 as pb

_POLL_SECONDS = 0.5
_LINE_SECONDS = 15.0  # between two lines where there is no terminal
_PACE_SECONDS = 60.0  # over which the time left is estimated
_UNANSWERED_SECONDS = 2.0  # before the screen says so
_NOTES = 3  # newest, shown
_OTHER_LINES = 16  # of the screen: all that is no row of an island
_PHASE_LETTERS = 120  # two lines, or three with long names
_SLOW = 2 / 3  # of the median island's tokens a second, or link
_OUT = ("gone", "left")  # states of islands that take no part
_OUTER_WORDS: dict[str, Callable[[float], str]] = {
  "delta_norm": "|Δ| {:.2g}".format,
  "gain": "gain {:.1f}".format,
  "island_cosine": "cos: islands {:+.2f}".format,
  "delta_cosine": "rounds {:+.2f}".format,
}
_BARS = "▁▂▃▄▅▆▇█"


class Progress:
  """Shows a run from `with` to its end.

  Attributes:
    status: the newest that is known.
    evaluations: held-out loss of theta by record, also from before a restart
      of the coordinator.
  """

  def __init__(
    self,
    poll: Callable[[], pb.Status],
    run: ConfigDict,
    console: Console | None = None,
  ):
    """Prepares; nothing is asked yet.

    Args:
      poll: returns the newest status, or the very object of before if the
        coordinator does not answer. Called from a thread of its own.
      run: the run half of the config.
      console: the standard output if None.
    """
    self.status = pb.Status()
    self.evaluations: dict[int, float] = {}
    self._poll = poll
    self._run = run
    self._console = Console() if console is None else console
    self._notes: list[str] = []
    self._answered = time.monotonic()
    self._pace: deque[tuple[float, int]] = deque()  # (time, tokens trained)
    self._line_record, self._line_time = 0, -math.inf
    self._closing = threading.Event()
    self._thread = threading.Thread(
      target=self._watch, name="progress", daemon=True
    )
    self._live = (
      Live(console=self._console, auto_refresh=False)
      if self._console.is_terminal
      else None
    )

  def note(self, text: str) -> None:
    """Shows something that happened."""
    stamped = f"{time.strftime('%H:%M:%S')} {text}"
    self._notes.append(stamped)
    if self._live is None:
      self._print(stamped)

  def __enter__(self) -> "Progress":
    if self._live is not None:
      self._live.start()
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._closing.set()
    self._thread.join()
    if self._live is not None:
      self._live.stop()

  def _watch(self) -> None:
    while not self._closing.is_set():
      self._look()
      self._closing.wait(_POLL_SECONDS)
    self._look()

  def _look(self) -> None:
    """Asks once, and shows the answer."""
    status, now = self._poll(), time.monotonic()
    if status is not self.status:
      self.status, self._answered = status, now
      self.evaluations |= {e.record: e.loss for e in status.evaluations}
      self._pace.append((now, status.tokens_trained - status.tokens_lost))
      while self._pace[0][0] < now - _PACE_SECONDS:
        self._pace.popleft()
    if self._live is None:
      if self.status.run_tokens:  # somebody has answered
        self._line(now)
    else:
      screen = render(
        self.status,
        self._run,
        self.evaluations,
        seconds_left=self._seconds_left(),
        unanswered_seconds=now - self._answered,
        notes=self._notes,
        height=self._console.height,
      )
      self._live.update(screen, refresh=True)

  def _line(self, now: float) -> None:
    new = self.status.record > self._line_record
    if new or now - self._line_time >= _LINE_SECONDS:
      self._line_record, self._line_time = self.status.record, now
      self._print(line(self.status, self._run, self.evaluations))

  def _print(self, text: str) -> None:
    self._console.print(text, soft_wrap=True, markup=False, highlight=False)

  def _seconds_left(self) -> float | None:
    """At the pace of the last minute."""
    if not self._pace:
      return None
    (began, before), (now, trained) = self._pace[0], self._pace[-1]
    if trained <= before:
      return None
    missing = max(0, self.status.run_tokens - trained)
    return missing * (now - began) / (trained - before)


# ------------------------------------------------------------------ a screen


def render(
  status: pb.Status,
  run: ConfigDict,
  evaluations: Mapping[int, float],
  seconds_left: float | None = None,
  unanswered_seconds: float = 0.0,
  notes: Sequence[str] = (),
  height: int = 24,
) -> RenderableType:
  """A run as one screen of `height` lines, 80 columns or more.

  Args:
    evaluations: held-out loss of theta by record, nats a token or a pair.
    seconds_left: until the run has all its tokens, if it can be told.
    unanswered_seconds: since the coordinator was heard.
    notes: what happened; the newest are shown.
  """
  facts = Table.grid(expand=True, padding=(0, 1, 0, 0))
  facts.add_column(width=13, no_wrap=True, overflow="ellipsis")
  facts.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
  facts.add_row(
    Text(run.name, "bold"),
    f"record {status.record}, term {status.term},"
    f" islands in: {len(_inside(status))}",
  )
  facts.add_row("this round", _phase(status, unanswered_seconds))
  facts.add_row("tokens", _tokens(status, seconds_left))
  facts.add_row(
    "held-out loss", f"{_losses(evaluations, run)}  {_curve(evaluations)}"
  )
  facts.add_row("outer step", _outer_step(status))
  facts.add_row("all islands", _exchanged(status))
  if status.losses:
    newest = status.losses[-1]
    lost = f"{status.tokens_lost:,} tokens; {newest.island}: {newest.cause}"
    facts.add_row("lost", Text(lost, "yellow"))
  rows = max(1, height - _OTHER_LINES)
  lines: list[RenderableType] = [facts, "", _islands(status, run, rows)]
  if notes:
    lines.append("")
  for note in notes[-_NOTES:]:
    lines.append(Text(note, "dim", no_wrap=True, overflow="ellipsis"))
  return Group(*lines)


def line(
  status: pb.Status, run: ConfigDict, evaluations: Mapping[int, float]
) -> str:
  """A run as one line, for a log."""
  rate = sum(i.heartbeat.tokens_per_second for i in _inside(status))
  return (
    f"record {status.record}  {status.total_tokens:,} of"
    f" {status.run_tokens:,} tokens  islands in: {len(_inside(status))}"
    f"  {rate:,.0f} tokens/s  held-out loss {_losses(evaluations, run)}"
    f"  {_exchanged(status)}  {status.phase}"
  )


def _phase(status: pb.Status, unanswered_seconds: float) -> Text:
  if status.final:
    return Text("finished", "green")
  if unanswered_seconds > _UNANSWERED_SECONDS:
    silent = duration(unanswered_seconds)
    return Text(f"the coordinator does not answer for {silent}", "bold red")
  phase = textwrap.shorten(status.phase, _PHASE_LETTERS, placeholder=" …")
  return Text(phase or "starting", "cyan", no_wrap=False, overflow="fold")


def _tokens(status: pb.Status, seconds_left: float | None) -> Table:
  total, done = max(1, status.run_tokens), status.total_tokens
  figures = f"{done:,} of {status.run_tokens:,}"
  if seconds_left is not None and not status.final:
    figures += f", {duration(seconds_left)} left"
  row = Table.grid(expand=True, padding=(0, 1, 0, 0))
  row.add_column(ratio=1)
  row.add_column(no_wrap=True)
  row.add_row(ProgressBar(total=total, completed=min(done, total)), figures)
  return row


def _losses(evaluations: Mapping[int, float], run: ConfigDict) -> str:
  if not evaluations:
    return "not known yet"
  first, last = min(evaluations), max(evaluations)
  start = f"{evaluations[first]:.4f} → " if first < last else ""
  unit = config_lib.loss_unit(run)
  return f"{start}{evaluations[last]:.4f} nats/{unit} at record {last}"


def _curve(evaluations: Mapping[int, float]) -> str:
  return sparkline([loss for _, loss in sorted(evaluations.items())][-20:])


def sparkline(values: Sequence[float]) -> str:
  """Bars from the least to the greatest value; a dot if it is not finite."""
  finite = [v for v in values if math.isfinite(v)]
  low, high = min(finite, default=0.0), max(finite, default=0.0)
  scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
  return "".join(
    _BARS[round((v - low) * scale)] if math.isfinite(v) else "·" for v in values
  )


def _outer_step(status: pb.Status) -> str:
  """Of the newest, as who knows most of it says."""
  newest = max(
    (island.heartbeat.outer for island in status.islands),
    key=lambda outer: (outer.record, outer.HasField("gain")),
    default=pb.OuterFigures(),
  )
  if not newest.record:
    return "none yet"
  eta, mu = newest.outer_learning_rate, newest.outer_momentum
  said = [f"η {eta:.3g} μ {mu:.3g}"]
  for field, words in _OUTER_WORDS.items():
    if newest.HasField(field):
      said.append(words(getattr(newest, field)))
  return "  ".join(said)


def _exchanged(status: pb.Status) -> str:
  beats = [i.heartbeat for i in status.islands]
  train = sum(b.train_seconds for b in beats)
  blocked = sum(b.blocked_seconds for b in beats)
  relayed = sum(b.bytes_relayed for b in beats)
  through = f" ({size_text(relayed)} relayed)" if relayed else ""
  return (
    f"sent {size_text(sum(b.bytes_sent for b in beats))}{through},"
    f" trained {train:,.0f} s, blocked {blocked:,.0f} s"
    f" ({_share(blocked, train)})"
  )


def _islands(status: pb.Status, run: ConfigDict, rows: int) -> Table:
  """A row for each island; if not all fit, for the slowest."""
  islands = sorted(status.islands, key=_pace_of)
  if len(islands) > rows:
    islands = islands[: rows - 1]
  islands.sort(key=lambda i: (i.state in _OUT, i.island))
  beats = [island.heartbeat for island in _inside(status)]
  median = statistics.median([b.tokens_per_second for b in beats] or [0.0])
  median_up = _median([b.upload_rate for b in beats])
  median_down = _median([b.download_rate for b in beats])
  places = any(island.place for island in islands)
  links = median_up > 0 or median_down > 0
  table = _island_columns(places, links, wrap=3 * len(islands) <= rows)
  for island in islands:
    beat = island.heartbeat
    began = beat.step > 0
    loss_style = "" if math.isfinite(beat.loss) else "bold red"
    rate_style = "yellow" if beat.tokens_per_second < _SLOW * median else ""
    slow_link = (
      0 < beat.upload_rate < _SLOW * median_up
      or 0 < beat.download_rate < _SLOW * median_down
    )
    link = f"{_mbit(beat.upload_rate)}/{_mbit(beat.download_rate)}"
    table.add_row(
      Text(island.island),
      *([Text(island.place)] if places else []),
      f"{beat.step:,}",
      Text(f"{beat.loss:.4f}" if began else "–", loss_style),
      Text(f"{beat.tokens_per_second:,.0f}" if began else "–", rate_style),
      _share(beat.blocked_seconds, beat.train_seconds),
      *([Text(link, "yellow" if slow_link else "")] if links else []),
      _state(island, run.elastic.lease_seconds),
      style="dim" if island.state in _OUT else "",
    )
  if len(islands) < len(status.islands):
    table.add_row(f"… {len(status.islands) - len(islands)} more")
  if not islands:
    table.add_row(Text("none yet", "dim"))
  return table


def _island_columns(places: bool, links: bool, wrap: bool) -> Table:
  table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
  table.add_column("island", no_wrap=True, max_width=14)
  if places:
    table.add_column("place", no_wrap=True, max_width=10)
  for name, width in dict(step=5, loss=6).items():
    table.add_column(name, justify="right", no_wrap=True, min_width=width)
  table.add_column("tokens/s", justify="right", no_wrap=True)
  table.add_column("blocked", justify="right", no_wrap=True)
  if links:
    table.add_column("Mbit/s ↑/↓", justify="right", no_wrap=True)
  table.add_column("state", ratio=1, no_wrap=not wrap, overflow="ellipsis")
  return table


def _median(rates: Sequence[float]) -> float:
  """Of those that are known; 0 if none is."""
  return statistics.median([rate for rate in rates if rate > 0] or [0.0])


def _mbit(rate: float) -> str:
  """Bytes/s in 10^6 bits/s."""
  mbit = 8e-6 * rate
  return f"{mbit:,.{0 if mbit >= 10 else 1}f}" if rate > 0 else "–"


def _pace_of(island: pb.IslandStatus) -> tuple[bool, float]:
  return island.state in _OUT, island.heartbeat.tokens_per_second


def _inside(status: pb.Status) -> list[pb.IslandStatus]:
  return [island for island in status.islands if island.state not in _OUT]


def _state(island: pb.IslandStatus, lease_seconds: float) -> Text:
  """What an island does, or why it does nothing."""
  activity = island.heartbeat.activity
  if island.state == "gone":
    return Text(f"gone, silent for {duration(island.silent_seconds)}", "red")
  if island.state == "left":
    return Text("left")
  if island.silent_seconds > lease_seconds / 2:
    silent = duration(island.silent_seconds)
    return Text(f"silent for {silent}; was {activity}", "red")
  if island.state == "joining":
    return Text(f"joining, {activity}" if activity else "joining", "cyan")
  style = "yellow" if activity.startswith("waiting") else "green"
  return Text(activity or "in", style)


def _share(part: float, rest: float) -> str:
  whole = part + rest
  return f"{100 * part / whole:.1f} %" if whole > 0 else "–"


def duration(seconds: float) -> str:
  """A time as a person says it: 42 s, 3 min 20 s, 5 h 12 min, 3 d 4 h."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} min {seconds % 60} s"
  if seconds < 86_400:
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
  return f"{seconds // 86_400} d {seconds % 86_400 // 3600} h"


# ------------------------------------------------------------------- the end


def summary_table(summary: Mapping[str, Any], run: ConfigDict) -> Table:
  """What summary.json says, for a person; keys that are missing stay out."""
  unit = config_lib.loss_unit(run)
  table = Table(box=box.SIMPLE_HEAD, show_header=False)
  table.add_column(no_wrap=True)
  table.add_column(overflow="fold")
  for key, (name, words) in _WORDS.items():
    if key in summary:
      value = summary[key]
      said = "not known" if value is None else words(value)
      if key in _LOSSES and value is not None:
        said += f" nats/{unit}"
      table.add_row(name, Text(said))
  return table


def _hashes(theta_hash: Mapping[str, str]) -> str:
  if len(theta_hash) > 1 and len(set(theta_hash.values())) == 1:
    digest = next(iter(theta_hash.values()))
    return f"{digest[:16]}… on all {len(theta_hash)} islands"
  return "\n".join(
    f"{h[:16]}… on {name}" for name, h in sorted(theta_hash.items())
  )


def _by_island(sizes: Mapping[str, int]) -> str:
  said = [f"{size_text(n)} by {name}" for name, n in sorted(sizes.items()) if n]
  return "\n".join(said) or "none"


_LOSSES = ("initial_eval_loss", "final_eval_loss")
_WORDS: dict[str, tuple[str, Callable[[Any], str]]] = {
  "rounds": ("rounds", "{:,}".format),
  "tokens_trained": ("tokens trained", "{:,}".format),
  "tokens_committed": ("tokens committed", "{:,}".format),
  "tokens_lost": ("tokens lost", "{:,}".format),
  "initial_eval_loss": ("held-out loss, first", "{:.4f}".format),
  "final_eval_loss": ("held-out loss, last", "{:.4f}".format),
  "islands": ("islands", ", ".join),
  "theta_hash": ("state hash", _hashes),
  "bytes_sent": ("bytes sent", _by_island),
  "bytes_relayed": ("bytes relayed", _by_island),
  "payload_reduction": ("payload reduction", "{:,.1f} ×".format),
  "compute_utilization": ("compute utilization", "{:.1%}".format),
  "wall_seconds": ("wall time", duration),
}
