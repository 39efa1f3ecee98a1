"""What an island says of its losses: by the token, or by the pair."""

from collections import deque

import pytest

from intellect_jax import config
from intellect_jax.observe import metrics
from intellect_jax.observe.island import IslandReport

STEP = dict(kind="step", round=1, step=7, loss=0.5, tokens_per_second=1000.0)
EVALUATION = dict(kind="evaluation", round=1, eval_loss=0.25)
PREFERENCES = dict(preference_accuracy=0.75, margin=1.5, chosen_nll=2.0)


def said(tmp_path, capsys, loss, step, evaluation):
  """Lines about a step and an evaluation, and the events that are kept."""
  run = config.base().run
  run.inner.loss = loss
  with IslandReport(tmp_path, run) as report:
    report.take(deque([STEP | step, EVALUATION | evaluation]))
  kept = metrics.read(tmp_path / "metrics.jsonl")
  return *capsys.readouterr().out.splitlines(), kept


def test_the_loss_of_text_is_of_tokens_and_has_a_perplexity(tmp_path, capsys):
  step, evaluation, _ = said(tmp_path, capsys, "cross_entropy", {}, {})
  assert "loss 0.5000 nats/token  " in step
  assert evaluation.endswith("loss 0.2500 nats/token, perplexity 1.3")


def test_that_of_preferences_is_of_pairs_and_has_none(tmp_path, capsys):
  more = {f"eval_{name}": value for name, value in PREFERENCES.items()}
  step, evaluation, kept = said(
    tmp_path, capsys, "dpo", PREFERENCES | dict(pairs=12.0), more
  )
  told = "accuracy 75.0 %, margin +1.500, chosen NLL 2.000"
  assert f"loss 0.5000 nats/pair of 12, {told}  " in step
  assert evaluation.endswith(f"loss 0.2500 nats/pair, {told}")
  assert kept[0]["pairs"] == 12
  assert kept[1]["eval_margin"] == pytest.approx(1.5)
