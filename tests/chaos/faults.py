"""What is done to a swarm. Each fault is over when its function returns."""

from collections.abc import Callable
import signal

from world import LEASE, World

from intellect_jax.elastic.protocol import elastic_pb2 as pb

Fault = Callable[[World, str], None]


def kill_island(world: World, name: str) -> None:
  world.kill(name)


def kill_two_islands(world: World, name: str) -> None:
  world.kill(name)
  world.kill(_other(world, name))


def flap(world: World, name: str) -> None:
  for _ in range(3):
    world.kill(name)
    world.wait_until(
      lambda status: _state(status, name) in ("joining", "in"),
      f"{name} to come back",
    )


def kill_coordinator(world: World, name: str) -> None:
  world.kill("coordinator")


def lose_ledger(world: World, name: str) -> None:
  world.lose_ledger()


def kill_all(world: World, name: str) -> None:
  for each in ("coordinator", "relay", *world.names):
    world.kill(each)


def lose_ledger_and_kill_all(world: World, name: str) -> None:
  """It is collected from islands that start again."""
  for each in ("relay", *world.names):
    world.kill(each)
  world.lose_ledger()


def kill_relay(world: World, name: str) -> None:
  world.kill("relay")


def freeze(world: World, name: str) -> None:
  world.stop_for(name, 2 * LEASE)


def freeze_shortly(world: World, name: str) -> None:
  world.stop_for(name, LEASE / 3)


def freeze_coordinator(world: World, name: str) -> None:
  world.stop_for("coordinator", 2 * LEASE)


def reset(world: World, name: str) -> None:
  world.control[name].reset()
  world.blobs[name].reset()
  world.relay.reset()


def partition(world: World, name: str) -> None:
  world.cut_off([name], 2 * LEASE)


def cut_pair(world: World, name: str) -> None:
  world.cut_pair(name, _other(world, name), 3 * LEASE)


def hide_blobs(world: World, name: str) -> None:
  """The coordinator hears it, but others reach its blobs by the relay alone."""
  world.blobs[name].partition()
  world.let_pass(3 * LEASE)
  world.blobs[name].heal()


def join_twice(world: World, name: str) -> None:
  """Two new islands at once; they stay for a few records and leave."""
  guests = [world.invite(), world.invite()]
  status = world.wait_until(
    lambda status: world.are_in(status, guests), "two islands to join"
  )
  there = status.record + 3
  world.wait_until(lambda status: status.record >= there, "records with guests")
  for guest in guests:
    world.see_off(guest)


def fill_disk(world: World, name: str) -> None:
  """The first island's disk; it may wait or end, and returns with the space."""
  name = world.names[0]
  ballast = world.fill_disk(name)
  world.down.add(name)  # it is not started again before there is space
  world.let_pass(2 * LEASE)
  ballast.unlink()
  world.down.discard(name)
  world.swarm.parts[name].restarts = 0


# ------------------------------------------------------ what an operator does


def evict(world: World, name: str) -> None:
  """It is started again once it has heard of it."""
  evicted = _incarnation(world.swarm.status(), name)
  if world.order(evict=pb.Evict(island=name)):
    # Or another process of it had just been started, which may stay.
    world.start_again(name, lambda s: _incarnation(s, name) > evicted)


def roll_back(world: World, name: str) -> None:
  head = world.swarm.status().record
  world.order(rollback=pb.Rollback(to=max(0, head - 2)))


def change_settings(world: World, name: str) -> None:
  values = {"run.outer.learning_rate": "0.5"}
  world.order(set=pb.Set(values=values))


def pause(world: World, name: str) -> None:
  world.order(pause=pb.SetPause(paused=True))
  world.let_pass(LEASE / 2)
  world.order(pause=pb.SetPause(paused=False))


def restart(world: World, name: str) -> None:
  """SIGTERM: it hands in what it has, and comes back."""
  world.signal(name, signal.SIGTERM)
  world.start_again(name)


def _incarnation(status: pb.Status, name: str) -> int:
  return next((i.incarnation for i in status.islands if i.island == name), 0)


def _other(world: World, name: str) -> str:
  return world.names[world.names.index(name) - 1]


def _state(status: pb.Status, name: str) -> str:
  return next((i.state for i in status.islands if i.island == name), "")


FAULTS: dict[str, Fault] = {
  "SIGKILL of an island": kill_island,
  "SIGKILL of two islands": kill_two_islands,
  "an island flaps": flap,
  "SIGKILL of the coordinator": kill_coordinator,
  "coordinator's disk lost": lose_ledger,
  "SIGKILL of everything": kill_all,
  "… and the coordinator's disk lost": lose_ledger_and_kill_all,
  "SIGKILL of the relay": kill_relay,
  "SIGSTOP of an island": freeze,
  "SIGSTOP, shorter than the lease": freeze_shortly,
  "SIGSTOP of the coordinator": freeze_coordinator,
  "TCP reset": reset,
  "partition of an island": partition,
  "one pair cut": cut_pair,
  "an island nobody can call": hide_blobs,
  "two islands join at once": join_twice,
  "disk full": fill_disk,
}
# Who is killed with the coordinator, or its ledger, leaves nobody to say what it
# had trained; a full disk is one island.
NOT_SOAKED = (
  "coordinator's disk lost",
  "SIGKILL of everything",
  "… and the coordinator's disk lost",
  "disk full",
)
ORDERS: dict[str, Fault] = {
  "an operator evicts an island": evict,
  "an operator rolls back": roll_back,
  "an operator changes settings": change_settings,
  "an operator pauses the run": pause,
  "SIGTERM of an island": restart,
}
