"""What it costs in quality to say less, on real text.

  python -m benchmarks.quality --json=benchmarks/results/quality.json
  python -m benchmarks.quality --quick      # a fortieth of the tokens, 1 min

The swarm of configs/demo.py, three islands on the shipped text, as replicas in
one process (see replicas.py), with each way to say less. All have equally many
tokens. A seed is of the initial parameters and of the shuffle: a variant and
what it is compared with start alike and see the same batches in the same order.
The gap is between their losses of theta on held-out text. A variant with a bar
passes if the mean of its gaps is at most its bar and two standard errors.

"reduction" is by how much less an island sends than in float32 data parallel, if
H were 100. It depends on the number of islands with sparse2 alone, of which each
code goes to everybody; "of a pair" is that of two islands.

Runs are written to the file as they end, and are not done again: to go on,
start it again. A run takes about two minutes on two cores.
"""

from collections.abc import Iterator
import dataclasses
import math
import statistics
import time
from typing import Any

from absl import app, flags
import jax
from ml_collections import ConfigDict
import rich.console
import rich.table

from benchmarks.replicas import Replicas
from benchmarks.rows import Row, Rows
from intellect_jax import config as config_lib
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.inner.step import EvalStep, TrainStep
from intellect_jax.model import sharding
from intellect_jax.outer import traffic
from intellect_jax.outer.schedule import payload_reduction

_QUICK = flags.DEFINE_bool("quick", False, "Few tokens, under a minute.")
_ONLY = flags.DEFINE_list("only", [], "Of these variants; none: all.")
_JSON = flags.DEFINE_string(
  "json", None, "File for every figure; goes on in it."
)

_DEMO = config_lib.base_path().parent / "demo.py"
_ISLANDS = 3
_PAIR = 2  # islands, of the payload reduction that has a bar
_SEEDS, _QUICK_SEEDS = 3, 2
_QUICK_PART = 40  # of the tokens
_HELD_OUT = 256  # sequences
_OFTEN = dict(inner_steps=4)  # with which the demo's tokens make 100 rounds
_LATE = dict(codec="float32", overlap_steps=19)
_AVERAGE = dict(learning_rate=1.0, momentum=0.0)
_FAR = 100  # H, for which INTELLECT-1 tells its payload reduction


@dataclasses.dataclass(frozen=True)
class Variant:
  """A way to run the outer loop, and what it may cost."""

  outer: dict[str, Any]  # fields of run.outer
  bar: float | None = None  # of the mean gap
  against: str = "float32"
  reduction: float | None = None  # of a pair's payload at H = 100, at least


VARIANTS = {
  "float32": Variant(dict(codec="float32")),
  "int8": Variant(dict(codec="int8"), bar=0.001, reduction=392),
  "int4": Variant(dict(codec="int4"), bar=0.003, reduction=770),
  "e3m0": Variant(dict(codec="e3m0"), bar=0.003, reduction=770),
  "overlap 5": Variant(
    dict(codec="float32", overlap_steps=5, merge_alpha=0.5), bar=0.003
  ),
  "4 fragments": Variant(dict(codec="float32", fragments=4), bar=0.003),
  # A whole window but a step late: by the three rules that there are.
  "19 late: eager": Variant(dict(_LATE, eager=True)),
  "19 late: alpha 0.5": Variant(dict(_LATE, merge_alpha=0.5)),
  "19 late: steps kept": Variant(dict(codec="float32", max_ahead_steps=19)),
  # Frequent rounds are what sparse codes are for: H <= 10, and 100 of them.
  # With eta = 1 and no momentum, as sparse2 has it, and as the demo has it.
  "float32, often": Variant(dict(codec="float32", **_OFTEN, **_AVERAGE)),
  "float32, often, Nesterov": Variant(dict(codec="float32", **_OFTEN)),
  "sparse2, often": Variant(
    dict(codec="sparse2", **_OFTEN, **_AVERAGE),
    bar=0.01,
    against="float32, often",
    reduction=14_000,
  ),
}


def main(_) -> None:
  kept = Rows(_JSON.value, lambda rows: list(summary(rows)))
  bench = Bench()
  for seed in range(_QUICK_SEEDS if _QUICK.value else _SEEDS):
    for name, variant in VARIANTS.items():
      if _ONLY.value and name not in _ONLY.value:
        continue
      run = config_of(variant, seed)
      about = dict(variant=name, seed=seed, tokens=run.tokens)
      about |= dict(inner_steps=run.outer.inner_steps, outer=variant.outer)
      if kept.has(about):
        continue
      print(f"{name}, seed {seed}:", end=" ", flush=True)
      figures = bench.trained(run)
      kept.add(about | figures)
      print(f"{figures['loss']:.5f} in {figures['seconds']:.0f} s")
  rich.console.Console(width=130).print(table(kept.rows))


