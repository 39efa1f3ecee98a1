"""All processes of an island as one: what process 0 has them do.

Process 0 leads: it speaks with the coordinator and decides. What it decides
becomes tasks (bytes, at any time) and orders (training, one after the other),
which every process carries out, process 0 too: see `part.py` and `replica.py`.
With one process there is nobody to tell, and nothing else is different.

If a process dies, the island has ended: no collective of its devices can go on.
All its processes end at once, and whoever started them starts them again.
"""

from collections.abc import Sequence
import itertools
import math
import os
import queue
import sys
import threading
from typing import NoReturn

import grpc

from intellect_jax.elastic import blobs, fetching, reduce, rpc
from intellect_jax.elastic.actions import Gather
from intellect_jax.elastic.part import Part
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.elastic.protocol import island_pb2_grpc as ipb_grpc
from intellect_jax.elastic.replica import Replica, delta_name

_NEVER = threading.Event()
_LOOK = 0.1  # seconds between two looks at whether work was cancelled
_GRACE = 10.0  # seconds for mates to end
_END = None
_COUNT = ipb.Task(count=ipb.Count())


class Crew:
  """The processes of an island, led by this one."""

  def __init__(
    self,
    part: Part,
    replica: Replica | None = None,
    mates: Sequence[str] = (),
    credentials: rpc.Credentials = rpc.LOOPBACK,
  ):
    """Opens the lines to the mates.

    Args:
      part: of this process.
      replica: of this process; None: it does not train.
      mates: addresses of the other processes on the island's own network.
      credentials: for channels.
    """
    self._replica = replica
    self._part = part
    self._mates = [
      Mate(process, address, credentials)
      for process, address in enumerate(mates, start=1)
    ]
    self._serial = itertools.count()
    self._told = [ipb.Report()] * len(mates)  # the newest of each

  @property
  def replica(self) -> Replica:
    """Of this process."""
    assert self._replica is not None
    return self._replica

  def close(self, failure: str = "") -> None:
    """Ends the mates' part in the run, and this one's."""
    for mate in self._mates:
      mate.order(ipb.Order(end=ipb.End(failure=failure)))
    for mate in self._mates:
      mate.close()

  # ---------------------------------------------------------- tasks and orders

  def do(
    self, task: ipb.Task, cancelled: threading.Event = _NEVER
  ) -> list[ipb.Report]:
    """Has every process carry out a task; their reports, in order.

    Raises:
      reduce.MemberError: another island did not deliver, to any process; or
        a process had to give up, of which the island is the culprit.
      fetching.FetchError: the same, of a state.
      OSError: this process had to give up.
      fetching.Cancelled: `cancelled` was set.
    """
    calls = [mate.start(task) for mate in self._mates]
    try:
      reports = [self._part.do(task, cancelled)]
      reports += [_result(call, cancelled) for call in calls]
      self._told = reports[1:]
      return reports
    finally:
      for call in calls:
        call.cancel()

  def order(self, order: ipb.Order) -> list[ipb.Report]:
    """Has every process carry out an order; their reports, in order."""
    self.tell(order)
    own = self.replica.do(order)
    return [own, *(mate.report() for mate in self._mates)]

  def tell(self, order: ipb.Order) -> None:
    """Has the mates carry out what this process does itself: a step."""
    for mate in self._mates:
      mate.order(order)

  # -------------------------------------------------------------- deltas, means

  def propose_delta(
    self, keep_x: bool, fragment: int = 0, eager: ipb.Eager | None = None
  ) -> tuple[pb.Blob, float]:
    """Encodes theta - x once, and serves it until it is withdrawn.

    Args:
      keep_x: steps will go on from here before the record comes.
      fragment: of which.
      eager: they go on from where this leads; None: from x as it is.

    Returns:
      The blob, and the norm of the decoded delta.
    """
    freeze = ipb.Freeze(keep_x=keep_x, fragment=fragment, eager=eager)
    reports = self.order(ipb.Order(freeze=freeze))
    states = {report.state_hash for report in reports}
    if len(states) > 1:
      raise RuntimeError(
        "The processes of this island hold different bits of theta and b. It"
        " has to be started again; if it comes back, test the hosts' memory."
      )
    norm = math.sqrt(sum(r.squared_norms[0] for r in reports))
    length = self._part.mean_bytes[fragment]
    return self._serve(delta_name(fragment), length, reports, fragment), norm

  def reduce(
    self, plan: pb.Plan, index: int, cancelled: threading.Event
  ) -> pb.ShareReduced:
    """Reduces a share of a plan, and serves it; see `Exchange.reduce_share`."""
    share = plan.shares[index]
    task = ipb.Task(reduce=ipb.ReducePart(plan=plan, share=index))
    reports = self.do(task, cancelled)
    length = (share.stop - share.start) * self._part.block_bytes
    squares = zip(*(r.squared_norms for r in reports), strict=True)
    return pb.ShareReduced(
      attempt=plan.attempt,
      share=index,
      mean=self._serve(plan.attempt, length, reports, plan.fragment),
      squared_norms=[sum(parts) for parts in squares],
      mean_squared_norm=sum(r.mean_squared_norm for r in reports),
    )

  def _serve(
    self, kept: bytes, length: int, reports: list[ipb.Report], fragment: int
  ) -> pb.Blob:
    """Serves what the processes have kept as one blob in parts."""
    hashes = b"".join(report.hashes for report in reports)
    manifest = blobs.Manifest(length, self._part.chunk(fragment), hashes)
    serve = ipb.Serve(kept=kept, id=manifest.id, manifest=manifest.pack())
    served = self.do(ipb.Task(serve=serve))
    parts = [part for report in served for part in report.blob.parts]
    filled = [part for part in parts if part.start < part.stop]
    return pb.Blob(id=manifest.id, length=length, parts=filled)

  def withdraw(self, blob_id: bytes) -> None:
    self.do(ipb.Task(withdraw=blob_id))

  def gather(self, action: Gather, cancelled: threading.Event) -> None:
    """Brings a whole mean to every process, and puts it on the shelf."""
    gather = ipb.GatherPart(
      id=self._name(),
      attempt=action.attempt,
      shares=action.shares,
      holders=action.holders,
      fragment=action.fragment,
    )
    self._bring(gather.id, ipb.Task(gather=gather), cancelled)
    shelve = ipb.Shelve(
      id=gather.id,
      attempt=action.attempt,
      shares=action.shares,
      fragment=action.fragment,
    )
    self.do(ipb.Task(shelve=shelve), cancelled)

  def fetch(self, state: pb.Blob, cancelled: threading.Event) -> bytes:
    """Brings theta and b to every process; returns the name they have there.

    Raises:
      fetching.FetchError: if nobody delivers them.
      fetching.Cancelled: `cancelled` was set.
    """
    fetch = ipb.FetchPart(id=self._name(), state=state)
    try:
      self._bring(fetch.id, ipb.Task(fetch=fetch), cancelled)
    except reduce.MemberError as error:
      raise fetching.FetchError(error.island, error.reason) from error
    except OSError as error:
      raise fetching.FetchError("this island", str(error)) from error
    return fetch.id

  def drop(self, name: bytes) -> None:
    """What was fetched under this name is not needed."""
    self.do(ipb.Task(drop=name))

  def _name(self) -> bytes:
    return next(self._serial).to_bytes(8)

  def _bring(
    self, name: bytes, task: ipb.Task, cancelled: threading.Event
  ) -> None:
    """Parts to each process from other islands, then all parts to all."""
    try:
      parts = [report.blob for report in self.do(task, cancelled)]
      self.do(ipb.Task(swap=ipb.Swap(id=name, parts=parts)), cancelled)
    except BaseException:
      self.drop(name)
      raise

  # ------------------------------------------------------------ log and figures

  def adopt(self, sealed: pb.SealedRecord) -> None:
    """A record is committed."""
    self.do(ipb.Task(adopt=sealed))

  def write(self, records: Sequence[pb.SealedRecord]) -> None:
    """Writes records to all logs, up to a state that was fetched."""
    for first in range(0, len(records), 1000):
      log = pb.Records(records=records[first : first + 1000])
      self.do(ipb.Task(log=log))

  def offer(self) -> pb.StateReady:
    """Serves a copy of theta and b to whoever joins, from every host."""
    own, *others = self.do(ipb.Task(offer=pb.OfferState()))
    for report in others:
      if report.blob.id == own.blob.id:  # else it is about to move theta
        own.blob.parts.extend(report.blob.parts)
    return pb.StateReady(
      record=own.record, state=own.blob, fragments=own.fragments
    )

  def addresses(self) -> list[str]:
    """Where others reach this island."""
    reports = self.do(ipb.Task(ask=ipb.Ask()))
    return [address for report in reports for address in report.addresses]

  def reach(self, checkpoint: int) -> int:
    """The newest record to which all processes can go on from a checkpoint."""
    reports = self.do(ipb.Task(ask=ipb.Ask(checkpoint=checkpoint)))
    return min(report.record for report in reports)

  def traffic(self, anew: bool = False) -> tuple[int, int, int]:
    """Bytes sent, relayed and received, of all processes.

    Of mates up to the newest task; `anew`: up to now.
    """
    if anew:
      self.do(_COUNT)
    reports = self._counted()
    return (
      sum(report.bytes_sent for report in reports),
      sum(report.bytes_relayed for report in reports),
      sum(report.bytes_received for report in reports),
    )

  def rates(self) -> tuple[float, float]:
    """Bytes/s that the hosts' links carry together, up and down; 0: unknown.

    Of mates as of the newest task.
    """
    reports = self._counted()
    up = [report.upload_rate for report in reports]
    down = [report.download_rate for report in reports]
    return sum(up) if all(up) else 0.0, sum(down) if all(down) else 0.0

  def _counted(self) -> list[ipb.Report]:
    """What each process has sent and received."""
    return [self._part.do(_COUNT, _NEVER), *self._told]


