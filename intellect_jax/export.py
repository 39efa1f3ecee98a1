"""Export theta of a run to the files of a Hugging Face Llama.

  python -m intellect_jax.export --workdir=runs/demo/island-0 --output=llama

`transformers.AutoModelForCausalLM.from_pretrained("llama")` loads it, as does
what else reads such a folder; so does --init-from of a further run.

Adapters (run.model.lora_rank) are merged into the weights that the run started
from. With --adapter they are written alone, as the library PEFT reads them.
"""

import pathlib

from absl import flags

from intellect_jax import command
from intellect_jax import config as config_lib
from intellect_jax.checkpoint import adapters, pretrained
from intellect_jax.checkpoint.durable import read_outer
from intellect_jax.data import chat
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.model.huggingface import config_json, tensor_names
from intellect_jax.outer.layout import Layout

WORKDIR = command.define_workdir("an island that has trained")
OUTPUT = command.define_output("Folder to write to; made if needed.")
DTYPE = flags.DEFINE_enum(
  "dtype", "float32", [*pretrained.DTYPES], "float32 is exact."
)
ADAPTER = flags.DEFINE_bool("adapter", False, "The adapters alone, for PEFT.")
INIT_FROM = flags.DEFINE_string(
  "init-from",
  None,
  "Folder of the weights that adapters are merged into; none: as the workdir"
  " says.",
  allow_override=True,  # as that of commands that train
)
PART = flags.DEFINE_float("part", 5.0, "Gigabytes in a file, at most.", 0.0)


def main() -> None:
  workdir, output = command.path(WORKDIR), command.path(OUTPUT)
  init_from = command.path(INIT_FROM) if INIT_FROM.value is not None else None
  if ADAPTER.value:
    record = export_adapter(workdir, output, DTYPE.value)
  else:
    part_bytes = int(PART.value * 1e9)
    record = export(workdir, output, DTYPE.value, part_bytes, init_from)
  print(f"theta of record {record} is in {output}")


def export(
  workdir: pathlib.Path,
  output: pathlib.Path,
  dtype: str,
  part_bytes: int,
  init_from: pathlib.Path | None = None,
) -> int:
  """Exports the newest checkpoint in `workdir`; returns its record.

  Raises:
    UserError: if there is no checkpoint, or `output` is not empty; or if the
      weights that adapters are merged into are not found.
  """
  outer = read_outer(workdir / "checkpoints")
  run = config_lib.from_dict(outer.meta["run"])
  tokenizer = tokenizer_of(run, workdir)
  length = run.data.sequence_length
  _, params = adapters.whole(run, outer.theta, workdir, init_from)
  layout = Layout.of(params, tensor_names(params))
  pretrained.write(
    output,
    layout.flatten(params),
    layout,
    config_json(run.model, dtype, length, tokenizer.eos),
    part_bytes,
  )
  template = run.data.chat_template
  ends = [tokenizer.eos]
  if template:
    (output / chat.FILE).write_text(template)
    ends = sorted(chat.ChatTemplate(tokenizer, template).ends)
  eos = dict(eos_token_id=ends if len(ends) > 1 else ends[0])
  pretrained.write_json(output / "generation_config.json", eos)
  for name, content in tokenizer.files(length).items():
    (output / name).write_bytes(content)
  return outer.record


def export_adapter(
  workdir: pathlib.Path, output: pathlib.Path, dtype: str
) -> int:
  """Exports the adapters of the newest checkpoint; as `export`."""
  outer = read_outer(workdir / "checkpoints")
  run = config_lib.from_dict(outer.meta["run"])
  adapters.write_peft(output, run, outer.theta, dtype, workdir)
  return outer.record


if __name__ == "__main__":
  command.run(main)
