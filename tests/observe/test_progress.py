"""What an operator can read off the screen, whatever the swarm is up to."""

import io
import math
from typing import Any

import pytest
from rich.console import Console

from intellect_jax import config
from intellect_jax.elastic.coordination import Coordinator, History
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.observe import progress

RUN = config.base().run


def make_status(*islands: pb.IslandStatus, **fields) -> pb.Status:
  return pb.Status(
    record=12,
    term=2,
    total_tokens=1_000_000,
    run_tokens=4_000_000,
    islands=islands,
    **fields,
  )


def make_island(name: str, state: str = "in", silent: float = 0.5, **beat: Any):
  beat = {"step": 1234, "loss": 4.5, "tokens_per_second": 1000.0} | beat
  return pb.IslandStatus(
    island=name,
    state=state,
    silent_seconds=silent,
    heartbeat=pb.Heartbeat(**beat),
  )


def lines_of(renderable) -> list[str]:
  console = Console(width=80, height=24, record=True, file=io.StringIO())
  console.print(renderable)
  return [line.rstrip() for line in console.export_text().splitlines()]


def screen(status: pb.Status, evaluations=None, **arguments) -> list[str]:
  lines = lines_of(progress.render(status, RUN, evaluations or {}, **arguments))
  assert len(lines) < 24 and max(map(len, lines)) <= 80
  return lines


def yellow(status: pb.Status) -> list[str]:
  """The lines of the screen that have something yellow."""
  console = Console(
    width=80, force_terminal=True, color_system="standard", file=io.StringIO()
  )
  with console.capture() as capture:
    console.print(progress.render(status, RUN, {}))
  return [n for n in capture.get().splitlines() if "\x1b[33m" in n]


def row_of(lines: list[str], start: str) -> str:
  (row,) = [line for line in lines if line.startswith(start)]
  return row


def test_an_island_has_its_figures_in_its_row():
  status = make_status(
    make_island(
      "island-0",
      loss=4.5612,
      tokens_per_second=12_345,
      train_seconds=97,
      blocked_seconds=3,
      activity="training",
    )
  )
  row = row_of(screen(status), "island-0")
  assert " ".join(row.split()) == "island-0 1,234 4.5612 12,345 3.0 % training"


def test_a_slow_link_shows_in_mbit():
  status = make_status(
    make_island("island-0", upload_rate=1.25e7, download_rate=6e7),
    make_island("island-1", upload_rate=4e5, download_rate=6e7),
    make_island("island-2", upload_rate=1.25e7),
  )
  lines = screen(status)
  assert "100/480" in row_of(lines, "island-0")
  assert "3.2/480" in row_of(lines, "island-1")
  assert "100/–" in row_of(lines, "island-2")
  (slow,) = yellow(status)
  assert "3.2/480" in slow


def test_the_slow_one_shows():
  status = make_status(
    make_island("island-0", activity="waiting for record 13"),
    make_island("island-1", tokens_per_second=300.0, activity="training"),
    make_island("island-2", activity="waiting for record 13"),
    phase="waiting for proposals of island-1",
  )
  lines = screen(status)
  assert "waiting for proposals of island-1" in row_of(lines, "this round")
  assert "waiting for record 13" in row_of(lines, "island-0")
  (slow,) = [line for line in yellow(status) if "training" in line]
  assert "300" in slow


@pytest.mark.parametrize(
  "island, says",
  [
    (make_island("island-0", "joining", activity="compiling"), "compiling"),
    (make_island("island-0", "gone", silent=75), "silent for 1 min 15 s"),
    (make_island("island-0", silent=8, activity="training"), "silent for 8 s"),
    (make_island("island-0", "left"), "left"),
  ],
)
def test_an_island_that_does_not_train_says_why(island, says):
  assert says in row_of(screen(make_status(island)), "island-0")


def test_the_newest_outer_step_shows_as_far_as_it_is_known():
  known = pb.OuterFigures(
    record=12,
    outer_learning_rate=0.6,
    outer_momentum=0.9,
    delta_norm=0.01234,
    island_cosine=0.11,
  )
  behind = pb.OuterFigures(record=11, gain=9.0)
  status = make_status(
    make_island("island-0", outer=known), make_island("island-1", outer=behind)
  )
  said = "η 0.6 μ 0.9  |Δ| 0.012  cos: islands +0.11"
  assert row_of(screen(status), "outer step").endswith(said)
  more = pb.OuterFigures(gain=3.456, delta_cosine=-0.5)
  more.MergeFrom(known)
  status.islands.append(make_island("island-2", outer=more))
  said = "|Δ| 0.012  gain 3.5  cos: islands +0.11  rounds -0.50"
  assert row_of(screen(status), "outer step").endswith(said)


