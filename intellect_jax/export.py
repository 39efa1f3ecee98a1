"""Export theta of a run to the files of a Hugging Face Llama.

  python -m intellect_jax.export --workdir=runs/demo/island-0 --output=llama

`transformers.AutoModelForCausalLM.from_pretrained("llama")` loads it, as does
what else reads such a folder; so does --init-from of a further run. It is ready
for a hub: README.md is a model card made from the run, with what it was trained
on, by which islands in how many hours, and the held-out losses.

--last=8 takes the mean of theta over the newest 8 records instead, --ema=0.9
that of all that the workdir can build again, in which each counts 0.9 of what
the next one does. Either is often better than the newest theta where the
learning rate has not come down to 0. Training knows nothing of it: the records
since the oldest checkpoint are replayed.

Adapters (run.model.lora_rank) are merged into the weights that the run started
from. With --adapter they are written alone, as the library PEFT reads them.
"""

import dataclasses
import pathlib
from typing import Any

from absl import flags
import numpy as np

from intellect_jax import command
from intellect_jax import config as config_lib
from intellect_jax.checkpoint import adapters, exported, tensors
from intellect_jax.checkpoint.durable import Outer, read_outer
from intellect_jax.elastic import history
from intellect_jax.errors import UserError
from intellect_jax.observe.card import card
from intellect_jax.observe.provenance import gather
from intellect_jax.outer import average
from intellect_jax.version import version

WORKDIR = command.define_workdir("an island that has trained")
OUTPUT = command.define_output("Folder to write to; made if needed.")
DTYPE = command.define_dtype()
PART = command.define_part()
LAST = flags.DEFINE_integer(
  "last", None, "Mean over so many records, the newest.", lower_bound=1
)
EMA = flags.DEFINE_float(
  "ema", None, "Exponential mean over records, with this decay.", 0.0, 1.0
)
COORDINATOR_WORKDIR = flags.DEFINE_string(
  "coordinator_workdir",
  None,
  "Workdir of the run's coordinator, which knows the hours of all islands; none:"
  " looked for beside --workdir.",
)
BENCHMARKS = flags.DEFINE_multi_string(
  "benchmarks",
  [],
  "File of results for the model card, as lm-evaluation-harness writes them; may"
  " be repeated.",
)
ADAPTER = flags.DEFINE_bool("adapter", False, "The adapters alone, for PEFT.")
INIT_FROM = flags.DEFINE_string(
  "init-from",
  None,
  "Folder of the weights that adapters are merged into; none: as the workdir"
  " says.",
  allow_override=True,  # as that of commands that train
)
NAME = flags.DEFINE_string("name", "", "Of the model; empty: that of the run.")
LICENSE = flags.DEFINE_string(
  "license", "", "Identifier for the model card, such as apache-2.0."
)


def main() -> None:
  workdir, output = command.path(WORKDIR), command.path(OUTPUT)
  tensors.check_empty(output)
  benchmarks = [_results(pathlib.Path(file)) for file in BENCHMARKS.value]
  outer = read_outer(workdir / "checkpoints")
  run = config_lib.from_dict(outer.meta["run"])
  told = gather(
    workdir,
    run,
    outer.meta["run_id"],
    outer.record,
    _path_or_none(COORDINATOR_WORKDIR),
  )
  theta, what = averaged(workdir, outer, LAST.value, EMA.value)
  if ADAPTER.value:
    adapters.write_peft(output, run, theta, DTYPE.value, workdir)
  else:
    exported.write(
      output,
      run,
      workdir,
      theta,
      DTYPE.value,
      int(PART.value * 1e9),
      _path_or_none(INIT_FROM),
    )
  meta = {**outer.meta, "exported by": version()}
  training = dict(weights=what, **dataclasses.asdict(told), **meta)
  tensors.write_json(output / "training.json", training)
  text = card(
    run,
    told,
    what,
    DTYPE.value,
    meta,
    benchmarks,
    NAME.value,
    LICENSE.value,
    ADAPTER.value,
  )
  (output / "README.md").write_text(text)
  print(f"{what} is in {output}")


def _path_or_none(holder: flags.FlagHolder) -> pathlib.Path | None:
  return None if holder.value is None else command.path(holder)


def _results(path: pathlib.Path) -> dict[str, Any]:
  """Raises UserError if the harness has not written that."""
  if not path.is_file():
    raise UserError(f"There is no file --benchmarks={path}.")
  results = tensors.read_json(path)
  if not isinstance(results.get("results"), dict):
    raise UserError(
      f"{path} has no results of lm-evaluation-harness: its JSON has a field"
      ' "results".'
    )
  return results


def averaged(
  workdir: pathlib.Path, outer: Outer, last: int | None, ema: float | None
) -> tuple[np.ndarray, str]:
  """What is to be exported, float32, and what that is in words.

  Args:
    workdir: of an island.
    outer: its newest checkpoint.
    last: not its theta, but the mean over so many records up to it.
    ema: not its theta, but the exponential mean with this decay.

  Raises:
    UserError: as `history.average`; or if both are given.
  """
  if last is not None and ema is not None:
    raise UserError("--last and --ema are two averages: give one of them.")
  if ema is not None:
    part, kind = average.exponential(ema), f"EMA ({ema:g}) of theta"
  elif last is not None:
    part, kind = average.mean, "mean of theta"
  else:
    return outer.theta, f"theta of record {outer.record}"
  theta, over = history.average(workdir, outer.record, part, last)
  return theta, f"{kind} over {len(over)} records, {over[0]} to {over[-1]}"


if __name__ == "__main__":
  command.run(main)
