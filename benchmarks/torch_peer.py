"""A peer in torchft's DiLoCo or in plain Gloo, to be timed beside an island.

  python -m benchmarks.torch_peer --system=torchft --rank=0 --peers=2 \\
      --values=100000000 --store=host:port --lighthouse=http://host:port

Obeys and answers as `bare_island.py` does. At {"do": "step"} plain Gloo sums
its vector with the others'; torchft takes the synchronizing step of DiLoCo,
from quorum to parameters, without the model's own work: the parameters are one
tensor for each million values, which suits it better than a single one.
"""

import argparse
import datetime
import json
import sys
import time

import torch  # pyright: ignore[reportMissingImports]
import torch.distributed as dist  # pyright: ignore[reportMissingImports]

_PATIENCE = datetime.timedelta(seconds=60)
_TENSOR = 1_000_000  # values


def tell(kind: str) -> None:
  print(json.dumps(dict(kind=kind, at=time.monotonic())), flush=True)


class Gloo:
  """A float32 vector, summed by Gloo's ring."""

  def __init__(self, options: argparse.Namespace):
    dist.init_process_group(
      "gloo",
      init_method=f"tcp://{options.store}",
      rank=options.rank,
      world_size=options.peers,
      timeout=_PATIENCE,
    )
    self._values = torch.randn(options.values)

  def step(self) -> None:
    dist.barrier()
    tell("frozen")
    dist.all_reduce(self._values)
    tell("applied")


class Torchft:
  """torchft's DiLoCo over Gloo: Nesterov outer step, float32 on the wire."""

  def __init__(self, options: argparse.Namespace):
    from torchft import (  # pyright: ignore[reportMissingImports]
      Manager,
      ProcessGroupGloo,
    )
    from torchft.local_sgd import (  # pyright: ignore[reportMissingImports]
      DiLoCo,
    )

    host, port = options.store.rsplit(":", 1)
    self._store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
      host, int(port), is_master=True
    )
    sizes = [_TENSOR] * (options.values // _TENSOR)
    model = torch.nn.ParameterList([torch.randn(size) for size in sizes])
    inner = torch.optim.SGD(model.parameters(), lr=0.0)
    outer = torch.optim.SGD(
      model.parameters(), lr=0.7, momentum=0.9, nesterov=True
    )
    self._manager = Manager(
      pg=ProcessGroupGloo(timeout=_PATIENCE),
      load_state_dict=model.load_state_dict,  # pyright: ignore
      state_dict=model.state_dict,
      min_replica_size=options.peers,
      use_async_quorum=False,
      timeout=_PATIENCE,
      rank=0,
      world_size=1,
      store_addr=host,
      store_port=int(port),
      lighthouse_addr=options.lighthouse,
      replica_id=f"peer{options.rank}",
    )
    self._model, self._inner = model, inner
    self._diloco = DiLoCo(
      self._manager,
      [model],
      inner,
      outer,
      sync_every=2,
      backup_device=torch.device("cpu"),
    )
    self._diloco.__enter__()

  def step(self) -> None:
    for parameter in self._model.parameters():
      parameter.grad = None  # the inner step has nothing to do
    self._inner.step()
    tell("frozen")
    self._inner.step()  # synchronizes
    tell("applied")


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--system", choices=("gloo", "torchft"), required=True)
  parser.add_argument("--rank", type=int, required=True)
  parser.add_argument("--peers", type=int, required=True)
  parser.add_argument("--values", type=int, required=True)
  parser.add_argument("--store", required=True)
  parser.add_argument("--lighthouse", default="")
  options = parser.parse_args()
  torch.set_num_threads(1)  # as an island has: peers share the cores
  peer = dict(gloo=Gloo, torchft=Torchft)[options.system](options)
  tell("rested")
  for _ in sys.stdin:
    peer.step()
    tell("rested")


if __name__ == "__main__":
  main()