def test_a_run_without_islands():
  coordinator = Coordinator(RUN, History("r", term=1), now=0.0)
  lines = screen(coordinator.status(now=1.0))
  assert "waiting for 1 more" in row_of(lines, "this round")
  assert "not known yet" in row_of(lines, "held-out loss")
  assert "none yet" in row_of(lines, "outer step")
  assert lines[-1] == "none yet"


def test_a_loss_that_is_not_finite_is_shown_as_it_is():
  status = make_status(make_island("island-0", loss=math.nan))
  lines = screen(status, {0: 6.9, 1: math.nan})
  assert "nan" in row_of(lines, "island-0")
  assert "6.9000 → nan" in row_of(lines, "held-out loss")


def test_an_island_that_has_not_begun_claims_no_figures():
  row = row_of(screen(make_status(make_island("island-0", step=0))), "island-0")
  assert row.split() == ["island-0", "0", "–", "–", "–", "in"]


def test_long_names_many_islands_and_all_notes_fit_one_screen():
  islands = [
    make_island(
      f"[red]{'host' * 9}-{i:02}",
      ["in", "joining", "gone"][i % 3],
      tokens_per_second=1000.0 - i,
      activity="waiting for " + "record " * 20,
    )
    for i in range(60)
  ]
  for island in islands:
    island.place = "Santiago de Compostela"
  status = make_status(
    *islands,
    phase="waiting for proposals of " + ", ".join(i.island for i in islands),
  )
  status.losses.add(island=islands[0].island, tokens=5, cause="gone " * 30)
  evaluations = {record: 7.0 - record / 10 for record in range(50)}
  notes = [f"12:00:{i:02} SIGKILL to {islands[i].island}" for i in range(9)]
  lines = screen(
    status,
    evaluations,
    seconds_left=400_000,
    unanswered_seconds=0,
    notes=notes,
  )
  assert lines[-1].startswith("12:00:08")
  assert "53 more" in "".join(lines)
  assert "4 d 15 h left" in row_of(lines, "tokens")


def test_of_too_many_islands_the_slowest_are_shown():
  islands = [
    make_island(f"island-{i:02}", tokens_per_second=1000 + i) for i in range(59)
  ]
  islands.insert(7, make_island("turtle", tokens_per_second=3))
  lines = screen(make_status(*islands))
  assert row_of(lines, "turtle")
  assert not [line for line in lines if line.startswith("island-58")]


def test_a_coordinator_that_does_not_answer_is_named():
  status = make_status(phase="reducing")
  lines = screen(status, unanswered_seconds=12)
  assert "does not answer for 12 s" in row_of(lines, "this round")
  status.final = True
  lines = screen(status, unanswered_seconds=12)
  assert "finished" in row_of(lines, "this round")


def test_bytes_and_times_are_those_of_all_islands():
  status = make_status(
    make_island("a", bytes_sent=1_500_000, train_seconds=50, blocked_seconds=5),
    make_island("b", bytes_sent=500_000, train_seconds=40, blocked_seconds=5),
  )
  row = row_of(screen(status), "all islands")
  assert "sent 2.0 MB" in row
  assert "trained 90 s, blocked 10 s (10.0 %)" in row


def test_lost_tokens_have_a_cause():
  status = make_status(tokens_lost=4096)
  status.losses.add(island="island-1", tokens=4096, cause="evicted")
  assert "4,096 tokens; island-1: evicted" in row_of(screen(status), "lost")


def test_sparkline_spans_its_values():
  assert progress.sparkline([3.0, 2.0, math.nan, 1.0]) == "█▅·▁"
  assert progress.sparkline([2.0, 2.0]) == "▁▁"
  assert progress.sparkline([math.inf]) == "·"
  assert progress.sparkline([]) == ""


