"""Plan a run before there is a machine for it.

  python -m intellect_jax.plan --config=configs/intellect_1_10b.py \\
      --devices=8 --device=h100

Says what an island's devices and host must hold, how long steps and rounds
take, and which part of the time is training, over links of several speeds; and
which outer learning rate "auto" stands for, with so many islands. The
step is traced on abstract devices and lowered for CUDA; what is a formula, and
what was measured, stands beside each figure. Nothing is allocated.
"""

from absl import flags
import jax
import rich.console

from intellect_jax import command
from intellect_jax.errors import UserError
from intellect_jax.inner import flops
from intellect_jax.observe.forecast import (
  Forecast,
  intellect_1_table,
  schedule_table,
)

CONFIG = command.define_config()
DEVICES = flags.DEFINE_integer("devices", 8, "Devices of an island.", 1)
DEVICE = flags.DEFINE_string(
  "device", "h100", f"What they are: {', '.join(flops.PEAK)}."
)
MFU = flags.DEFINE_float(
  "mfu", 0.433, "Model FLOPs utilization of a step; 0.433 is INTELLECT-1's."
)
ISLANDS = flags.DEFINE_integer("islands", 14, "Islands that take part.", 1)
LINKS = flags.DEFINE_list(
  "links", "0.1,0.3,0.5,1,2,4,10,25", "Gb/s of an island's link, each way."
)


def main() -> None:
  config, links = command.config_of(CONFIG), _links()
  jax.config.update("jax_platforms", "cpu")  # no device is touched
  plan = Forecast(config, DEVICES.value, DEVICE.value, MFU.value, ISLANDS.value)
  console = rich.console.Console()
  console.print(plan.model_table())
  console.print(schedule_table(config.run))
  console.print(plan.memory_table())
  console.print(plan.host_table())
  console.print(plan.round_table(links))
  console.print(intellect_1_table())


def _links() -> list[float]:
  try:
    links = [float(link) for link in LINKS.value]
  except ValueError:
    links = []
  if not links or min(links) <= 0:
    raise UserError(
      f"--links={','.join(LINKS.value)} must be numbers of Gb/s above 0, such"
      " as --links=0.5,1,10"
    )
  return links


if __name__ == "__main__":
  command.run(main)
