"""The bad network itself: what it delays, holds and cuts, it really does."""

from collections.abc import Iterator
import os
import socket
import socketserver
import threading
import time

import pytest

from benchmarks.fault_proxy import FaultProxy, ports_of


class _Echo(socketserver.BaseRequestHandler):
  def handle(self) -> None:
    while data := self.request.recv(1 << 16):
      self.request.sendall(data)


class _EchoServer(socketserver.ThreadingTCPServer):
  daemon_threads = True

  def handle_error(self, request, client_address) -> None:
    pass  # connections are reset on purpose here


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
  with _EchoServer(("127.0.0.1", 0), _Echo) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with FaultProxy(f"127.0.0.1:{server.server_address[1]}") as proxy:
      yield proxy
    server.shutdown()


def _connect(proxy: FaultProxy) -> socket.socket:
  host, port = proxy.address.split(":")
  return socket.create_connection((host, int(port)), timeout=10)


def _echo(connection: socket.socket, data: bytes) -> float:
  """Seconds until `data` is back."""
  started = time.monotonic()
  connection.sendall(data)
  received = b""
  while len(received) < len(data):
    received += connection.recv(1 << 16)
  assert received == data
  return time.monotonic() - started


def test_delay_is_paid_each_way(proxy):
  with _connect(proxy) as connection:
    _echo(connection, b"warm")
    proxy.up.delay = proxy.down.delay = 0.1
    assert _echo(connection, b"far") >= 0.2


def test_rate_limits_one_direction(proxy):
  with _connect(proxy) as connection:
    proxy.up.rate = 1e6
    assert _echo(connection, bytes(300_000)) >= 0.25


def test_held_bytes_arrive_in_order_after_the_release(proxy):
  with _connect(proxy) as connection:
    _echo(connection, b"warm")
    proxy.up.hold()
    connection.sendall(b"first")  # the kernel has it acknowledged
    connection.settimeout(0.3)
    with pytest.raises(TimeoutError):
      connection.recv(16)
    connection.settimeout(10)
    proxy.up.release()
    assert _echo(connection, b"") == pytest.approx(0, abs=1)
    assert connection.recv(16) == b"first"


def test_one_direction_can_be_dead_alone(proxy):
  with _connect(proxy) as connection:
    _echo(connection, b"warm")
    arrived = proxy.up.bytes
    proxy.down.hold()
    connection.sendall(b"heard, not answered")
    connection.settimeout(0.3)
    with pytest.raises(TimeoutError):
      connection.recv(32)
    assert proxy.up.bytes > arrived


def test_reset_ends_connections_and_takes_new_ones(proxy):
  with _connect(proxy) as old:
    _echo(old, b"warm")
    proxy.partition()
    proxy.reset()  # also while bytes are held
    with pytest.raises(ConnectionResetError):
      old.recv(16)
  proxy.heal()
  with _connect(proxy) as new:
    _echo(new, b"again")
  assert proxy.connections <= 1


def test_one_caller_can_be_cut_off_alone(proxy):
  with _connect(proxy) as other, _connect(proxy) as cut:
    _echo(other, b"warm")
    _echo(cut, b"warm")
    port = cut.getsockname()[1]
    proxy.cut(lambda caller: caller == port)
    with pytest.raises(ConnectionResetError):
      cut.recv(16)
    _echo(other, b"still there")


def test_new_connections_of_who_is_cut_off_are_black_holes(proxy):
  proxy.cut(lambda port: port in ports_of(os.getpid()))
  with _connect(proxy) as connection:
    connection.sendall(b"anyone?")
    connection.settimeout(0.3)
    with pytest.raises(TimeoutError):
      connection.recv(16)
  proxy.heal()
  with _connect(proxy) as connection:
    _echo(connection, b"there")


def test_refusal_lasts_until_it_is_healed(proxy):
  proxy.refuse()
  with pytest.raises(OSError), _connect(proxy) as connection:
    _echo(connection, b"anyone?")
  proxy.heal()
  with _connect(proxy) as connection:
    _echo(connection, b"there")
