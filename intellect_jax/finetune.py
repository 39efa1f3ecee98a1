"""Fine-tune: from weights there are, on conversations or on preferences.

  python -m intellect_jax.finetune --config=configs/instruct.py \\
      --init-from=llama --workdir=runs/instruct

It is the same program as train, with configs/instruct.py as its default: what
is trained on, and with which loss, is in the config. So a swarm does it too:
coordinator, train and swarm take that config and --init-from.

  run.data.sources       prepared with --form=chat: what the assistant says is
                         trained on; text may be among them
  run.inner.loss         "dpo", and sources prepared with --form=preference
  run.model.lora_rank    above 0: adapters are trained, and the weights stay

For DPO and adapters every island needs the weights, not only the first.
"""

from intellect_jax import command, config, train

CONFIG = "instruct.py"


def main() -> None:
  train.main()


if __name__ == "__main__":
  command.default_config(config.base_path().with_name(CONFIG))
  command.run(main)
