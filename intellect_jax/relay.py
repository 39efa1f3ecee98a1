"""Relay: passes on the blobs of islands that nobody can call.

  python -m intellect_jax.relay --listen=0.0.0.0:7601 --insecure

A coordinator starts one beside itself. Run others where the network is good,
and name them: python -m intellect_jax.coordinator --relay=host:port,host:port
"""

import signal
import threading

from absl import flags

from intellect_jax import command
from intellect_jax.elastic import rpc
from intellect_jax.elastic.relay import Relay

LISTEN = flags.DEFINE_string(
  "listen",
  "127.0.0.1:7601",
  "host:port; port 0 takes any free one",
  allow_override=True,  # of the coordinator's, where both are imported
)
DEAD_AFTER = flags.DEFINE_float(
  "dead_after", 8.0, "Seconds of silence after which an island is gone."
)
INSECURE = command.define_insecure()


def main() -> None:
  stopping = threading.Event()
  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda *_: stopping.set())
  relay = Relay(
    LISTEN.value,
    rpc.Credentials(insecure=INSECURE.value, dead_after=DEAD_AFTER.value),
  )
  print(relay.address, flush=True)
  while not stopping.wait(1.0):
    pass
  relay.close()
  for island, count in sorted(relay.bytes_relayed.items()):
    print(f"{count:,} bytes of {island}")


if __name__ == "__main__":
  command.run(main)
