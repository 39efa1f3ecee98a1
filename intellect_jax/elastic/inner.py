"""An island's own network: how its processes pass bytes to each other.

Apart from the ways by which other islands reach this one: other addresses, no
caps, no relay, and not counted as traffic of the exchange.
"""

from collections.abc import Callable

import grpc
import numpy as np

from intellect_jax.elastic import blobs, fetching, rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb

_SERVE_THREADS = 32  # tasks of mates wait in them for each other's bytes


class InnerNetwork:
  """One process's place in it.

  Attributes:
    process: which one; 0 leads.
    processes: how many there are.
    address: where the others reach this one; empty if there are none.
    fetcher: of blobs that others share.
  """

  def __init__(
    self,
    process: int = 0,
    processes: int = 1,
    host: str = "127.0.0.1",
    credentials: rpc.Credentials = rpc.LOOPBACK,
    patience: float = 10.0,
    add_services: Callable[[grpc.Server], None] = lambda server: None,
  ):
    """Listens, if there are others.

    Args:
      process: which one.
      processes: how many.
      host: on which the others reach this process.
      credentials: for servers and channels.
      patience: seconds without a byte before a fetch is given up.
      add_services: adds what else others may call, besides blobs.
    """
    self.process = process
    self.processes = processes
    self.address = ""
    self.fetcher = fetching.Fetcher(credentials, patience, connections=1)
    self._store = blobs.BlobStore()
    self._server: grpc.Server | None = None
    if processes > 1:
      self._server = rpc.server(_SERVE_THREADS, credentials, bulk=True)
      self._store.add_to(self._server)
      add_services(self._server)
      listen = rpc.join_address(host, 0)
      self.address = rpc.listen(self._server, listen, credentials)
      self._store.addresses = [self.address]

  def cut(self, length: int, chunk: int) -> list[tuple[int, int]]:
    """[start, stop) of each process's part of a blob."""
    return blobs.cuts(length, chunk, self.processes)

  def share(self, data: np.ndarray, chunk: int) -> pb.Blob:
    """Serves uint8 `data` to the other processes, if there are any."""
    if self.processes == 1:
      return pb.Blob()
    return self._store.publish(data, chunk)

  def withdraw(self, blob_id: bytes) -> None:
    self._store.withdraw(blob_id)

  def close(self) -> None:
    self.fetcher.close()
    if self._server is not None:
      self._server.stop(grace=0.5).wait()
