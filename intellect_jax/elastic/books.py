"""What outlives a coordinator: its records, settings, leases, losses. No I/O.

All of it is in the ledger too (ledger.py), which is written first: a record is
durable before anybody hears of it.
"""

from collections.abc import Sequence
import dataclasses
import types

from ml_collections import ConfigDict

from intellect_jax import config as config_lib
from intellect_jax.elastic.accounts import Accounts, Leases
from intellect_jax.elastic.actions import Append, EndLeases, SaveEvaluation
from intellect_jax.elastic.chain import Chain
from intellect_jax.elastic.membership import Membership
from intellect_jax.elastic.outbox import Outbox
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.steering import Steering


@dataclasses.dataclass
class History:
  """What a coordinator remembers from before it was started."""

  run_id: str
  term: int
  log: list[pb.SealedRecord] = dataclasses.field(default_factory=list)
  leases: Leases = dataclasses.field(default_factory=dict)
  losses: list[pb.Loss] = dataclasses.field(default_factory=list)
  evaluations: dict[int, float] = dataclasses.field(default_factory=dict)
  # By island and incarnation: random bytes, which a copied workdir has not.
  processes: dict[tuple[str, int], bytes] = dataclasses.field(
    default_factory=dict
  )
  recovered: bool = False  # from the islands: leases are theirs to tell


class Books:
  """The books of one run, as one coordinator keeps them in its term.

  Attributes:
    run: the run half of the config as it holds for the next record.
    elastic: its section `elastic`, which is read at every event.
    appended_at: when the newest record was written, in seconds.
  """

  def __init__(
    self,
    run: ConfigDict,
    history: History,
    members: Membership,
    outbox: Outbox,
    now: float,
  ):
    """Opens the books; islands that were in the run are expected back."""
    self._started_run = run  # as it was before anyone changed a setting
    self.run_id = history.run_id
    self.term = history.term
    self.digest = config_lib.digest(run)
    self.recovered = history.recovered
    self.evaluations = dict(history.evaluations)
    self._members = members
    self._outbox = outbox
    self.chain = Chain(history.log)
    self.appended_at = now
    # Who took part or was training when the last coordinator ended is given
    # a lease to come back; what older processes had leased is free.
    newest: dict[str, int] = {}
    last = self.chain.last_step.step.members
    took_part = [(m.island, m.incarnation) for m in last]
    for island, incarnation in [*took_part, *(h[:2] for h in history.leases)]:
      newest[island] = max(incarnation, newest.get(island, 0))
    for island, incarnation in newest.items():
      process = history.processes.get((island, incarnation), b"")
      members.expect(island, incarnation, now, process)
    older = [h for h in history.leases if h.incarnation < newest[h.island]]
    if older:  # or the next coordinator would find them beside newer ones
      outbox.add(EndLeases(older, None))
    leases = {h: i for h, i in history.leases.items() if h not in older}
    self.accounts = Accounts(self.chain, leases, history.losses, outbox)
    self._read_settings()

  @property
  def head(self) -> pb.Record:
    """The newest record; an empty one before the run has a state."""
    return self.chain.head

  # -------------------------------------------------------------- records

  def append(self, record: pb.Record, now: float) -> None:
    """Completes a record, makes it durable, then announces it."""
    record.islands = max(1, len(self._members.inside()))
    commits = record.HasField("step") and not record.step.fragment
    record.final = record.total_tokens >= self.run.tokens or (
      commits and self.steering.finish
    )
    sealed = self.chain.link(record, self.term)
    self._keep(record, sealed, now)
    self._announce(sealed)

  def commit(self, step: pb.OuterStep, now: float) -> None:
    """A step: what its members trained is committed."""
    tokens = sum(w.tokens for m in step.members for w in m.windows)
    self.accounts.commit(step)
    total = self.head.total_tokens + tokens
    self.append(pb.Record(step=step, total_tokens=total), now)

  def change(self, settings: pb.Settings, now: float) -> None:
    """Settings, which leave theta where it is."""
    tokens = self.head.total_tokens
    self.append(pb.Record(settings=settings, total_tokens=tokens), now)

  def annul(self, to: int, reason: str, now: float) -> None:
    """Takes back the records after `to`; their samples are free again."""
    before = self.chain.effective
    tokens = self.chain.records[to].total_tokens
    annulment = pb.Annulment(to=to, reason=reason)
    self.append(pb.Record(annulment=annulment, total_tokens=tokens), now)
    self.accounts.annul(before, to, reason)

  def take_over(
    self, found: Sequence[tuple[pb.Record, pb.SealedRecord]], now: float
  ) -> None:
    """Records that this coordinator's disk has lost, from an island."""
    before = self.chain.effective
    for record, sealed in found:
      self._keep(record, sealed, now)
      self._announce(sealed)
    records = [record for record, _ in found]
    members = self._members.members.values()
    self.accounts.take_over(before, self.chain, records, members)
    self._read_settings()

  def _keep(
    self, record: pb.Record, sealed: pb.SealedRecord, now: float
  ) -> None:
    """The log has a further record, durable before anything that follows."""
    self.chain.add(record, sealed)
    self._outbox.add(Append(record, sealed))
    self.appended_at = now
    if self.steering != Steering() or not record.HasField("step"):
      self._read_settings()

  def _announce(self, sealed: pb.SealedRecord) -> None:
    announced = pb.SealedRecord()
    announced.CopyFrom(sealed)
    announced.holders.extend(self._members.serving())
    self._outbox.tell_all(pb.ToIsland(record=announced))

  def _read_settings(self) -> None:
    self.steering = Steering.of(self.chain.effective)
    records = len(self.chain.records)
    self.run = self.steering.run_at(self._started_run, records)
    self.elastic = types.SimpleNamespace(**self.run.elastic)
    self._members.lease_seconds = self.elastic.lease_seconds

  # ---------------------------------------------------------- evaluations

  def evaluated(self, evaluation: pb.Evaluation) -> None:
    """An island has evaluated theta at a record; the first word counts."""
    if evaluation.record not in self.evaluations:
      self.evaluations[evaluation.record] = evaluation.loss
      self._outbox.add(SaveEvaluation(evaluation.record, evaluation.loss))
