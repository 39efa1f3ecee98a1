"""What a newcomer asks a coordinator before it builds a model."""

from collections.abc import Iterable, Sequence
import itertools
import time

import grpc

from intellect_jax.elastic import rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import elastic_pb2_grpc as pb_grpc
from intellect_jax.errors import UserError

_PAUSE = 0.2  # seconds between two addresses


def describe(
  coordinators: Sequence[str],
  credentials: rpc.Credentials,
  patience: float,
  run_id: str = "",
) -> pb.Description:
  """What a newcomer must know, from the first coordinator that answers.

  Args:
    coordinators: host:port of each.
    credentials: for the channels.
    patience: seconds that one may take which is just being started.
    run_id: of the run that the island has been in, if there is one: then it
      is one of those that a lost ledger is recovered from.

  Raises:
    UserError: if nobody answers, or in another protocol.
  """
  end = time.monotonic() + patience
  for address in itertools.cycle(coordinators):
    left = max(_PAUSE, end - time.monotonic())
    with rpc.channel(address, credentials) as channel:
      stub = pb_grpc.CoordinatorStub(channel)
      try:
        answer = stub.Describe(pb.DescribeRequest(), timeout=left)
        description = _checked(answer, address)
        description.run_id = description.run_id or run_id
        if description.run_id:
          return description
        failure = None
        cause = (
          f"The coordinator at {address} is recovering a run from the islands"
          " that were in it. This one has an empty workdir: start it again"
          " when the run goes on."
        )
      except grpc.RpcError as error:
        failure = error
        cause = (
          f"No coordinator answered at {' or '.join(coordinators)} within"
          f" {patience:g} s. Check --coordinator, and that one runs: python"
          " -m intellect_jax.coordinator --config=… --listen=… --workdir=…"
        )
    if time.monotonic() + _PAUSE >= end:
      raise UserError(cause) from failure
    time.sleep(_PAUSE)
  raise UserError("--coordinator is an empty list; name a host:port.")


def _checked(description: pb.Description, address: str) -> pb.Description:
  """The description, in our protocol, its relays with their hosts."""
  if description.protocol != rpc.PROTOCOL_VERSION:
    raise UserError(
      f"The coordinator at {address} speaks protocol {description.protocol},"
      f" this island {rpc.PROTOCOL_VERSION}. Run the same version of"
      " intellect_jax on both."
    )
  description.relays[:] = relays_at(address, description.relays)
  return description


def relays_at(coordinator: str, relays: Iterable[str]) -> list[str]:
  """Relays as a coordinator at host:port names them; ":port" is at its host."""
  host = coordinator.rpartition(":")[0]
  return [host + relay if relay.startswith(":") else relay for relay in relays]
