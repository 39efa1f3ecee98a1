"""Benchmarks that INTELLECT-1's report names, with its shots and its figures.

Tables 3 and 4 of arXiv 2412.01152. It gives the shots of five benchmarks; of
the others, these are the harness's tasks that its figures fit: those of GPQA
are multiples of 1/448, the size of gpqa_main; those of BBH stand at what the
multiple-choice form gives models that hardly reason (30 is chance), 3 shots.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A task or group of the harness.

  Attributes:
    title: as in the report.
    task: name in the harness.
    shots: examples before each question; None: as the task says.
    metric: which of its figures counts, as "acc,none".
    figure: INTELLECT-1's, in percent; None: it has none.
  """

  title: str
  task: str
  shots: int | None
  metric: str
  figure: float | None = None


def _intellect_1(**figures: float) -> tuple[Benchmark, ...]:
  """The report's benchmarks with these figures, in the order of its table."""
  benchmarks = (
    Benchmark("MMLU", "mmlu", 5, "acc,none"),
    Benchmark("HellaSwag", "hellaswag", 10, "acc_norm,none"),
    Benchmark("ARC-Challenge", "arc_challenge", 25, "acc_norm,none"),
    Benchmark("GPQA", "gpqa_main_zeroshot", None, "acc_norm,none"),
    Benchmark("GSM8K", "gsm8k", 5, "exact_match,strict-match"),
    Benchmark("TruthfulQA", "truthfulqa_mc2", None, "acc,none"),
    Benchmark("WinoGrande", "winogrande", 5, "acc,none"),
    Benchmark("BBH", "leaderboard_bbh", 3, "acc_norm,none"),
    Benchmark("IFEval", "ifeval", None, "inst_level_strict_acc,none"),
  )
  return tuple(
    dataclasses.replace(b, figure=figures[b.title.replace("-", "_")])
    for b in benchmarks
    if b.title.replace("-", "_") in figures
  )


SUITES = dict(
  intellect_1=_intellect_1(
    MMLU=37.5,
    HellaSwag=72.26,
    ARC_Challenge=52.13,
    GPQA=26.12,
    GSM8K=8.1,
    TruthfulQA=35.47,
    WinoGrande=65.82,
    BBH=32.97,
  ),
  intellect_1_instruct=_intellect_1(
    MMLU=49.89,
    HellaSwag=71.42,
    ARC_Challenge=54.52,
    GPQA=28.32,
    GSM8K=38.58,
    TruthfulQA=42.16,
    BBH=34.85,
    IFEval=40.39,
  ),
  # Real items, and few: that it works, not how good a model is.
  smoke=(Benchmark("MMLU, shipped items", "mmlu", 2, "acc,none"),),
)
