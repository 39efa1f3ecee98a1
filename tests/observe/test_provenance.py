"""What a model card says is what records and metrics have."""

import json

import pytest

from intellect_jax import config as config_lib
from intellect_jax.elastic import chain
from intellect_jax.elastic.ledger import Ledger
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.errors import UserError
from intellect_jax.observe.card import card
from intellect_jax.observe.metrics import MetricsLog
from intellect_jax.observe.provenance import gather, hours_of, of_status

LENGTH, HALF = 64, 1000  # tokens a sample; the sample with which a stage begins

HARNESS = {  # as lm-evaluation-harness writes it
  "results": {
    "mmlu": {"alias": "mmlu", "acc,none": 0.375, "acc_stderr,none": 0.004}
  },
  "n-shot": {"mmlu": 5},
}


def run_half():
  run = config_lib.load(config_lib.base_path().with_name("tiny.py")).run
  stages = ((0, (0.75, 0.25)), (HALF * LENGTH, (0.0, 1.0)))
  run.data.update(sources=("web", "edu"), stages=stages, sequence_length=LENGTH)
  return run


def step(*members):
  """A record of windows: (island, incarnation, first sample, last)."""
  record = pb.Record(step=pb.OuterStep(learning_rate=0.5, momentum=0.25))
  for island, incarnation, start, stop in members:
    member = record.step.members.add(island=island, incarnation=incarnation)
    member.windows.add(
      steps=(stop - start) // 8,
      tokens=(stop - start) * LENGTH,
      samples=[pb.Interval(start=start, stop=stop)],
    )
  return record


@pytest.fixture
def workdir(tmp_path):
  """Of an island whose log has a step that an operator took back."""
  workdir = tmp_path / "island-0"
  log = RecordLog(workdir / "log")
  log.open()
  records = [
    pb.Record(genesis=pb.Genesis()),
    step(("ada", 1, 0, 800), ("bo|x", 1, 800, HALF)),
    step(("ada", 1, HALF, 9000)),
    pb.Record(annulment=pb.Annulment(to=1)),
    step(("ada", 2, HALF, 1400), ("bo|x", 1, 1400, 1600)),
    step(("ada", 2, 1600, 1700)),  # after what is exported
  ]
  known = chain.Chain([])
  total = 0
  for record in records:
    windows = [w for m in record.step.members for w in m.windows]
    total += sum(w.tokens for w in windows)
    if record.HasField("annulment"):
      total = HALF * LENGTH
    record.total_tokens = total
    sealed = known.link(record, 1)
    known.add(record, sealed)
    log.keep(sealed)
  with MetricsLog(workdir / "metrics.jsonl") as events:
    for number, loss in ((0, 5.0), (2, 9.9), (4, 3.0), (5, 2.0)):
      events.write(
        dict(kind="evaluation", island="ada", round=number, eval_loss=loss)
      )
    for train in (3600, 7200, 1800):  # a second process begins at 0 again
      events.write(
        dict(
          kind="step",
          island="ada",
          round=1,
          train_seconds=train,
          blocked_seconds=0,
        )
      )
  return workdir


def coordinator(folder):
  """Its workdir; metrics have two processes of ada, and one of bo. Its run."""
  ledger = Ledger(folder / "ledger.sqlite")
  run_id = ledger.open_run("digest", "{}").run_id
  for number, loss in ((1, 4.0), (2, 9.9), (4, 3.0), (5, 2.0)):
    ledger.save_evaluation(number, loss)
  ledger.save_losses([pb.Loss(tokens=30), pb.Loss(tokens=10)])
  ledger.close()
  beats = [
    [("ada", 1, 3600.0, 0.0), ("bo|x", 1, 1800.0, 900.0)],
    [("ada", 1, 7200.0, 1800.0), ("bo|x", 1, 1800.0, 1800.0)],
    [("ada", 2, 1800.0, 0.0), ("bo|x", 1, 3600.0, 3600.0)],
  ]
  with MetricsLog(folder / "metrics.jsonl") as events:
    for number, islands in zip((1, 2, 4), beats, strict=True):
      status = pb.Status()
      for island, incarnation, train, blocked in islands:
        beat = pb.Heartbeat(train_seconds=train, blocked_seconds=blocked)
        status.islands.add(
          island=island, incarnation=incarnation, place="Bonn", heartbeat=beat
        )
      events.write(
        dict(
          kind="record",
          round=number,
          time=86_400 * number,
          hours=of_status(status),
        )
      )
  return run_id


