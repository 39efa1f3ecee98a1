"""Merge models that were fine-tuned from one base, by their weights.

  python -m intellect_jax.merge --output=merged \\
      --model=runs/sft-0/island-0 --model=runs/sft-1/island-0

  python -m intellect_jax.merge --method=ties --base=llama --density=0.2 \\
      --model=sft-0 --model=sft-1 --model=sft-2 --output=merged

Models and base are folders of Hugging Face's (config.json and safetensors) of
one shape, or workdirs of islands. A tensor is merged a piece at a time, in
float32: models of any size and number fit in little memory. (A workdir is
written out beside the output first; that copy is removed at the end.)

  linear           the mean of the weights; a base takes no part
  slerp            between the first model (--t=0) and the second, on an arc
  task_arithmetic  the base and the mean of what the models have learnt since
  ties             the same of the largest part (--density) of what each has
                   learnt, where the signs agree
  dare_linear      the same of a random part of it, enlarged
  dare_ties        the same of that part, where the signs agree

The tokenizer and whatever else is no weights are those of the first model.
"""

from collections.abc import Sequence
import contextlib
import pathlib
import shutil
import tempfile

from absl import flags

from intellect_jax import command
from intellect_jax import config as config_lib
from intellect_jax.checkpoint import exported, tensors
from intellect_jax.checkpoint.durable import read_outer
from intellect_jax.checkpoint.merged import METHODS, Merged, Recipe

MODEL = flags.DEFINE_multi_string(
  "model", None, "Model to merge; once for each.", required=True
)
METHOD = flags.DEFINE_enum("method", "linear", METHODS, "How; see above.")
BASE = flags.DEFINE_string("base", None, "What all models were tuned from.")
WEIGHT = flags.DEFINE_multi_float(
  "weight",
  None,
  "How much a model counts beside the others, once for each, in the order of"
  " --model; none: all the same.",
  lower_bound=0.0,
)
DENSITY = flags.DEFINE_float(
  "density",
  0.2,
  "ties and dare: part that is kept of what a model has learnt. 0.2 is TIES'"
  " own; DARE keeps 0.1 of a model of 7B and loses little.",
  lower_bound=1e-6,
  upper_bound=1.0,
)
SCALE = flags.DEFINE_float(
  "scale", 1.0, "Factor on the merged difference from the base (lambda)."
)
T = flags.DEFINE_float(
  "t", 0.5, "slerp: how far from the first model to the second.", 0.0, 1.0
)
TRIM = flags.DEFINE_enum(
  "trim",
  "tensor",
  ["tensor", "model"],
  "ties: keep the largest part of each tensor, as mergekit does, or of the model"
  " as a whole, as the paper does.",
)
SEED = flags.DEFINE_integer("seed", 0, "dare: another seed, another part.")
OUTPUT = command.define_output("Folder to write to; made if needed.")
DTYPE = command.define_dtype()
PART = command.define_part()


def main() -> None:
  paths = [pathlib.Path(m).expanduser().absolute() for m in MODEL.value]
  recipe = Recipe(
    METHOD.value,
    WEIGHT.value or [1.0] * len(paths),
    DENSITY.value,
    SCALE.value,
    T.value,
    TRIM.value,
    SEED.value,
  )
  base = command.path(BASE) if BASE.value is not None else None
  output = command.path(OUTPUT)
  merge(recipe, paths, base, output, DTYPE.value, int(PART.value * 1e9))
  print(f"{len(paths)} models, merged by {recipe.method}, are in {output}")


def merge(
  recipe: Recipe,
  models: Sequence[pathlib.Path],
  base: pathlib.Path | None,
  output: pathlib.Path,
  dtype: str,
  part_bytes: int,
) -> None:
  """Writes a folder with the merged model.

  Raises:
    UserError: if these models cannot be merged so, or `output` is not empty.
  """
  recipe.check(len(models), base is not None)
  tensors.check_empty(output)
  with contextlib.ExitStack() as stack:

    def opened(path: pathlib.Path) -> tensors.Folder:
      if not (path / "checkpoints").is_dir():
        return tensors.Folder(path)
      copy = tempfile.TemporaryDirectory(dir=output.parent, prefix="merge-")
      folder = pathlib.Path(stack.enter_context(copy))
      outer = read_outer(path / "checkpoints")
      run = config_lib.from_dict(outer.meta["run"])
      exported.write(folder, run, path, outer.theta, "float32", part_bytes)
      return tensors.Folder(folder)

    folders = [opened(path) for path in models]
    merged = Merged(recipe, folders, opened(base) if base is not None else None)
    tensors.write(output, merged.shapes, merged.pieces, dtype, part_bytes)
    _copy_the_rest(folders[0].path, output, dtype)
  (output / "README.md").write_text(_card(recipe, models, base))


# What is no weights: config.json, tokenizers, chat templates; but not where the
# first model comes from.
_REST = (".json", ".jinja", ".model", ".tiktoken", ".txt")
_OWN = (tensors.INDEX, "training.json")


def _copy_the_rest(
  folder: pathlib.Path, output: pathlib.Path, dtype: str
) -> None:
  for path in folder.iterdir():
    if path.suffix in _REST and path.name not in _OWN:
      shutil.copyfile(path, output / path.name)
  config = tensors.read_json(folder / tensors.CONFIG)
  config.update(dtype=dtype, torch_dtype=dtype)
  tensors.write_json(output / tensors.CONFIG, config)


def _card(
  recipe: Recipe, models: Sequence[pathlib.Path], base: pathlib.Path | None
) -> str:
  """A model card that says what was merged, and how."""
  total = sum(recipe.weights)
  how = ", ".join([recipe.method, *recipe.settings()])
  lines = [
    *("---", "library_name: transformers", "pipeline_tag: text-generation"),
    *("tags:", "- merge", "---", "", f"# {len(models)} models, merged", ""),
    f"Merged by intellect_jax: {how}.",
    *("", "| model | weight |", "| --- | --- |"),
    *(
      f"| {model.name} | {weight / total:.4g} |"
      for model, weight in zip(models, recipe.weights, strict=True)
    ),
  ]
  if base is not None:
    lines += ["", f"All were fine-tuned from {base.name}."]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  command.run(main)
