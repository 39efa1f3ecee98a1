"""Fine-tune: from weights there are, on conversations or on preferences.

  python -m intellect_jax.finetune --config=configs/instruct.py \\
      --init-from=llama --workdir=runs/instruct/sft

It is the program of train: what is trained on, and by which loss, is in the
config. So a swarm fine-tunes as well; coordinator, train and swarm take the
same config and --init-from.

  run.data.sources       prepared with --form=chat: what the assistant says is
                         trained on; text may be among them
  run.inner.loss         "dpo", for sources prepared with --form=preference
  run.model.lora_rank    above 0: adapters are trained, and the weights stay

For DPO and adapters every island needs the weights, not only the first.
"""

from absl import flags

from intellect_jax import command, train
from intellect_jax.errors import UserError


def main() -> None:
  if not (flags.FLAGS["config"].present or train.COORDINATOR.value):
    raise UserError(
      "What to train on is in a config: --config=configs/instruct.py has"
      " conversations, --config=configs/preference.py preferences."
    )
  train.main()


if __name__ == "__main__":
  command.run(main)
