"""All channels and servers are built here, from one credentials object."""

import concurrent.futures
import dataclasses
import ipaddress
import socket
import threading

from absl import logging
import grpc

from intellect_jax.errors import UserError

PROTOCOL_VERSION = 3  # of elastic.proto and of what its words mean


@dataclasses.dataclass(frozen=True)
class Credentials:
  """How this process proves who it is, and when it gives up a silent peer.

  Without TLS: loopback, or at risk.
  """

  insecure: bool = False  # listen beyond loopback all the same
  dead_after: float = 2.5  # seconds of silence that end a connection

  def for_lease(self, seconds: float) -> "Credentials":
    """The same, for islands whose lease ends after so many seconds."""
    return dataclasses.replace(self, dead_after=max(2.0, 0.8 * seconds))


LOOPBACK = Credentials()


def _options(credentials: Credentials) -> list[tuple[str, int]]:
  """Of channels and servers: each side finds out that the other is dead.

  A ping is sent after 0.4 of `dead_after` without a byte, and waited for as
  long as half of it. Keepalive alone would not do behind a middlebox that goes
  on acknowledging TCP: there a ping is given up after its own 60 s by default.
  """
  ms = 1000 * credentials.dead_after
  return [
    ("grpc.keepalive_time_ms", int(0.4 * ms)),
    ("grpc.keepalive_timeout_ms", int(0.5 * ms)),
    ("grpc.http2.ping_timeout_ms", int(0.5 * ms)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 100),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # In spite of its name: how long a try to connect may take at least.
    ("grpc.min_reconnect_backoff_ms", int(ms)),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # Channels to one address are separate connections, control beside bulk.
    ("grpc.use_local_subchannel_pool", 1),
    # Two servers on one port would share its callers by chance.
    ("grpc.so_reuseport", 0),
  ]


# gRPC would find out how large the window of a stream has to be, and ping for
# that while data comes. The answer of a peer on a slow link waits behind what is
# in its buffers, for longer than a ping is waited for, and the connection ends.
_BULK = [
  ("grpc.http2.bdp_probe", 0),
  ("grpc.http2.lookahead_bytes", 4 << 20),  # as much as TCP has on the way
]
_BULK_DEAD_AFTER = 60.0  # seconds, of who sends it


def channel(
  address: str, credentials: Credentials, bulk: bool = False
) -> grpc.Channel:
  """Returns a channel to `address`; connects when it is first used."""
  options = _options(credentials) + (_BULK if bulk else [])
  return grpc.insecure_channel(address, options=options)


class Channels:
  """Bulk channels, made on first use, shared by threads."""

  def __init__(self, credentials: Credentials):
    self._credentials = credentials
    self._channels: dict[tuple[str, int], grpc.Channel] = {}
    self._lock = threading.Lock()

  def to(self, address: str, lane: int = 0) -> grpc.Channel:
    """A channel to an address; each lane of one is a connection of its own."""
    with self._lock:
      if (address, lane) not in self._channels:
        made = channel(address, self._credentials, bulk=True)
        self._channels[address, lane] = made
      return self._channels[address, lane]

  def close(self) -> None:
    with self._lock:
      for open_channel in self._channels.values():
        open_channel.close()
      self._channels.clear()


def server(
  threads: int, credentials: Credentials = LOOPBACK, bulk: bool = False
) -> grpc.Server:
  """Returns a server without services; see `listen`.

  One that serves bulk leaves it to its callers to find out soon that the other
  side is dead: its own pings would wait behind all that it has to send.
  """
  if bulk:
    patient = max(credentials.dead_after, _BULK_DEAD_AFTER)
    credentials = dataclasses.replace(credentials, dead_after=patient)
  pool = concurrent.futures.ThreadPoolExecutor(
    threads, thread_name_prefix="serve"
  )
  return grpc.server(pool, options=_options(credentials))


