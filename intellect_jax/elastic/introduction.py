"""How an island introduces itself at each new stream."""

from collections.abc import Iterable

from intellect_jax.elastic import chain
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb


class Introduction:
  """Who an island is, where it stands, and what is leased to it.

  Attributes:
    hello: as it was said last.
  """

  def __init__(self, hello: pb.Hello, log: RecordLog):
    """`hello` says who it is; the rest is filled in from here on."""
    self.hello = hello
    self._log = log
    self._grants: dict[int, pb.LeaseGrant] = {}  # of windows not decided yet

  def granted(self, grant: pb.LeaseGrant) -> None:
    """Samples of a window are leased to it."""
    self._grants[grant.window] = grant

  def given_up(self, windows: Iterable[pb.Window]) -> None:
    """These windows will not be proposed."""
    for window in windows:
      self._grants.pop(window.number, None)

  def leases_ended(self) -> None:
    """It was evicted: nothing that it was granted before is its own."""
    self._grants.clear()

  def decided(self, record: pb.Record) -> None:
    """A record commits some windows; perhaps of this process."""
    for holder, _ in chain.windows_of(record):
      if holder[:2] == (self.hello.island, self.hello.incarnation):
        self._grants.pop(holder.window, None)

  def say(self, stands: int | None, heartbeat: pb.Heartbeat) -> pb.FromIsland:
    """The hello of an island that stands at a record; None: at none."""
    hello = self.hello
    hello.has_state = stands is not None and stands >= 0
    if stands is not None and stands >= 0:
      sealed = self._log.record(stands)
      hello.record = stands
      hello.record_hash = sealed.hash if sealed is not None else b""
      hello.head = stands + max(0, len(self._log.records(stands)) - 1)
    hello.tokens_trained = heartbeat.tokens_trained
    hello.tokens_open = heartbeat.tokens_open
    hello.ClearField("leases")
    hello.leases.extend(self._grants.values())
    return pb.FromIsland(hello=hello)
