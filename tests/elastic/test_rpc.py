"""Addresses as people write them, IPv4, IPv6 or names; and servers on them."""

import contextlib
import socket

import grpc
import pytest

from intellect_jax.elastic import rpc
from intellect_jax.errors import UserError


@pytest.mark.parametrize(
  ("address", "host", "port"),
  [
    ("127.0.0.1:7600", "127.0.0.1", 7600),
    ("[::1]:0", "::1", 0),
    ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
    ("island.example.org:65535", "island.example.org", 65535),
  ],
)
def test_an_address_is_a_host_and_a_port(address, host, port):
  assert rpc.split_address(address) == (host, port)
  assert rpc.join_address(host, port) == address


@pytest.mark.parametrize(
  "address",
  ["", "7600", ":7600", "host", "host:", "::1:7600", "a:65536", "a:-1"],
)
def test_what_is_no_address_is_refused_by_name(address):
  with pytest.raises(UserError, match=r"must be host:port") as refusal:
    rpc.split_address(address)
  assert repr(address) in str(refusal.value)


def test_a_list_of_addresses_is_checked():
  assert rpc.split_list("a:1, [::1]:2,") == ["a:1", "[::1]:2"]
  with pytest.raises(UserError):
    rpc.split_list("a:1,b")


@pytest.mark.parametrize(
  ("advertise", "expected"),
  [
    ("", ["127.0.0.1:7000"]),
    ("203.0.113.7", ["203.0.113.7:7000"]),
    ("203.0.113.7:30111", ["203.0.113.7:30111"]),
    ("2001:db8::7", ["[2001:db8::7]:7000"]),
    ("[2001:db8::7]:30111,a.org", ["[2001:db8::7]:30111", "a.org:7000"]),
  ],
)
def test_what_is_advertised_may_differ_from_what_is_bound(advertise, expected):
  listening = "127.0.0.1:7000"
  assert rpc.addresses_for_others(listening, advertise, "") == expected


@pytest.mark.parametrize("everything", ["0.0.0.0:7000", "[::]:7000"])
def test_who_listens_on_everything_is_reached_the_way_it_reaches(everything):
  addresses = rpc.addresses_for_others(everything, "", "127.0.0.1:7600")
  assert addresses == ["127.0.0.1:7000"]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_servers_are_reached_at_any_kind_of_host(host):
  if host == "[::1]" and not _has_ipv6():
    pytest.skip("this machine has no IPv6 loopback")
  server = rpc.server(threads=2)
  address = rpc.listen(server, f"{host}:0", rpc.LOOPBACK)
  with contextlib.closing(rpc.channel(address, rpc.LOOPBACK)) as channel:
    grpc.channel_ready_future(channel).result(10)
  server.stop(grace=None)


def test_the_world_is_not_listened_to_by_accident():
  for address in ("0.0.0.0:0", "[::]:0"):
    with pytest.raises(UserError, match="--insecure"):
      rpc.listen(rpc.server(threads=1), address, rpc.LOOPBACK)


def _has_ipv6() -> bool:
  try:
    with socket.socket(socket.AF_INET6) as probe:
      probe.bind(("::1", 0))
    return True
  except OSError:
    return False
