"""Where the loss goes that sparse codes cost in a short run.

  python -m benchmarks.sparse --json=benchmarks/results/sparse.json
  python -m benchmarks.sparse --quick      # few steps, in a minute

The swarm of configs/demo.py as in quality.py, with as many steps and a quarter of
the tokens, one seed: 100 rounds of 4 steps, eta = 1 and mu = 0. The gap is to
float32 with the same steps, rounds and rate. One thing at a time is changed:

exact: the same places, values as they are: without it, what two bits cost.
kept: of each 4096 values so many, exact: with all it would be float32.
beta: of error feedback; 1 forgets nothing.
rate: of AdamW, in units of the demo's.
H = 1: four times as many rounds in the same steps.
long: four times as many steps and rounds.

Rows are written to the file as they end, and are not done again.
"""

import dataclasses
import time

from absl import app, flags
import jax
import numpy as np
import rich.console
import rich.table

from benchmarks.replicas import Replicas
from benchmarks.rows import Row, Rows
from intellect_jax import config as config_lib
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.inner.step import EvalStep, TrainStep
from intellect_jax.model import sharding

_QUICK = flags.DEFINE_bool("quick", False, "Few steps, under a minute.")
_JSON = flags.DEFINE_string("json", None, "File for every figure.")

_DEMO = config_lib.base_path().parent / "demo.py"
_ISLANDS = 3
_BATCH = 2  # sequences of a step: a quarter of the demo's
_BLOCK = 4096  # values, of which some are kept
_HELD_OUT = 128  # sequences


@dataclasses.dataclass(frozen=True)
class Way:
  """What is changed; `kept` 0 is sparse2 as it is, None float32."""

  kept: int | None = 0
  steps: int = 4  # H
  rate: float = 1.0  # of AdamW
  beta: float = 0.95
  times: int = 1  # as many steps

  @property
  def against(self) -> "Way":
    return dataclasses.replace(self, kept=None, beta=0.95)


WAYS = {
  "sparse2": Way(),
  "exact": Way(kept=64),
  "kept 256": Way(kept=256),
  "kept 1024": Way(kept=1024),
  "beta 1": Way(beta=1.0),
  "rate 2": Way(rate=2),
  "rate 4": Way(rate=4),
  "rate 2, beta 1": Way(rate=2, beta=1.0),
  "H = 1": Way(steps=1),
  "long": Way(times=4),
}


class Largest:
  """A codec that keeps the largest values of each block as they are."""

  name, block, block_bytes, sparse = "largest", _BLOCK, 4 * _BLOCK, True

  def __init__(self, kept: int):
    self._kept = kept

  def encode(self, values: np.ndarray, out: np.ndarray) -> None:
    blocks, codes = values.reshape(-1, _BLOCK), out.view("<f4")
    codes[:] = 0
    places = np.argpartition(-np.abs(blocks), self._kept - 1, axis=1)
    places = places[:, : self._kept]
    kept = np.take_along_axis(blocks, places, 1)
    np.put_along_axis(codes.reshape(blocks.shape), places, kept, 1)

  def decode(self, codes: np.ndarray, out: np.ndarray) -> None:
    out[:] = codes.view("<f4")

  def accumulate(
    self, total: np.ndarray, codes: np.ndarray, weight: float
  ) -> None:
    total += np.float32(weight) * codes.view("<f4")

  def squared_norm(self, codes: np.ndarray) -> float:
    return float(np.square(codes.view("<f4"), dtype=np.float64).sum())


def main(_) -> None:
  kept = Rows(_JSON.value, summary)
  ways = list(WAYS.items())[: 2 if _QUICK.value else None]
  for name, way in ways:
    for label, each in ((f"float32: {name}", way.against), (name, way)):
      about = dataclasses.asdict(each) | dict(quick=_QUICK.value)
      if kept.has(about):
        continue
      figures = trained(each)
      kept.add(about | dict(way=label) | figures)
      print(f"{label}: {figures['loss']:.4f}", flush=True)
  rich.console.Console().print(table(summary(kept.rows)))


def trained(way: Way) -> Row:
  """Figures of a run: nats a token of theta at its end, and seconds."""
  began = time.monotonic()
  config = config_lib.load(_DEMO)
  run, inner = config.run, config.run.inner
  part = inner.batch_size // _BATCH * (20 if _QUICK.value else 1)
  run.tokens = run.tokens * way.times // part
  inner.warmup_tokens //= part
  inner.decay_tokens = inner.decay_tokens * way.times // part
  inner.batch_size = config.island.inner.microbatch = _BATCH
  inner.learning_rate *= way.rate
  run.outer.update(inner_steps=way.steps, learning_rate=1.0, momentum=0.0)
  run.outer.codec = "float32" if way.kept is None else "sparse2"
  run.outer.feedback = way.beta
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  step = TrainStep(run, config.island, mesh)
  index = GlobalIndex(run.data, tokenizer_of(run))
  codec = Largest(way.kept) if way.kept else None
  swarm = Replicas(run, _ISLANDS, step, index, codec)
  swarm.train()
  evaluate = EvalStep(run, config.island, mesh)
  return dict(
    loss=evaluate(swarm.params(), index.held_out(_HELD_OUT, _BATCH)),
    rounds=swarm.steps // way.steps,
    seconds=time.monotonic() - began,
  )


def summary(rows: list[Row]) -> list[Row]:
  """The gap of each way whose float32 is there too."""
  fields = [field.name for field in dataclasses.fields(Way)]
  by_way = {Way(**{f: row[f] for f in fields}): row for row in rows}
  lines = []
  for name, way in WAYS.items():
    if way in by_way and way.against in by_way:
      loss, exact = (by_way[w]["loss"] for w in (way, way.against))
      figures = dict(rounds=by_way[way]["rounds"], float32=exact, loss=loss)
      lines.append(dict(way=name) | figures | dict(gap=loss / exact - 1))
  return lines


def table(lines: list[Row]) -> rich.table.Table:
  result = rich.table.Table(title="what sparse codes cost, and why")
  for column in ("changed", "rounds", "float32", "loss", "gap"):
    justify = "left" if column == "changed" else "right"
    result.add_column(column, justify=justify)
  for line in lines:
    result.add_row(
      line["way"],
      str(line["rounds"]),
      f"{line['float32']:.4f}",
      f"{line['loss']:.4f}",
      f"{line['gap']:+.2%}",
    )
  return result


if __name__ == "__main__":
  app.run(main)
