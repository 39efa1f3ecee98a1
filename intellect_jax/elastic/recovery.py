"""A run whose ledger is lost: its chain is collected from the islands. No I/O.

Islands say hello as always and send the records that they have. The newest
chain of the highest term is the run's, as soon as more than half of the
members of its newest step were heard: then no other half can have gone on
with another coordinator. A Coordinator takes over with a term above all that
were seen. docs/protocol.md, 6.
"""

import dataclasses

from ml_collections import ConfigDict

from intellect_jax import config as config_lib
from intellect_jax.elastic import chain, rpc
from intellect_jax.elastic.actions import Close, Tell
from intellect_jax.elastic.actions import CoordinatorAction as Action
from intellect_jax.elastic.books import History
from intellect_jax.elastic.protocol import elastic_pb2 as pb

# A recovered run starts somewhere in the next thousand: the coordinator that it
# replaces may be alive, or another recovery, in terms that nobody here has seen.
TERMS = 1000


@dataclasses.dataclass
class _Heard:
  """What one island has said."""

  hello: pb.FromIsland
  chain: list[tuple[pb.Record, pb.SealedRecord]] = dataclasses.field(
    default_factory=list
  )
  whole: bool = False  # its chain is here

  @property
  def last(self) -> pb.SealedRecord | None:
    return self.chain[-1][1] if self.chain else None

  @property
  def rank(self) -> tuple[int, int]:
    """The higher term wins, then the longer chain."""
    return (self.chain[-1][0].term, len(self.chain)) if self.chain else (0, 0)


class Recovery:
  """What stands in for a Coordinator until the chain is found."""

  def __init__(self, run: ConfigDict, force: bool, serial: int, now: float):
    """Waits for islands.

    Args:
      run: the run half of the config, as the run was started.
      force: go on with what is found in a lease, however few have it.
      serial: below TERMS, at random: no two recoveries lead one term.
      now: seconds.
    """
    self._digest = config_lib.digest(run)
    self._force = force
    self._serial = serial
    self._patience = run.elastic.lease_seconds
    self._began = now
    self._heard: dict[int, _Heard] = {}  # by session
    self._term = 0
    self._run_id = ""

  @property
  def hellos(self) -> dict[int, pb.FromIsland]:
    """For the Coordinator that takes over: who is here, by session."""
    return {session: heard.hello for session, heard in self._heard.items()}

  def handle(
    self, session: int, message: pb.FromIsland, now: float
  ) -> list[Action]:
    """Takes one message of an island's control stream."""
    match message.WhichOneof("message"):
      case "hello":
        return self._hello(session, message)
      case "records" if session in self._heard:
        return self._records(session, message.records)
      case _:
        return []

  def disconnected(self, session: int, now: float) -> list[Action]:
    self._heard.pop(session, None)
    return []

  @property
  def log(self) -> list[pb.SealedRecord]:
    """For islands that ask: nothing is agreed yet."""
    return []

  def holders(self) -> list[str]:
    return []

  def status(self, now: float) -> pb.Status:
    """What an operator sees."""
    best = self._best()
    record = best.chain[-1][0] if best is not None else pb.Record()
    status = pb.Status(
      run_id=self._run_id,
      record=record.number,
      total_tokens=record.total_tokens,
      phase=self.describe(),
    )
    for heard in self._heard.values():
      hello = heard.hello.hello
      status.islands.add(
        island=hello.island, incarnation=hello.incarnation, state="joining"
      )
    return status

  def _hello(self, session: int, message: pb.FromIsland) -> list[Action]:
    hello = message.hello
    run_id = self._run_id or hello.run_id
    known = rpc.PROTOCOL_VERSION, self._digest
    # Who has been in no run yet asked a coordinator of before which it is.
    other = hello.run_id not in ("", run_id)
    if other or (hello.protocol, hello.run_digest) != known:
      reason = (
        f"The coordinator recovers a run with config {self._digest[:12]}"
        f" {self._run_id}, and this island is of {hello.run_digest[:12]}"
        f" {hello.run_id}. Start it with an empty workdir when the run goes on."
      )
      refusal = pb.ToIsland(
        term=message.term, refusal=pb.Refusal(reason=reason)
      )
      return [Tell(session, refusal), Close(session)]
    self._run_id = run_id
    self._term = max(self._term, message.term)
    self._heard[session] = _Heard(message)
    if not hello.has_state:
      return []
    return [_ask(session, 0, message.term)]

  def _records(self, session: int, sent: pb.Records) -> list[Action]:
    heard = self._heard[session]
    found = chain.continuation(heard.last, sent.records)
    heard.chain += found
    if found and len(heard.chain) < sent.end:
      return [_ask(session, len(heard.chain), heard.hello.term)]
    heard.whole = True
    return []

  def _best(self) -> _Heard | None:
    whole = [heard for heard in self._heard.values() if heard.whole]
    best = max(whole, key=lambda heard: heard.rank, default=None)
    return best if best is not None and best.chain else None

  def _missing(self) -> tuple[list[str], int]:
    """Members of the newest step not heard, and how many must still be."""
    best = self._best()
    if best is None:
      return [], 1
    steps = [r for r, _ in best.chain if r.HasField("step")]
    members = {m.island for m in steps[-1].step.members} if steps else set()
    heard = {h.hello.hello.island for h in self._heard.values() if h.whole}
    enough = len(members) // 2 + 1 if members else 0
    return sorted(members - heard), max(0, enough - len(members & heard))

  def describe(self) -> str:
    """What it waits for, for the operator."""
    best = self._best()
    if best is None:
      return "recovering: waiting for islands that have the run's records"
    missing, more = self._missing()
    return (
      f"recovering: the newest record found is {best.chain[-1][0].number};"
      f" waiting for {more} of {', '.join(missing)}"
    )

  def history(self, now: float) -> History | None:
    """The run's past, once enough islands were heard."""
    best = self._best()
    _, more = self._missing()
    forced = self._force and now - self._began > self._patience
    if best is None or (more and not forced):
      return None
    return History(
      self._run_id,
      (max(self._term, best.rank[0]) // TERMS + 1) * TERMS + self._serial,
      [sealed for _, sealed in best.chain],
      recovered=True,
    )

  def may_be_lost(self) -> str:
    """What nobody can know who goes on now; empty: nothing."""
    best, (missing, more) = self._best(), self._missing()
    if best is None or not more:
      return ""
    return (
      f"records after {best.chain[-1][0].number} may be lost: of its members"
      f" {', '.join(missing)} were not heard"
    )


def _ask(session: int, start: int, term: int) -> Tell:
  """In the island's own term: this is no coordinator yet, and fences none."""
  ask = pb.AskRecords(start=start)
  return Tell(session, pb.ToIsland(term=term, ask_records=ask))
