"""The model card of a run: README.md, as hubs show it.

Everything in it is taken from the run itself; what only people know (what the
model is good for, its licence) is theirs to add.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import datetime
import math
from typing import Any

from ml_collections import ConfigDict

from intellect_jax import config as config_lib
from intellect_jax.model import llama
from intellect_jax.observe.provenance import Provenance

_ROWS = 12  # evaluations that are shown, at most
_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # of this file, or its name on a hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
{prompt}
written = model.generate(**inputs, max_new_tokens=100, do_sample=True)
print(tokenizer.decode(written[0], skip_special_tokens=True))
```"""
_USE_ADAPTER = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("…")  # what it was trained beside
model = PeftModel.from_pretrained(model, ".")  # the folder of this file
```"""
_PROMPT = 'inputs = tokenizer("The function", return_tensors="pt")'
_CHAT = """\
messages = [{"role": "user", "content": "Who are you?"}]
inputs = tokenizer.apply_chat_template(
  messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""


def card(
  run: ConfigDict,
  told: Provenance,
  what: str,
  dtype: str,
  meta: Mapping[str, Any],
  benchmarks: Sequence[Mapping[str, Any]] = (),
  name: str = "",
  licence: str = "",
  adapter: bool = False,
) -> str:
  """The card, in Markdown with a header in YAML.

  Args:
    run: the run half of the config, as the run was started with.
    told: of the run.
    what: the weights are, in words, such as "theta of record 20".
    dtype: of the weights.
    meta: of the checkpoint: run_id, record_hash, the version that trained; and
      that which exported.
    benchmarks: results of lm-evaluation-harness, as it writes them.
    name: of the model; empty: that of the run.
    licence: an identifier such as "apache-2.0"; empty: left out.
    adapter: the folder has adapters alone, for PEFT.
  """
  plain = llama.LlamaConfig.of(run.model, config_lib.base().island.model)
  parameters = llama.parameter_count(dataclasses.replace(plain, lora_rank=0))
  prompt = _CHAT if run.data.chat_template else _PROMPT
  parts = [
    "\n".join(_header(licence, "peft" if adapter else "transformers")),
    f"# {name or run.name}",
    _summary(run, told, parameters),
    _table(["", ""], _model(run, what, dtype, parameters)),
    "## Use",
    _USE_ADAPTER if adapter else _USE.format(prompt=prompt),
    "## Data",
    _data(run, told),
    "## Who trained it",
    _islands(told),
    "## Evaluation",
    _evaluations(run, told),
    *([_benchmarks(benchmarks)] if benchmarks else []),
    "## Training",
    _table(["", ""], _training(run, told)),
    "## Where it comes from",
    _table(["", ""], _origin(run, told, meta)),
    "`training.json` has all of this, and the whole config of the run.",
  ]
  return "\n\n".join(parts) + "\n"


def _header(licence: str, library: str) -> Iterator[str]:
  yield from ("---", f"library_name: {library}")
  yield "pipeline_tag: text-generation"
  if licence:
    yield f"license: {licence}"
  yield from ("tags:", "- intellect_jax", "- llama", "- diloco", "---")


def _summary(run: ConfigDict, told: Provenance, parameters: int) -> str:
  count = len(told.islands)
  by = f" by {count} islands" if count > 1 else ""
  text = (
    f"A Llama of {_rounded(parameters)} parameters, trained{by} on"
    f" {_rounded(told.tokens)} tokens with intellect_jax"
  )
  if count > 1:
    text += (
      f": each on its own, with one common step every {run.outer.inner_steps}"
      " steps ([DiLoCo](https://arxiv.org/abs/2311.08105))"
    )
  if told.first:
    text += f", from {_day(told.first)} to {_day(told.last)}"
  return text + "."


def _model(
  run: ConfigDict, what: str, dtype: str, parameters: int
) -> Iterator[tuple[str, str]]:
  model = run.model
  yield "parameters", f"{parameters:,}"
  yield "weights", f"{what}, in {dtype}"
  yield (
    "shape",
    f"{model.layers} layers, width {model.width}, {model.heads} heads and"
    f" {model.kv_heads} key/value heads of {model.head_dim}, ffn {model.ffn}",
  )
  yield (
    "vocabulary",
    f"{model.vocab_size:,} ids, tokenizer {run.data.tokenizer}",
  )
  yield "context", f"{run.data.sequence_length:,} tokens"


def _data(run: ConfigDict, told: Provenance) -> str:
  """A column for each stage, and what was really trained on."""
  stages = run.data.stages
  head = ["source", *(f"from {_rounded(start)} tokens" for start, _ in stages)]
  total = sum(told.sources.values())
  rows = [
    [
      name,
      *(f"{weights[k]:.1%}" for _, weights in stages),
      f"{count:,}",
      f"{count / total:.1%}" if total else "",
    ]
    for k, (name, count) in enumerate(told.sources.items())
  ]
  return _table([*head, "tokens trained on", "share"], rows)


def _islands(told: Provenance) -> str:
  total = sum(island.tokens for island in told.islands.values())
  rows = [
    [
      name,
      island.place,
      f"{island.tokens:,}",
      f"{island.tokens / total:.1%}" if total else "",
      f"{island.steps:,}",
      f"{island.records:,}",
      "" if island.hours is None else f"{island.hours:,.3g}",
    ]
    for name, island in told.islands.items()
  ]
  head = "island, place, tokens, share, inner steps, outer steps, hours"
  text = _table(head.split(", "), rows)
  hours = [i.hours for i in told.islands.values()]
  if rows and None not in hours:
    text += f"\n\nTogether {math.fsum(filter(None, hours)):,.3g} hours"
    text += " of training and of waiting for each other."
  if told.lost == 0:
    text += "\n\nNo token was lost on the way."
  elif told.lost is not None:
    text += (
      f"\n\n{told.lost:,} more tokens were trained and lost on the way"
      f" ({told.lost / max(1, told.lost + told.tokens):.2%})."
    )
  return text


def _evaluations(run: ConfigDict, told: Provenance) -> str:
  """Of what no island trains on; some of them, first and last too."""
  if not told.evaluations:
    return "The run evaluated nothing."
  newest = len(told.evaluations) - 1
  chosen = sorted(
    {round(i * newest / (_ROWS - 1)) for i in range(_ROWS)}
    & {*range(newest + 1)}
  )
  shown = [told.evaluations[i] for i in chosen]
  if run.inner.loss == "dpo":
    rows = [[f"{record}", f"{loss:.4f}"] for record, loss in shown]
    return "Of theta, on held-out preferences:\n\n" + _table(
      ["record", "nats a pair"], rows
    )
  rows = [
    [f"{record}", f"{loss:.4f}", f"{math.exp(min(loss, 700)):,.2f}"]
    for record, loss in shown
  ]
  return "Of theta, on held-out text of the sources:\n\n" + _table(
    ["record", "nats a token", "perplexity"], rows
  )


def _benchmarks(benchmarks: Sequence[Mapping[str, Any]]) -> str:
  """Every figure of every task; its standard error, if it has one."""
  rows = []
  for results in benchmarks:
    shown = {**results["results"], **results.get("groups", {})}
    for task, values in shown.items():
      for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr"):
          continue
        error = values.get(f"{metric}_stderr,{filtered}")
        shots = results.get("n-shot", {}).get(task, "")
        written = f"{value:.4f}"
        if isinstance(error, float):
          written += f" ± {error:.4f}"
        rows.append([task, str(shots), metric, written])
  return "By lm-evaluation-harness:\n\n" + _table(
    ["task", "shots", "metric", ""], rows
  )


def _training(run: ConfigDict, told: Provenance) -> Iterator[tuple[str, str]]:
  inner, outer = run.inner, run.outer
  if inner.loss != "cross_entropy":
    loss = f"{inner.loss}, beta {inner.dpo_beta:g}"
    if inner.dpo_nll_weight:
      loss += f", NLL of the chosen times {inner.dpo_nll_weight:g}"
    yield "loss", loss
  if run.model.lora_rank:
    yield "adapters", f"LoRA of rank {run.model.lora_rank}"
  rate, momentum = told.outer
  yield (
    "inner optimizer",
    f"{inner.optimizer}, learning rate {inner.learning_rate:g}, beta"
    f" {inner.beta1:g} and {inner.beta2:g}, weight decay {inner.weight_decay:g},"
    f" clipped at {inner.clip_norm:g}",
  )
  yield (
    "schedule",
    f"warm-up over {_rounded(inner.warmup_tokens)} tokens, decay"
    f" ({inner.decay}, to {inner.decay_to:g}) over the last"
    f" {_rounded(inner.decay_tokens)} of {_rounded(run.tokens)}",
  )
  yield (
    "batch",
    f"{inner.batch_size} sequences of {run.data.sequence_length:,} tokens an"
    " island and inner step",
  )
  yield (
    "outer optimizer",
    f"Nesterov, learning rate {rate:.3g}, momentum {momentum:.3g} in the newest"
    f" step; {outer.inner_steps} inner steps each; deltas as {outer.codec}",
  )
  for field, value in told.changed.items():
    yield "changed on the way", f"{field}={value}"


def _origin(
  run: ConfigDict, told: Provenance, meta: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
  yield "run", meta["run_id"]
  yield "record", f"{told.record}, hash {meta['record_hash']}"
  start = f"weights with BLAKE3 {run.init_from}" if run.init_from else "random"
  yield "started from", start
  if run.data.digest:
    yield "data", f"digest {run.data.digest}"
  if run.data.tokenizer_digest:
    yield "tokenizer", f"digest {run.data.tokenizer_digest}"
  if "version" in meta:  # not in checkpoints of before it was noted
    yield "trained by", f"intellect_jax {meta['version']}"
  yield "exported by", f"intellect_jax {meta['exported by']}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
  """What an island calls itself must not break a table."""
  return " ".join(text.replace("|", "\\|").split())


def _rounded(count: float) -> str:
  """As people say it: 1.23B, 45M, 800."""
  for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
    if count >= size:
      return f"{count / size:.3g}{letter}"
  return f"{count:g}"


def _day(time: float) -> str:
  return f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d}"
