"""What the state machines want done. The shells do it, in this order.

A coordinator's shell is service.py, an island's is agent.py.
"""

import dataclasses

from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder, Interval

# ------------------------------------------------------------ a coordinator's


@dataclasses.dataclass(frozen=True)
class Tell:
  """Send this on a control stream."""

  session: int
  message: pb.ToIsland


@dataclasses.dataclass(frozen=True)
class Close:
  """End a control stream, after what was sent on it."""

  session: int


@dataclasses.dataclass(frozen=True)
class Append:
  """Make a record durable, before any action that follows.

  The leases of its windows have ended.
  """

  record: pb.Record
  sealed: pb.SealedRecord


@dataclasses.dataclass(frozen=True)
class SaveLease:
  holder: Holder
  samples: list[Interval]


@dataclasses.dataclass(frozen=True)
class SaveProcess:
  """Who holds a place in the run: a copied workdir has another process."""

  island: str
  incarnation: int
  process: bytes


@dataclasses.dataclass(frozen=True)
class EndLeases:
  """Leases that ended without a record, and what was lost with them."""

  holders: list[Holder]
  loss: pb.Loss | None


@dataclasses.dataclass(frozen=True)
class SaveLosses:
  """All losses anew: some were none."""

  losses: list[pb.Loss]


@dataclasses.dataclass(frozen=True)
class SaveEvaluation:
  record: int
  loss: float  # nats a token, or a pair


@dataclasses.dataclass(frozen=True)
class Stop:
  """Another coordinator has taken over."""

  reason: str


@dataclasses.dataclass(frozen=True)
class Warn:
  """Tell the operator, loudly."""

  text: str


CoordinatorAction = (
  Tell
  | Close
  | Append
  | SaveLease
  | SaveProcess
  | EndLeases
  | SaveLosses
  | SaveEvaluation
  | Stop
  | Warn
)


# ---------------------------------------------------------------- an island's


@dataclasses.dataclass(frozen=True)
class Send:
  """Say this to the coordinator."""

  message: pb.FromIsland


@dataclasses.dataclass(frozen=True)
class Reduce:
  """Reduce the plan's share `index`, then call `reduced` or `failed`."""

  plan: pb.Plan
  index: int


@dataclasses.dataclass(frozen=True)
class Gather:
  """Bring the whole mean here, then call `gathered` or `failed`.

  `late` is the number of the record that is committed already, or 0.
  """

  attempt: bytes
  shares: list[pb.Share]
  holders: list[str]  # addresses that may have shares besides their owners
  fragment: int = 0
  late: int = 0


@dataclasses.dataclass(frozen=True)
class Cancel:
  """Stop working for a fragment's open attempt; means of records are needed."""

  fragment: int = 0


@dataclasses.dataclass(frozen=True)
class Adopt:
  """The record is committed and its mean is here: apply it when it suits."""

  record: pb.Record
  sealed: pb.SealedRecord


@dataclasses.dataclass(frozen=True)
class Keep:
  """The record was annulled: it stays in the log, and moves nothing."""

  sealed: pb.SealedRecord


@dataclasses.dataclass(frozen=True)
class ReadLog:
  """Records are missing from `start` on: ask the coordinator for them."""

  start: int


@dataclasses.dataclass(frozen=True)
class Diverged:
  """This island stands at a record that was annulled, or of a lost chain."""

  record: int
  to: int  # newest record of its own that still counts; -1: not known


@dataclasses.dataclass(frozen=True)
class HandIn:
  """Propose what is trained, after the step that is under way."""

  number: int  # of the record that it may be in
  fragment: int = 0


IslandAction = (
  Send | Reduce | Gather | Cancel | Adopt | Keep | ReadLog | Diverged | HandIn
)