def test_contributions_are_of_the_records_that_count(workdir):
  run_id = coordinator(workdir.parent / "coordinator")
  told = gather(workdir, run_half(), run_id, record=4)
  ada, bo = told.islands["ada"], told.islands["bo|x"]
  assert list(told.islands) == ["ada", "bo|x"]
  assert (ada.tokens, ada.steps, ada.records) == (1200 * LENGTH, 150, 2)
  assert (bo.tokens, bo.steps, bo.records) == (400 * LENGTH, 50, 2)
  assert told.tokens == 1600 * LENGTH == sum(told.sources.values())
  assert (
    ada.hours == pytest.approx((9000 + 1800) / 3600) and ada.place == "Bonn"
  )
  assert bo.hours == pytest.approx(2.0)
  assert told.lost == 40 and told.outer == (0.5, 0.25)
  assert told.sources == {"web": 750 * LENGTH, "edu": 850 * LENGTH}
  assert told.evaluations == [(0, 5.0), (1, 4.0), (4, 3.0)]
  assert (told.first, told.last) == (86_400, 4 * 86_400)


def test_without_a_coordinator_only_own_hours_are_known(workdir):
  coordinator(workdir.parent / "coordinator")  # of another run
  told = gather(workdir, run_half(), "a-run", record=4)
  assert told.islands["ada"].hours == pytest.approx(9000 / 3600)
  assert told.islands["bo|x"].hours is None and told.lost is None
  assert told.evaluations == [(0, 5.0), (4, 3.0)]
  with pytest.raises(UserError, match=r"no ledger\.sqlite of the run"):
    elsewhere = workdir.parent / "coordinator"
    gather(workdir, run_half(), "a-run", 4, elsewhere)


def test_a_loaded_metrics_file_gives_the_same_hours():
  """Numbers survive JSON, so that a file copied from afar does."""
  status = pb.Status()
  beat = pb.Heartbeat(train_seconds=1.5, blocked_seconds=0.25)
  status.islands.add(island="a", incarnation=3, heartbeat=beat)
  event = dict(kind="record", hours=of_status(status))
  assert hours_of([json.loads(json.dumps(event))]) == {"a": (1.75 / 3600, "")}


def test_the_card_has_all_of_it(workdir):
  run, run_id = run_half(), coordinator(workdir.parent / "coordinator")
  told = gather(workdir, run, run_id, record=4)
  meta = {"run_id": run_id, "record_hash": "abc", "exported by": "0.1"}
  text = card(
    run,
    told,
    "theta of record 4",
    "bfloat16",
    meta,
    [HARNESS],
    "Ada",
    "mit",
  )
  assert text.startswith("---\nlibrary_name: transformers\n")
  assert "license: mit\n" in text and "# Ada\n" in text
  assert "A Llama of 51.4k parameters, trained by 2 islands on 102k" in text
  assert "from 1970-01-02 to 1970-01-05" in text
  assert "| ada | Bonn | 76,800 | 75.0% | 150 | 2 | 3 |" in text
  assert "| bo\\|x | Bonn | 25,600 | 25.0% | 50 | 2 | 2 |" in text
  assert "Together 5 hours" in text and "40 more tokens were trained" in text
  assert "| web | 75.0% | 0.0% | 48,000 | 46.9% |" in text
  assert "| 4 | 3.0000 | 20.09 |" in text
  assert "theta of record 4, in bfloat16" in text
  assert "| mmlu | 5 | acc | 0.3750 ± 0.0040 |" in text


def test_preferences_have_no_perplexity_and_adapters_their_own_library(workdir):
  run = run_half()
  run.inner.update(loss="dpo", dpo_nll_weight=0.2)
  run.model.lora_rank = 4
  told = gather(workdir, run, "a-run", record=4)
  meta = {"run_id": "a-run", "record_hash": "abc", "exported by": "0.1"}
  text = card(run, told, "theta", "float32", meta, adapter=True)
  assert "perplexity" not in text and "nats a token" not in text
  assert "| record | nats a pair |" in text and "| 4 | 3.0000 |" in text
  assert "library_name: peft" in text and "PeftModel" in text
  assert "| loss | dpo, beta 0.1, NLL of the chosen times 0.2 |" in text
