"""Export theta of a run to the files of a Hugging Face Llama.

  python -m intellect_jax.export --workdir=runs/demo/island-0 --output=llama

`transformers.AutoModelForCausalLM.from_pretrained("llama")` loads it, as does
what else reads such a folder; so does --init-from of a further run.
"""

import pathlib

from intellect_jax import command
from intellect_jax import config as config_lib
from intellect_jax.checkpoint import pretrained
from intellect_jax.checkpoint.durable import read_outer

WORKDIR = command.define_workdir("an island that has trained")
OUTPUT = command.define_output("Folder to write to; made if needed.")
DTYPE = command.define_dtype()
PART = command.define_part()


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
  pretrained.write_run(output, run, workdir, outer.theta, dtype, part_bytes)
  return outer.record


if __name__ == "__main__":
  command.run(main)