@pytest.mark.parametrize(
  "seconds, text",
  [
    (0.4, "0 s"),
    (59.6, "1 min 0 s"),
    (3_725, "1 h 2 min"),
    (90_000, "1 d 1 h"),
  ],
)
def test_duration(seconds, text):
  assert progress.duration(seconds) == text


# ------------------------------------------------------------------ Progress


def watched(statuses: list[pb.Status], console: Console) -> progress.Progress:
  """Watches a run that says these statuses, the last one for ever."""
  remaining = iter(statuses)
  last = statuses[-1]
  with progress.Progress(lambda: next(remaining, last), RUN, console) as p:
    p.note("SIGKILL to [island-1]")
  return p


def test_without_a_terminal_each_record_is_a_line():
  first, second = make_status(), make_status()
  second.record = 13
  first.evaluations.add(record=11, loss=5.0)
  second.evaluations.add(record=12, loss=4.0)  # of a restarted coordinator
  out = io.StringIO()
  watcher = watched([first, second], Console(file=out, width=80))
  lines = out.getvalue().splitlines()
  assert [n for n in lines if "SIGKILL to [island-1]" in n]
  records = [line for line in lines if line.startswith("record")]
  assert [line.split()[1] for line in records] == ["12", "13"]
  assert "5.0000 → 4.0000" in records[-1]
  assert watcher.evaluations == {11: 5.0, 12: 4.0}
  assert "\x1b" not in out.getvalue()


def test_in_a_terminal_the_last_state_stays_on_the_screen():
  status = make_status(make_island("island-0", "left"), final=True)
  out = io.StringIO()
  console = Console(file=out, width=80, height=24, force_terminal=True)
  watched([make_status(), status], console)
  assert "finished" in out.getvalue()
  assert "SIGKILL to [island-1]" in out.getvalue()
  assert "\x1b[?25h" in out.getvalue()  # the cursor is back


def test_an_error_on_the_way_leaves_the_terminal_as_it_was():
  out = io.StringIO()
  console = Console(file=out, width=80, height=24, force_terminal=True)
  with (
    pytest.raises(KeyboardInterrupt),
    progress.Progress(make_status, RUN, console),
  ):
    raise KeyboardInterrupt
  assert "\x1b[?25h" in out.getvalue()


# ------------------------------------------------------------------- the end

SUMMARY = dict(
  rounds=12,
  tokens_trained=1_004_096,
  tokens_committed=1_000_000,
  tokens_lost=4096,
  initial_eval_loss=6.9,
  final_eval_loss=4.5,
  islands=["island-0", "island-1"],
  theta_hash={"island-0": "ab" * 32, "island-1": "ab" * 32},
  bytes_sent={"island-0": 1_500_000, "island-1": 2_500_000},
  payload_reduction=393.8,
  compute_utilization=0.962,
  wall_seconds=244.0,
)


def test_the_summary_of_a_swarm():
  text = "\n".join(lines_of(progress.summary_table(SUMMARY, RUN)))
  for words in (
    "1,004,096",
    "6.9000 nats/token",
    "abababababababab… on all 2 islands",
    "2.5 MB by island-1",
    "393.8 ×",
    "96.2%",
    "4 min 4 s",
  ):
    assert words in text


def test_losses_of_preferences_are_of_pairs():
  run = config.base().run
  run.inner.loss = "dpo"
  losses = {1: 0.6931, 3: 0.25}
  lines = lines_of(progress.render(make_status(), run, losses))
  row = row_of(lines, "held-out loss")
  assert "0.6931 → 0.2500 nats/pair at record 3" in row
  assert "nats/pair" in progress.line(make_status(), run, losses)
  text = "\n".join(lines_of(progress.summary_table(SUMMARY, run)))
  assert "4.5000 nats/pair" in text and "nats/token" not in text


def test_states_that_differ_are_not_called_one():
  hashes = {"island-0": "ab" * 32, "island-1": "cd" * 32}
  text = "\n".join(
    lines_of(progress.summary_table(dict(theta_hash=hashes), RUN))
  )
  assert "abababababababab… on island-0" in text
  assert "cdcdcdcdcdcdcdcd… on island-1" in text


def test_a_summary_may_have_holes():
  summary = dict(rounds=0, final_eval_loss=None, islands=[], theta_hash={})
  text = "\n".join(lines_of(progress.summary_table(summary, RUN)))
  assert "not known" in text
