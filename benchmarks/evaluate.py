"""Requests of lm-evaluation-harness, by its own `hf` model and by this project.

  python -m benchmarks.evaluate --json=benchmarks/results/evaluate.json
  python -m benchmarks.evaluate --quick                      # two minutes

The same random Llama of 50M parameters in float32, the same requests, the same
cores, in turns. Of hf, the batch size that is fastest for each kind counts. A
rate is of the tokens in the requests, contexts and what follows on them, each
choice of a question on its own; written tokens alone where text is written. So
what a backend saves by sharing counts, and padding does not. A first call of
each, in which this project compiles, does not count. On a machine that others
load, too, trust the ratio by CPU time.

choices     questions with four choices after five examples that a subject
            shares, as MMLU asks them; answers are letters
endings     four long endings to a question after examples of its own, as in
            HellaSwag
rolling     the likelihood of whole documents
answers     greedy text after examples that all share, as GSM8K and BBH want it
"""

from collections.abc import Callable
import importlib
import json
import pathlib
import random
import statistics
import tempfile
import time
from typing import Any, NamedTuple

from absl import app, flags
import numpy as np

from benchmarks import machine
from intellect_jax import config as config_lib
from intellect_jax.checkpoint import pretrained
from intellect_jax.data import sources
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.evaluation.harness import HarnessModel
from intellect_jax.inference.loading import open_model
from intellect_jax.model import huggingface, llama
from intellect_jax.outer.layout import Layout

_QUICK = flags.DEFINE_bool("quick", False, "An eighth of the requests.")
_JSON = flags.DEFINE_string("json", None, "File for every figure.")
_TURNS = flags.DEFINE_integer("turns", 3, "Of each, after a first one.", 1)

BATCH_SIZES = (1, 8)  # that hf is tried with
_CONTEXT = 1024
_WRITTEN = 48  # tokens of an answer
_CALLS = dict(
  choices="loglikelihood",
  endings="loglikelihood",
  rolling="loglikelihood_rolling",
  answers="generate_until",
)


def make_folder(folder: pathlib.Path) -> None:
  """Writes the model as Hugging Face has it."""
  import jax

  config = config_lib.load(config_lib.base_path().with_name("bench_50m.py"))
  run = config.run
  tokenizer = make_tokenizer(f"bpe:{run.model.vocab_size}")
  c = llama.LlamaConfig.of(run.model, config.island.model)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda a: rng.normal(0, a.shape[-1] ** -0.5, a.shape).astype(np.float32),
    llama.abstract_params(c),
  )
  layout = Layout.of(params, huggingface.tensor_names(params))
  theirs = huggingface.config_json(
    run.model, "float32", _CONTEXT, tokenizer.eos
  )
  pretrained.write(folder, layout.flatten(params), layout, theirs, 10**9)
  for name, content in tokenizer.files(_CONTEXT).items():
    (folder / name).write_bytes(content)


def make_requests(part: float) -> dict[str, list[tuple]]:
  """The arguments of each kind of requests, of the text that ships."""
  text, rng = "\n".join(sources.documents()), random.Random(0)

  def piece(least: int, most: int) -> str:
    start = rng.randrange(len(text) - most)
    return text[start : start + rng.randint(least, most)].strip() or "x"

  def some(count: int) -> range:
    return range(max(1, round(count * part)))

  choices, endings, answers = [], [], []
  for _ in some(2):
    subject = piece(1500, 1800)
    for _ in range(12):
      question = f"{subject}\n\n{piece(150, 400)}\nAnswer:"
      choices += [(question, f" {letter}") for letter in "ABCD"]
  for _ in some(16):
    question = piece(1800, 2600)
    endings += [(question, " " + piece(60, 180)) for _ in range(4)]
  examples = piece(1200, 1300)
  rule = dict(until=[], max_gen_toks=_WRITTEN, do_sample=False)
  for _ in some(24):
    answers.append((f"{examples}\n\n{piece(100, 400)}\nAnswer:", rule))
  rolling = [(piece(2000, 9000),) for _ in some(16)]
  return dict(
    choices=choices, endings=endings, rolling=rolling, answers=answers
  )


def count_tokens(kind: str, asked: list[tuple], tokenizer) -> int:
  if kind == "answers":
    return _WRITTEN * len(asked)
  return sum(len(tokenizer.encode("".join(texts))) for texts in asked)


