"""How others reach what an island serves: directly, and through relays."""

from collections.abc import Sequence

from absl import logging
import grpc

from intellect_jax.elastic import blobs, rpc
from intellect_jax.elastic.relay import RelayLink
from intellect_jax.errors import UserError

_SERVE_THREADS = 256  # started as needed: two a member wait for a share to grow


class Reach:
  """Serves a store in all ways that there are, until `close`."""

  def __init__(
    self,
    store: blobs.BlobStore,
    island: str,
    listen: str,
    advertise: str,
    relays: Sequence[str],
    coordinator: str,
    credentials: rpc.Credentials,
  ):
    """Opens the ways and notes them in `store.addresses`, direct ones first.

    Args:
      store: what is served.
      island: its name, by which relays know it.
      listen: host:port; empty: nobody can call this host.
      advertise: see `rpc.addresses_for_others`.
      relays: host:port of each.
      coordinator: host:port.
      credentials: for servers and channels.

    Raises:
      UserError: if there is no way.
    """
    self._store = store
    self._island = island
    self._credentials = credentials
    self._server: grpc.Server | None = None
    self._links: dict[str, RelayLink] = {}  # by relay
    if listen:
      self._server = rpc.server(_SERVE_THREADS, credentials, bulk=True)
      store.add_to(self._server)
      listening = rpc.listen(self._server, listen, credentials)
      store.addresses = rpc.addresses_for_others(
        listening, advertise, coordinator
      )
    elif not relays:
      raise UserError(
        "island.listen is empty: this island only calls out, but the"
        " coordinator names no relay through which others could reach it."
        " Start the coordinator without --relay=none, or listen on host:port."
      )
    self._direct = list(store.addresses)
    self.use(relays)
    logging.info("Others reach %s at %s", island, ", ".join(store.addresses))

  def use(self, relays: Sequence[str]) -> bool:
    """Goes on with these relays, and no others. Whether that is a change.

    Blobs that are published from now on name them.
    """
    if list(self._links) == list(relays):
      return False
    island, store = self._island, self._store
    for gone in self._links.keys() - set(relays):
      self._links.pop(gone).close()
    self._links = {
      relay: self._links.get(relay)
      or RelayLink(relay, island, store, self._credentials)
      for relay in relays
    }
    relayed = [blobs.relayed(relay, island) for relay in relays]
    store.addresses = self._direct + relayed
    return True

  def close(self) -> None:
    for link in self._links.values():
      link.close()
    if self._server is not None:
      self._server.stop(grace=0.5).wait()