def config_of(variant: Variant, seed: int) -> ConfigDict:
  """The run half."""
  run = config_lib.load(_DEMO).run
  run.outer.update(variant.outer)
  if _QUICK.value:
    run.tokens //= _QUICK_PART
    run.inner.decay_tokens //= _QUICK_PART
    run.outer.inner_steps = steps = max(1, run.outer.inner_steps // 4)
    for name in ("overlap_steps", "max_ahead_steps"):
      run.outer[name] = min(run.outer[name], steps - 1)
  run.seed = run.data.seed = seed
  config_lib.validate_run(run)
  return run


class Bench:
  """What all runs share: they have one model, and one inner step."""

  def __init__(self):
    run, island = (
      config_of(VARIANTS["float32"], 0),
      config_lib.load(_DEMO).island,
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    self._step = TrainStep(run, island, mesh)
    self._step.compile()
    self._evaluate = EvalStep(run, island, mesh)
    self._tokenizer = tokenizer_of(run)
    self._index = {}  # by seed

  def trained(self, run: ConfigDict) -> Row:
    """Figures of a run: nats a token of theta at its end, and what it sent."""
    began = time.monotonic()
    seed = run.data.seed
    if seed not in self._index:
      self._index = {seed: GlobalIndex(run.data, self._tokenizer)}
    index = self._index[seed]
    replicas = Replicas(run, _ISLANDS, self._step, index)
    rounds = replicas.steps // run.outer.inner_steps * run.outer.fragments

    def tell(number: int) -> None:
      if number % max(1, rounds // 4) == 0:
        print(f"{number} of {rounds} …", end=" ", flush=True)

    replicas.train(tell)
    sequences = _HELD_OUT // 4 if _QUICK.value else _HELD_OUT
    held_out = index.held_out(sequences, run.inner.batch_size)
    sent = {n: replicas.coded_bytes_sent(n) for n in (_PAIR, _ISLANDS)}
    reductions = {
      n: payload_reduction(n, replicas.values, _FAR, count)
      for n, count in sent.items()
    }
    return dict(
      loss=self._evaluate(replicas.params(), held_out),
      rounds=rounds,
      values=replicas.values,
      sent=sent[_ISLANDS],
      wire=traffic.wire_bytes(sent[_ISLANDS]),
      reduction_pair=reductions[_PAIR],
      reduction=reductions[_ISLANDS],
      seconds=time.monotonic() - began,
    )


# ------------------------------------------------------------------- figures


def summary(rows: list[Row]) -> Iterator[Row]:
  """Of each variant, of those of its runs that have one to compare with."""
  losses = {(row["variant"], row["seed"], row["tokens"]): row for row in rows}
  for name, variant in VARIANTS.items():
    own = {key: row for key, row in losses.items() if key[0] == name}
    if not own:
      continue
    newest = next(reversed(own.values()))
    gaps = [
      row["loss"] / losses[variant.against, *key[1:]]["loss"] - 1
      for key, row in own.items()
      if (variant.against, *key[1:]) in losses
      and row["tokens"] == newest["tokens"]
    ]
    same = {k: newest[k] for k in ("tokens", "inner_steps", "rounds", "sent")}
    same |= {k: newest[k] for k in ("wire", "reduction_pair", "reduction")}
    line = dict(variant=name, seeds=len(own), against=variant.against) | same
    line |= dict(loss=statistics.mean(row["loss"] for row in own.values()))
    line |= dict(least_reduction=variant.reduction)
    if name != variant.against and len(gaps) > 1:
      error = statistics.stdev(gaps) / math.sqrt(len(gaps))
      line |= dict(gap=statistics.mean(gaps), error=error)
      if variant.bar is not None:
        passed = line["gap"] <= variant.bar + 2 * error
        line |= dict(bar=variant.bar, passed=passed)
    yield line


def table(rows: list[Row]) -> rich.table.Table:
  result = rich.table.Table(title="three islands on the shipped text")
  for column in (
    *("variant", "seeds", "H", "rounds", "loss", "gap", "± s.e.", "bar", ""),
    *("reduction", "of a pair", "at least", "wire a round"),
  ):
    justify = "left" if column == "variant" else "right"
    result.add_column(column, justify=justify)
  for line in summary(rows):
    least = line["least_reduction"]
    judged, compared = "passed" in line, "gap" in line
    result.add_row(
      line["variant"],
      str(line["seeds"]),
      str(line["inner_steps"]),
      str(line["rounds"]),
      f"{line['loss']:.4f}",
      f"{line['gap']:+.3%}" if compared else "",
      f"{line['error']:.3%}" if compared else "",
      f"{line['bar']:.1%}" if judged else "",
      ("passes" if line["passed"] else "fails") if judged else "",
      f"{line['reduction']:,.0f}",
      f"{line['reduction_pair']:,.0f}",
      f"{least:,}" if least else "",
      f"{line['wire'] / 1e6:.2f} MB",
    )
  return result


if __name__ == "__main__":
  app.run(main)