class Mate:
  """The line to another process of the island."""

  def __init__(self, process: int, address: str, credentials: rpc.Credentials):
    self._process = process
    self._channel = rpc.channel(address, credentials)
    self._stub = ipb_grpc.MateStub(self._channel)
    self._orders: queue.Queue = queue.Queue()
    self._reports: queue.Queue[ipb.Report] = queue.Queue()
    self._closing = False
    self._thread = threading.Thread(
      target=self._attend, name=f"mate-{process}", daemon=True
    )
    self._thread.start()

  def start(self, task: ipb.Task) -> grpc.Future:
    """Starts a task; the future has its report."""
    return self._stub.Work.future(task, wait_for_ready=True)

  def order(self, order: ipb.Order) -> None:
    """Sends an order, to be carried out after all those before."""
    self._closing |= order.HasField("end")
    self._orders.put(order)

  def report(self) -> ipb.Report:
    """Of the oldest order that has not been reported yet; waits for it."""
    return self._reports.get()

  def close(self) -> None:
    self._orders.put(_END)
    self._thread.join(_GRACE)
    self._channel.close()

  def _attend(self) -> None:
    reason = "it went away"
    try:
      orders = iter(self._orders.get, _END)
      for report in self._stub.Train(orders, wait_for_ready=True):
        self._reports.put(report)
    except grpc.RpcError as error:
      reason = str(error.details() if isinstance(error, grpc.Call) else error)
    if not self._closing:
      end_island(f"Process {self._process} of this island is gone: {reason}.")


def _result(call, cancelled: threading.Event) -> ipb.Report:
  while True:
    try:
      report = call.result(timeout=_LOOK)
      break
    except grpc.FutureTimeoutError:
      if cancelled.is_set():
        raise fetching.Cancelled from None
  if report.cancelled:
    raise fetching.Cancelled
  if report.failure:
    raise reduce.MemberError(report.culprit, report.failure)
  return report


def end_island(reason: str) -> NoReturn:
  """Ends this process at once, from any thread.

  The training thread may be in a collective that will never be complete, so
  nothing can be tidied up. It is as if all of the island were killed.
  """
  print(f"{reason} The island ends; start all of it again.", file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)
