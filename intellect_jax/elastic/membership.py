"""Who is in the run: incarnations, membership leases, places. No I/O.

An island is *in* as long as it is heard: each message renews its lease, and
leases are measured by the coordinator's own monotonic clock, `now`. A broken
control stream takes it out of the attempt at once, and nobody waits for its
proposal when its lease is nearly over; out of the run, only the end of its lease
takes it.
"""

import dataclasses
import enum

from intellect_jax.elastic.protocol import elastic_pb2 as pb

# Of a lease, in silence: then rounds go on without a member, so that the others
# have their record when the lease ends.
_AWAITED = 0.9


class State(enum.Enum):
  JOINING = "joining"  # admitted, does not hold the newest state yet
  IN = "in"
  GONE = "gone"  # its lease ran out
  LEFT = "left"


@dataclasses.dataclass
class Member:
  """One incarnation of an island."""

  island: str
  incarnation: int
  process: bytes  # random; a copied workdir has another
  session: int | None  # its control stream, if there is one
  state: State
  lease_until: float
  addresses: list[str] = dataclasses.field(default_factory=list)
  place: str = ""
  heard: float = 0.0
  heartbeat: pb.Heartbeat = dataclasses.field(default_factory=pb.Heartbeat)
  progressed: float = 0.0  # when its heartbeat last showed something new
  hung: bool = False  # evicted for that, and nothing new since
  silent: bool = False  # for so long that nobody waits for its proposal
  record: int = -1  # newest whose mean it is known to hold
  state_record: int = 0
  state_hash: bytes = b""

  @property
  def present(self) -> bool:
    """Whether it takes part, or is about to."""
    return self.state in (State.IN, State.JOINING)


class Membership:
  """The members of a run, by island name."""

  def __init__(self, lease_seconds: float):
    self.lease_seconds = lease_seconds
    self.members: dict[str, Member] = {}

  def expect(
    self, island: str, incarnation: int, now: float, process: bytes = b""
  ) -> Member:
    """Holds a place for a member of before the coordinator's restart."""
    self.members[island] = Member(
      island, incarnation, process, None, State.IN, now + self.lease_seconds
    )
    return self.members[island]

  def refusal(self, hello: pb.Hello, now: float) -> str:
    """Why this hello may not take part; empty if it may."""
    known = self.members.get(hello.island)
    if known is None or hello.incarnation > known.incarnation:
      return ""
    if hello.incarnation < known.incarnation:
      return (
        f"A newer process of island {hello.island!r} is in the run"
        f" (incarnation {known.incarnation}, this one is"
        f" {hello.incarnation}). If two hosts share this name, start one"
        " with another --config.island.name and an empty workdir."
      )
    if known.process and known.process != hello.process:
      return (
        f"Island {hello.island!r} with incarnation {hello.incarnation} is"
        " in the run already, from another process: its workdir was copied."
        " Start this one with an empty workdir."
      )
    return ""

  def admit(
    self, hello: pb.Hello, session: int, now: float
  ) -> tuple[Member, Member | None, bool]:
    """Returns the member, whom it replaces, and whether it was evicted."""
    known = self.members.get(hello.island)
    same = known is not None and known.incarnation == hello.incarnation
    ended = (State.GONE, State.LEFT)
    evicted = same and known is not None and known.state in ended
    if same and known is not None:
      member, replaced = known, None
      member.process = hello.process
      if evicted:
        member.state = State.JOINING
    else:
      member = Member(
        hello.island,
        hello.incarnation,
        hello.process,
        session,
        State.JOINING,
        now,
      )
      replaced = known
      self.members[hello.island] = member
    member.session = session
    member.addresses = list(hello.addresses)
    member.place = hello.place
    beat = member.heartbeat
    beat.tokens_trained = max(beat.tokens_trained, hello.tokens_trained)
    self.renew(member, now)
    return member, replaced, evicted

  def renew(self, member: Member, now: float) -> None:
    member.heard = now
    self._extend(member, now)

  def _extend(self, member: Member, now: float) -> None:
    member.lease_until = now + self.lease_seconds
    member.silent = False

  def note(self, member: Member, heartbeat: pb.Heartbeat, now: float) -> None:
    """Takes a heartbeat, and sees whether the training thread goes on."""
    if _progress(heartbeat) != _progress(member.heartbeat):
      member.progressed, member.hung = now, False
    member.heartbeat = heartbeat

  def by_session(self, session: int) -> Member | None:
    for member in self.members.values():
      if member.session == session:
        return member
    return None

  def expired(self, now: float) -> list[Member]:
    """Members whose lease has run out; they are gone from now on."""
    slack = (1 - _AWAITED) * self.lease_seconds
    gone = []
    for member in self.members.values():
      member.silent = now > member.lease_until - slack
      if member.present and now > member.lease_until:
        member.state = State.GONE
        gone.append(member)
    return gone

  def hung(self, now: float, seconds: float) -> list[Member]:
    """Members that are heard but train no further; gone from now on.

    Who waits says so in its activity; what takes long says how long.
    """
    hung = []
    for member in self.inside():
      busy = member.heartbeat.busy_seconds
      works = member.heartbeat.activity == "training" or busy > 0
      if works and now - member.progressed > max(seconds, busy):
        member.state, member.hung = State.GONE, True
        hung.append(member)
    return hung

  def renew_all(self, now: float) -> None:
    """After a gap of the coordinator's own: nobody could be heard."""
    for member in self.members.values():
      if member.present:
        self._extend(member, now)
        member.progressed = now

  def inside(self) -> list[Member]:
    """Members that take part, whether or not they can be heard just now."""
    return [m for m in self.members.values() if m.state is State.IN]

  def awaited(self) -> set[str]:
    """Names of members that take part and are worth waiting for."""
    return {m.island for m in self.inside() if not m.silent}

  def reachable(self) -> set[str]:
    """Names of members that take part and can be heard."""
    return {m.island for m in self.inside() if m.session is not None}

  def serving(self) -> list[str]:
    """Addresses where the means of recent records are served."""
    return [
      address
      for member in self.inside()
      if member.session is not None
      for address in member.addresses
    ]

  def holding(self, record: int) -> list[str]:
    """Islands that are here and hold the state of `record`, or a later one."""
    return [
      member.island
      for member in self.members.values()
      if member.record >= record
      and (member.session is not None or member.state is State.LEFT)
    ]


def _progress(beat: pb.Heartbeat) -> tuple:
  return beat.activity, beat.record, beat.window, beat.step
