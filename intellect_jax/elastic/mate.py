"""A process of an island that follows process 0; see `crew.py`."""

from collections.abc import Callable, Iterator
import queue
import threading

import grpc

from intellect_jax.elastic import fetching, reduce
from intellect_jax.elastic.crew import end_island
from intellect_jax.elastic.part import Part
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.elastic.protocol import island_pb2_grpc as ipb_grpc

_END = None
_UNREPORTED = ("window", "step")  # orders that process 0 does not wait for


class Mate(ipb_grpc.MateServicer):
  """Hears process 0. Its services stand before there is anything to do."""

  def __init__(self, island: str):
    self.island = island
    self.part: Part | None = None  # set before process 0 hears of us
    self._orders: queue.Queue = queue.Queue()
    self._reports: queue.Queue = queue.Queue()

  def add_to(self, server: grpc.Server) -> None:
    ipb_grpc.add_MateServicer_to_server(self, server)

  def follow(self, do: Callable[[ipb.Order], ipb.Report]) -> None:
    """Has `do` carry out the orders of process 0, until its end.

    A failure ends the process, and with it the island.
    """
    for order in iter(self._orders.get, _END):
      report = do(order)
      if order.WhichOneof("order") not in _UNREPORTED:
        self._reports.put(report)
    self._reports.put(_END)

  # ------------------------------------------------------------ what is called

  def Work(self, request: ipb.Task, context) -> ipb.Report:
    """Carries out a task in this call's own thread."""
    cancelled = threading.Event()
    context.add_callback(cancelled.set)
    assert self.part is not None
    try:
      return self.part.do(request, cancelled)
    except fetching.Cancelled:
      return ipb.Report(cancelled=True)
    except reduce.MemberError as error:
      return ipb.Report(culprit=error.island, failure=error.reason)
    except fetching.FetchError as error:
      return ipb.Report(culprit=error.peer, failure=error.reason)
    except OSError as error:
      return ipb.Report(culprit=self.island, failure=str(error))

  def Train(
    self, request_iterator: Iterator[ipb.Order], context
  ) -> Iterator[ipb.Report]:
    """Hands orders to the training thread, and its reports to process 0."""
    hearing = threading.Thread(
      target=self._hear, args=(request_iterator,), daemon=True
    )
    hearing.start()
    yield from iter(self._reports.get, _END)

  def _hear(self, orders: Iterator[ipb.Order]) -> None:
    try:
      for order in orders:
        if order.HasField("end"):
          if order.end.failure:
            end_island(f"Process 0 has ended: {order.end.failure}")
          self._orders.put(_END)
          return
        self._orders.put(order)
    except Exception as error:  # whatever gRPC makes of a broken stream
      end_island(f"Process 0 of this island is gone: {error}.")
    end_island("Process 0 of this island is gone.")
