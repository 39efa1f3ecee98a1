"""Export theta of a run to the files of a Hugging Face Llama.

  python -m intellect_jax.export --workdir=runs/demo/island-0 --output=llama

`transformers.AutoModelForCausalLM.from_pretrained("llama")` loads it, as does
what else reads such a folder; so does --init-from of a further run.
"""

import pathlib

from absl import flags

from intellect_jax import command
from intellect_jax import config as config_lib
from intellect_jax.checkpoint import pretrained
from intellect_jax.checkpoint.durable import read_outer
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.model import llama
from intellect_jax.model.huggingface import config_json, tensor_names
from intellect_jax.outer.layout import Layout

WORKDIR = command.define_workdir("an island that has trained")
OUTPUT = command.define_output("Folder to write to; made if needed.")
DTYPE = flags.DEFINE_enum(
  "dtype", "float32", [*pretrained.DTYPES], "float32 is exact."
)
PART = flags.DEFINE_float("part", 5.0, "Gigabytes in a file, at most.", 0.0)


def main() -> None:
  output = command.path(OUTPUT)
  record = export(
    command.path(WORKDIR), output, DTYPE.value, int(PART.value * 1e9)
  )
  print(f"theta of record {record} is in {output}")


def export(
  workdir: pathlib.Path, output: pathlib.Path, dtype: str, part_bytes: int
) -> int:
  """Exports the newest checkpoint in `workdir`; returns its record.

  Raises:
    UserError: if there is no checkpoint, or `output` is not empty.
  """
  outer = read_outer(workdir / "checkpoints")
  run = config_lib.from_dict(outer.meta["run"])
  island = config_lib.base().island
  tokenizer = tokenizer_of(run, workdir)
  length = run.data.sequence_length
  abstract = llama.abstract_params(
    llama.LlamaConfig.of(run.model, island.model)
  )
  pretrained.write(
    output,
    outer.theta,
    Layout.of(abstract, tensor_names(abstract)),
    config_json(run.model, dtype, length, tokenizer.eos),
    part_bytes,
  )
  eos = dict(eos_token_id=tokenizer.eos)
  pretrained.write_json(output / "generation_config.json", eos)
  for name, content in tokenizer.files(length).items():
    (output / name).write_bytes(content)
  return outer.record


if __name__ == "__main__":
  command.run(main)
