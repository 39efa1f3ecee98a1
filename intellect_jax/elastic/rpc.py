"""All channels and servers are built here, from one credentials object."""

import concurrent.futures
import dataclasses
import ipaddress
import threading

from absl import logging
import grpc

from intellect_jax.errors import UserError

PROTOCOL_VERSION = 1  # of elastic.proto and of what its words mean

# A dead peer shows within the ping timeout, also behind a middlebox that goes
# on acknowledging TCP: keepalive alone would wait for its 60 s default there.
_OPTIONS = (
  ("grpc.keepalive_time_ms", 5_000),
  ("grpc.keepalive_timeout_ms", 5_000),
  ("grpc.http2.ping_timeout_ms", 5_000),
  ("grpc.keepalive_permit_without_calls", 1),
  ("grpc.http2.max_pings_without_data", 0),
  ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
  ("grpc.http2.max_ping_strikes", 0),
  ("grpc.initial_reconnect_backoff_ms", 200),
  ("grpc.min_reconnect_backoff_ms", 200),
  ("grpc.max_reconnect_backoff_ms", 5_000),
  ("grpc.max_receive_message_length", 64 << 20),
  ("grpc.max_send_message_length", 64 << 20),
  # Channels to one address are separate connections, control beside bulk.
  ("grpc.use_local_subchannel_pool", 1),
  # Two servers on one port would share its callers by chance.
  ("grpc.so_reuseport", 0),
)


@dataclasses.dataclass(frozen=True)
class Credentials:
  """How this process proves who it is. Without TLS: loopback, or at risk."""

  insecure: bool = False  # listen beyond loopback all the same


LOOPBACK = Credentials()


def channel(address: str, credentials: Credentials) -> grpc.Channel:
  """Returns a channel to `address`; connects when it is first used."""
  del credentials
  return grpc.insecure_channel(address, options=_OPTIONS)


class Channels:
  """One bulk channel an address, made on first use, shared by threads."""

  def __init__(self, credentials: Credentials):
    self._credentials = credentials
    self._channels: dict[str, grpc.Channel] = {}
    self._lock = threading.Lock()

  def to(self, address: str) -> grpc.Channel:
    with self._lock:
      if address not in self._channels:
        self._channels[address] = channel(address, self._credentials)
      return self._channels[address]

  def close(self) -> None:
    with self._lock:
      for open_channel in self._channels.values():
        open_channel.close()
      self._channels.clear()


def server(threads: int) -> grpc.Server:
  """Returns a server without services; see `listen`."""
  pool = concurrent.futures.ThreadPoolExecutor(
    threads, thread_name_prefix="serve"
  )
  return grpc.server(pool, options=_OPTIONS)


def listen(
  grpc_server: grpc.Server, address: str, credentials: Credentials
) -> str:
  """Binds and starts the server; returns the address with its real port.

  Raises:
    UserError: if the address is taken, malformed, or open to the world.
  """
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit():
    raise UserError(
      f"The listening address is {address!r}, but must be host:port, as in"
      " 127.0.0.1:7600 (port 0 takes any free one)."
    )
  if not _is_loopback(host):
    if not credentials.insecure:
      raise UserError(
        f"Listening on {address} would let anyone who reaches this host"
        " change the run: connections are neither encrypted nor"
        " authenticated. Listen on 127.0.0.1, or pass --insecure where a"
        " VPN or a firewall keeps strangers out."
      )
    logging.warning("Listening on %s without TLS (--insecure).", address)
  try:
    bound = grpc_server.add_insecure_port(address)
  except RuntimeError as error:
    raise UserError(
      f"Cannot listen on {address}: the port is in use, or the host is not"
      " this machine. Choose another port, or end the process that has it."
    ) from error
  grpc_server.start()
  return f"{host}:{bound}"


def _is_loopback(host: str) -> bool:
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host.strip("[]")).is_loopback
  except ValueError:
    return False