class Times(NamedTuple):
  """Seconds of a call, by the clock and of CPU, all threads together."""

  wall: float
  cpu: float


def timed(call: Callable[[], Any]) -> tuple[Times, Any]:
  wall, cpu = time.perf_counter(), time.process_time()
  result = call()
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return Times(wall, cpu), result


def main(_) -> None:
  # Here, because torch takes seconds to load.
  HFLM: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
  Instance: Any = importlib.import_module("lm_eval.api.instance").Instance

  found = machine.describe()
  with tempfile.TemporaryDirectory() as path:
    folder = pathlib.Path(path)
    make_folder(folder)
    theirs: Any = HFLM(str(folder), device="cpu", dtype="float32")
    model = open_model(folder, config_lib.base().island)
  ours = HarnessModel(model)
  figures = {}
  for kind, asked in make_requests(1 / 8 if _QUICK.value else 1).items():
    requests: list[Any] = [
      Instance(_CALLS[kind], {}, arguments, i)
      for i, arguments in enumerate(asked)
    ]

    def call(lm: Any, kind=kind, requests=requests) -> Any:
      return getattr(lm, _CALLS[kind])(requests, disable_tqdm=True)

    first, mine = timed(lambda: call(ours))
    by_size = {}
    for size in BATCH_SIZES:
      theirs.batch_size_per_gpu = size
      by_size[size], their = timed(lambda: call(theirs))
    theirs.batch_size_per_gpu = min(by_size, key=by_size.__getitem__)
    turns: dict[str, list[Times]] = dict(ours=[], hf=[])
    for _ in range(_TURNS.value):
      for name, lm in (("hf", theirs), ("ours", ours)):
        turns[name].append(timed(lambda lm=lm: call(lm))[0])
    tokens = count_tokens(kind, asked, model.tokenizer)
    figures[kind] = dict(
      requests=len(asked),
      tokens=tokens,
      hf_batch_size=theirs.batch_size_per_gpu,
      turns={name: [t._asdict() for t in ts] for name, ts in turns.items()},
      first=first._asdict(),
      tokens_per_second={
        name: tokens / statistics.median(t.wall for t in ts)
        for name, ts in turns.items()
      },
      ratios=_ratios(turns, "wall"),
      cpu_ratios=_ratios(turns, "cpu"),
      largest_difference=difference(kind, mine, their),
    )
  found["load_after"] = machine.load()
  show(found, figures)
  if _JSON.value:
    result = dict(machine=found, figures=figures)
    pathlib.Path(_JSON.value).write_text(json.dumps(result, indent=1) + "\n")


def _ratios(turns: dict[str, list[Times]], clock: str) -> list[float]:
  """How many times as fast this project was, turn by turn."""
  return [
    getattr(hf, clock) / getattr(ours, clock)
    for ours, hf in zip(turns["ours"], turns["hf"], strict=True)
  ]


def difference(kind: str, mine: Any, their: Any) -> float:
  """Of log-likelihoods, in nats; of answers, the share that differs."""
  if kind == "answers":
    return float(np.mean([a != b for a, b in zip(mine, their, strict=True)]))
  return float(np.max(np.abs(_numbers(mine) - _numbers(their))))


def _numbers(answers: list) -> np.ndarray:
  return np.array([a[0] if isinstance(a, tuple) else a for a in answers])


def show(found: dict[str, Any], figures: dict[str, Any]) -> None:
  print(found)
  print(
    f"{'':10}{'requests':>9}{'hf':>12}{'ours':>12}{'ours / hf (range)':>26}"
    f"{'by CPU time':>24}   differ by"
  )
  for kind, of in figures.items():
    rates = of["tokens_per_second"]
    wall, cpu = (_spread(of[name]) for name in ("ratios", "cpu_ratios"))
    print(
      f"{kind:10}{of['requests']:9}{rates['hf']:8.0f} t/s{rates['ours']:8.0f}"
      f" t/s{wall:>26}{cpu:>24}{of['largest_difference']:12.1e}"
    )
  met = all(statistics.median(of["cpu_ratios"]) > 1 for of in figures.values())
  print(f"Bar: less CPU time for every kind: {'met' if met else 'missed'}")


def _spread(ratios: list[float]) -> str:
  middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
  return f"{middle:.2f} ({least:.2f} to {most:.2f})"


if __name__ == "__main__":
  app.run(main)
