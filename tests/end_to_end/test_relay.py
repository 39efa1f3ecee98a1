"""Islands that nobody can call, and addresses of IPv6, in a real swarm."""

import os
import signal

import grpc
from processes import wait_until
import pytest

from intellect_jax.elastic import rpc
from intellect_jax.errors import UserError

BOUND = 60  # seconds
WINDOW = 2048  # tokens


def _has_ipv6_loopback() -> bool:
  try:
    rpc.listen(rpc.server(threads=1), "[::1]:0", rpc.LOOPBACK)
  except UserError:
    return False
  return True


@pytest.mark.skipif(not _has_ipv6_loopback(), reason="no IPv6 on this machine")
def test_islands_that_only_call_out_complete_their_rounds(world):
  run = ["outer.codec=float32", "elastic.start_islands=3"]
  coordinator = world.coordinator(
    *run, f"tokens={6 * WINDOW}", address="[::1]:0"
  )
  assert coordinator.address.startswith("[::1]:")
  behind = [
    world.island(name, coordinator, "--config.island.listen=")
    for name in ("ada", "bo")
  ]
  direct = world.island("eve", coordinator, "--config.island.listen=[::1]:0")
  for process in (*behind, direct, coordinator):
    process.must_end_well()

  members = [
    [member.island for member in record.step.members]
    for record in coordinator.records()[1:]
  ]
  assert members == [["ada", "bo", "eve"]] * 2
  final = world.simulate(coordinator)[-1]
  assert {island.state_hash() for island in (*behind, direct)} == {final}

  told = coordinator.summary()["bytes_relayed"]
  for island in behind:
    assert told[island.name] == island.summary()["bytes_relayed"][island.name]
    assert told[island.name] > 0
  assert told["eve"] == 0  # the direct way is preferred


def test_the_coordinators_relay_is_always_at_its_port(world):
  coordinator = world.coordinator()
  port = (coordinator.workdir / "relay").read_text()
  (relay,) = children(coordinator)
  must_listen(port)

  os.kill(relay, signal.SIGKILL)
  wait_until(lambda: children(coordinator) not in ([], [relay]), coordinator)
  must_listen(port)

  (relay,) = children(coordinator)
  coordinator.kill()  # and the relay ends with it
  wait_until(lambda: not os.path.exists(f"/proc/{relay}"))
  coordinator = world.coordinator()
  assert (coordinator.workdir / "relay").read_text() == port
  must_listen(port)


def children(process) -> list[int]:
  pid = process._popen.pid
  with open(f"/proc/{pid}/task/{pid}/children") as listed:
    return [int(child) for child in listed.read().split()]


def must_listen(port: str) -> None:
  with rpc.channel(f"127.0.0.1:{port}", rpc.LOOPBACK) as channel:
    grpc.channel_ready_future(channel).result(BOUND)