def listen(
  grpc_server: grpc.Server, address: str, credentials: Credentials
) -> str:
  """Binds and starts the server; returns the address with its real port.

  Raises:
    UserError: if the address is taken, malformed, or open to the world.
  """
  host = check_listen(address, credentials)
  try:
    bound = grpc_server.add_insecure_port(address)
  except RuntimeError as error:
    raise UserError(
      f"Cannot listen on {address}: the port is in use, or the host is not"
      " this machine. Choose another port, or end the process that has it."
    ) from error
  grpc_server.start()
  return join_address(host, bound)


def add_handler(
  grpc_server: grpc.Server, path: str, handler: grpc.RpcMethodHandler
) -> None:
  """Serves one method, "/package.Service/Method", that moves raw bytes."""
  service, method = path.strip("/").split("/")
  grpc_server.add_generic_rpc_handlers(
    (grpc.method_handlers_generic_handler(service, {method: handler}),)
  )


def check_listen(address: str, credentials: Credentials) -> str:
  """Returns the host; raises UserError if it may not be listened on."""
  host, _ = split_address(address)
  if not _is_loopback(host):
    if not credentials.insecure:
      raise UserError(
        f"Listening on {address} would let anyone who reaches this host"
        " change the run: connections are neither encrypted nor"
        " authenticated. Listen on 127.0.0.1, or pass --insecure where a"
        " VPN or a firewall keeps strangers out."
      )
    logging.warning("Listening on %s without TLS (--insecure).", address)
  return host


# ---------------------------------------------------------------- addresses


def split_address(address: str) -> tuple[str, int]:
  """Host, without brackets, and port of "host:port" or "[ipv6]:port".

  Raises:
    UserError: if the address is neither.
  """
  host, _, port = address.rpartition(":")
  bracketed = host.startswith("[") and host.endswith("]")
  whole = host and (bracketed or ":" not in host)
  if not (whole and port.isdecimal() and int(port) < 1 << 16):
    raise UserError(
      f"An address is {address!r}, but must be host:port, as in"
      " 127.0.0.1:7600, or [host]:port with IPv6, as in [::1]:7600. To listen"
      " on port 0 takes any free one."
    )
  return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
  """The address of a host and a port; IPv6 in brackets."""
  return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unused_address() -> str:
  """An address on this machine that nobody listens on, for a process to be."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return join_address("127.0.0.1", probe.getsockname()[1])


def split_list(addresses: str) -> list[str]:
  """The addresses of "a:1,b:2", each checked; see `split_address`."""
  found = [part.strip() for part in addresses.split(",") if part.strip()]
  for address in found:
    split_address(address)
  return found


def addresses_for_others(
  listening: str, advertise: str, towards: str
) -> list[str]:
  """Where others reach what listens here.

  Args:
    listening: the address that is bound.
    advertise: from the config: hosts, or addresses where ports are mapped,
      with commas between; empty: the host that is listened on.
    towards: an address that this host reaches. Where everything is listened
      on, it tells which of this host's addresses is meant.
  """
  host, port = split_address(listening)
  if advertise:
    given = [part.strip() for part in advertise.split(",")]
    return [_with_port(part, port) for part in given if part]
  if host in ("0.0.0.0", "::"):
    host = own_host(towards)
  return [join_address(host, port)]


def _with_port(host: str, port: int) -> str:
  try:
    ipaddress.IPv6Address(host)
  except ValueError:
    if ":" not in host:
      return join_address(host, port)
    split_address(host)
    return host
  return join_address(host, port)


def own_host(towards: str) -> str:
  """This host's address on the way to another one. Sends nothing."""
  try:
    family, kind, _, _, target = socket.getaddrinfo(
      *split_address(towards), type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind) as probe:
      probe.connect(target)
      return probe.getsockname()[0]
  except OSError as error:
    raise UserError(
      f"{towards} cannot be found from here ({error}), so it is not known which"
      " of this host's addresses others use. Name it by"
      " --config.island.advertise=HOST."
    ) from error


def _is_loopback(host: str) -> bool:
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False
