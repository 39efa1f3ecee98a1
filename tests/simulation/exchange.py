"""What a simulated island does with deltas and means: it has them, or not."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from intellect_jax.elastic import round as round_lib
from intellect_jax.elastic import shares
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from simulation.symbols import Delta, left_by, mean_id

if TYPE_CHECKING:
  from simulation.island import Island

BLOCKS = 64  # of the codec, in a fragment
WORK = 0.01, 0.6  # seconds that a reduction or a gathering takes
LONG = 5.0  # times as long takes one in ten


class Exchange:
  """Serves, reduces and gathers, as work.py does.

  Attributes:
    blobs: ids of what others may have from here.
  """

  def __init__(self, island: "Island"):
    self._island = island
    self._world = island.world
    self._codec = island.world.codec
    self.blobs = set(island.disk.means)
    # By fragment: counts attempts, so that cancelled work shows.
    self._attempts = [0] * island.world.fragments

  def serve(self, delta: Delta, tokens: float) -> tuple[pb.Blob, float]:
    """Encodes a delta. Returns the blob, and its norm."""
    feedback = self._island.feedback
    feedback.propose(left_by(delta.id) if self._codec.sparse else delta.left)
    self._world.invariants.has_encoded(delta)
    return self._blob(delta.id, BLOCKS), norm(tokens)

  def _blob(self, blob_id: bytes, blocks: int) -> pb.Blob:
    self.blobs.add(blob_id)
    part = pb.Part(addresses=[self._island.address])
    length = blocks * self._codec.block_bytes
    return pb.Blob(id=blob_id, length=length, parts=[part])

  # ------------------------------------------------- what the round asks for

  def carry_out(self, action: round_lib.Action) -> None:
    match action:
      case round_lib.Cancel(fragment):
        self._attempts[fragment] += 1
      case round_lib.Reduce(plan, index):
        self._start(plan.fragment, lambda: self._reduce(plan, index))
      case round_lib.Gather(fragment=fragment, late=0):
        self._start(fragment, lambda: self._gather(action))
      case round_lib.Gather():
        self._island.later(WORK, lambda: self._gather(action))

  def _start(self, fragment: int, work: Callable[[], None]) -> None:
    attempt = self._attempts[fragment]
    long = LONG if self._world.random.random() < 0.1 else 1.0
    bounds = [seconds * self._island.slowness * long for seconds in WORK]

    def done() -> None:
      if self._attempts[fragment] == attempt:
        work()

    self._island.later(bounds, done)

  def _reduce(self, plan: pb.Plan, index: int) -> None:
    share = plan.shares[index]
    for member in plan.members:
      if not self._can_get(member.delta.id, shares.addresses(member.delta)):
        self._fail(plan.attempt, member.island)
        return
    deltas = [member.delta.id for member in plan.members]
    if self._codec.sparse:
      self.blobs |= set(deltas)
      mean, part_of_all = plan.members[index].delta, 1 / len(plan.members)
    else:
      blob_id = mean_id(plan.members, share.start, share.stop, deltas)
      mean = self._blob(blob_id, share.stop - share.start)
      part_of_all = (share.stop - share.start) / BLOCKS
    report = pb.ShareReduced(
      attempt=plan.attempt,
      share=index,
      mean=mean,
      squared_norms=[norm(m.weight) ** 2 * part_of_all for m in plan.members],
    )
    self._tell(lambda round: round.reduced(report))

  def _gather(self, action: round_lib.Gather) -> None:
    for share in action.shares:
      sources = [*shares.addresses(share.mean), *action.holders]
      if not self._can_get(share.mean.id, sources):
        if action.late:
          self._island.later(
            (1.0, 1.0),
            lambda: self._tell(lambda r: r.late_fetch_failed(action.attempt)),
          )
        else:
          self._fail(action.attempt, share.owner)
        return
    means = {share.mean.id for share in action.shares}
    self.blobs |= means
    self._island.disk.means |= means
    self._tell(lambda round: round.gathered(action.attempt, action.fragment))

  def _fail(self, attempt: bytes, peer: str) -> None:
    """Nothing came from `peer`, until patience ran out."""
    patience = self._world.run.elastic.fetch_patience
    self._island.later(
      (patience, patience),
      lambda: self._tell(lambda round: round.failed(attempt, peer, "cut")),
    )

  def _tell(
    self, event: Callable[[round_lib.IslandRound], list[round_lib.Action]]
  ) -> None:
    self._island.carry_out(event(self._island.round))

  def _can_get(self, blob_id: bytes, addresses) -> bool:
    holders = self._world.serving(self._island, addresses)
    return blob_id in self.blobs or any(
      blob_id in holder.exchange.blobs for holder in holders
    )


def norm(tokens: float) -> float:
  """Of a delta, as a symbol."""
  return 1.0 + tokens
