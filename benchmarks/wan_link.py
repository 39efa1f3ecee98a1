"""A wide area network on one machine: a namespace for each host, and links.

  with network(["a", "b"]) as (hosts, links):
    Child("benchmarks.bare_island", […], log, hosts["a"])
    shape(links, rates=[100, 25], rtt=100)

Before that, links are as fast as this machine, and near, so that what is to be
measured is soon reached.

It is a process, with which everything ends, however it ends: namespaces have no
names, and are gone with the last process in them. Needs root. For each packet
from host to host it models

  * the uplink: `tc tbf` on the host's own device, so that TCP there feels its
    own queue as on a real host;
  * half of the round trip, the same for all pairs: packets keep their order;
  * the downlink: as fast as the uplink, with a queue from which is dropped what
    comes too much, so that senders have to share it.

Rates are of IP packets. TCP's windows are those that Linux has by default, up
to 4 MB sent and 6 MB received.

What it does not model: random loss, jitter, other people's traffic, links that
are slower one way, and hosts with cores of their own. It takes about 10 µs of a
core a packet; when it falls behind, packets are late: `late_ms` says how late
they were on average.
"""

import argparse
import collections
from collections.abc import Iterator, Sequence
import contextlib
import ctypes
import dataclasses
import fcntl
import json
import os
import pathlib
import select
import struct
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.loopback import COORDINATOR, Child, Host

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_SET_INTERFACE = 0x400454CA  # TUNSETIFF
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000  # IFF_TUN | IFF_NO_PI
_DEVICE = "wan0"
_SETTINGS = "/proc/sys/net/ipv4"  # of the namespace of who opens them
# Bytes of a connection's buffers: least, first, most; Linux's own for links. A
# buffer never shrinks: one that had filled near would hold seconds of a link.
_RECEIVED = "4096 131072 6291456"
_SENT = "4096 16384 4194304"
_SENT_NEAR = "4096 16384 131072"
_AT_ONCE = 64  # packets that are read from a host before others have a turn
_IDLE = 0.5  # seconds
_QUEUE = 0.1  # seconds that a packet waits in front of a link, at most
_BURST = 0.002  # seconds of an uplink's rate that may go at once
_FAST = 1000.0  # 10^6 bits/s, of the coordinator's link
_USUAL = 1500  # bytes of a packet, at most
_JUMBO = 9000  # … beyond this rate, where smaller ones would fill a core:
_MOST_USUAL = 100.0  # 10^6 bits/s

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def network(
  names: Sequence[str], congestion: str = ""
) -> Iterator[tuple[dict[str, Host], Child]]:
  """Hosts by name, the coordinator's first, and the process of their links.

  `congestion`: control of TCP, one that the machine allows to namespaces, as
  "reno"; empty: its own.
  """
  named = [COORDINATOR, *names]
  with tempfile.NamedTemporaryFile() as file:
    log = pathlib.Path(file.name)
    arguments = [str(len(named)), f"--congestion={congestion}"]
    links = Child("benchmarks.wan_link", arguments, log)
    try:
      ends = links.wait("ready")["ends"]
      hosts = {
        name: Host(address, ["nsenter", f"--net={namespace}", "--"])
        for name, (address, namespace) in zip(named, ends, strict=True)
      }
      yield hosts, links
    finally:
      links.kill()


def shape(links: Child, rates: Sequence[float], rtt: float) -> None:
  """Makes links slow and far.

  Args:
    links: from `network`.
    rates: of each host's link, both ways, 10^6 bits/s, but the coordinator's.
    rtt: ms from any host to any other and back.
  """
  links.order("shape", rates=[_FAST, *rates], rtt=rtt)
  links.wait("shaped")


def counts(links: Child) -> dict[str, Any]:
  """What the links have carried so far; see `Network.counts`."""
  links.order("count")
  return links.wait("counted")


@dataclasses.dataclass
class End:
  """One host's end of its link."""

  address: str
  namespace: int  # file descriptor
  tun: int  # file descriptor of the host's device
  seconds_a_byte: float = 0.0
  free: float = 0.0  # when the downlink has carried all that it was given
  coming: collections.deque[tuple[float, bytes]] = dataclasses.field(
    default_factory=collections.deque
  )  # packets, by the time at which they arrive
  sent: int = 0  # bytes on the uplink
  received: int = 0  # bytes that arrived
  dropped: int = 0  # packets, at the downlink


class Network:
  """The ends of all links, and what is on the way between them."""

  def __init__(self, count: int, congestion: str):
    """Makes a namespace for each of so many hosts."""
    self._delay = 0.0  # seconds from host to host
    with open(f"{_SETTINGS}/tcp_congestion_control") as file:
      self.congestion = congestion or file.read().strip()
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    self.ends = [self._end(f"10.99.0.{1 + number}") for number in range(count)]
    _enter(home)
    os.close(home)
    self._by_tun = {end.tun: end for end in self.ends}
    self._packets = 0
    self._late = 0.0  # seconds, of all packets together

  def _end(self, address: str) -> End:
    """Moves this process to a new namespace, and makes its device."""
    _check(_libc.unshare(_NEW_NETWORK))
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", _DEVICE.encode(), _TUN_WITHOUT_HEADER)
    fcntl.ioctl(tun, _SET_INTERFACE, request)
    for command in (
      "ip link set lo up",
      f"ip address add {address}/24 dev {_DEVICE}",
      f"ip link set {_DEVICE} mtu {_JUMBO} txqueuelen 10000 up",
    ):
      subprocess.run(command.split(), check=True)
    _set("tcp_congestion_control", self.congestion)
    _set("tcp_rmem", _RECEIVED)
    _set("tcp_wmem", _SENT_NEAR)
    return End(address, os.open("/proc/self/ns/net", os.O_RDONLY), tun)

  def shape(self, rates: list[float], rtt: float) -> None:
    """Of each link, 10^6 bits/s; ms there and back."""
    self._delay = rtt / 2e3
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    mtu = _USUAL if max(rates[1:]) <= _MOST_USUAL else _JUMBO
    for end, mbit in zip(self.ends, rates, strict=True):
      end.seconds_a_byte = 8e-6 / mbit
      burst = max(2 * mtu, int(mbit * 1e6 / 8 * _BURST))
      _enter(end.namespace)
      _set("tcp_wmem", _SENT)
      for command in (
        f"ip link set {_DEVICE} mtu {mtu}",
        f"tc qdisc replace dev {_DEVICE} root tbf rate {mbit}mbit"
        f" burst {burst} latency {1e3 * _QUEUE}ms",
      ):
        subprocess.run(command.split(), check=True)
    _enter(home)
    os.close(home)

  def run(self) -> None:
    """Carries packets, and answers orders until standard input ends."""
    orders = sys.stdin.fileno()
    while True:
      now = time.monotonic()
      due = (end.coming[0][0] for end in self.ends if end.coming)
      pause = max(0.0, min(due, default=now + _IDLE) - now)
      ready, _, _ = select.select([orders, *self._by_tun], [], [], pause)
      for source in ready:
        if source != orders:
          self._take(source)
        elif not (line := sys.stdin.readline()):
          return
        else:
          self._obey(json.loads(line))
      self._deliver()

  def _obey(self, order: dict[str, Any]) -> None:
    if order["do"] == "shape":
      self.shape(order["rates"], order["rtt"])
      tell("shaped")
    else:
      tell("counted", **self.counts())

  def _take(self, tun: int) -> None:
    """Puts what a host sends on its way."""
    sender, now = self._by_tun[tun], time.monotonic()
    for _ in range(_AT_ONCE):
      try:
        packet = os.read(tun, 1 << 16)
      except BlockingIOError:
        return
      number = packet[19] - 1  # by the last byte of the destination
      if packet[0] >> 4 != 4 or not 0 <= number < len(self.ends):
        continue
      sender.sent += len(packet)
      receiver = self.ends[number]
      there = now + self._delay
      start = max(there, receiver.free)
      if start - there > _QUEUE:
        receiver.dropped += 1
        continue
      receiver.free = start + len(packet) * receiver.seconds_a_byte
      receiver.coming.append((receiver.free, packet))

  def _deliver(self) -> None:
    for end in self.ends:
      coming, now = end.coming, time.monotonic()
      while coming and coming[0][0] <= now:
        due, packet = coming.popleft()
        self._packets += 1
        self._late += now - due
        end.received += len(packet)
        os.write(end.tun, packet)

  def counts(self) -> dict[str, Any]:
    """What was carried since the start, and what it took."""
    used = os.times()
    return dict(
      congestion=self.congestion,
      sent=[end.sent for end in self.ends],
      received=[end.received for end in self.ends],
      dropped=[end.dropped for end in self.ends],
      packets=self._packets,
      late_ms=1e3 * self._late / max(1, self._packets),
      cpu_seconds=used.user + used.system,
    )


def _set(name: str, value: str) -> None:
  with open(f"{_SETTINGS}/{name}", "w") as file:
    file.write(value)


def _enter(namespace: int) -> None:
  _check(_libc.setns(namespace, _NEW_NETWORK))


def _check(result: int) -> None:
  if result:
    raise OSError(ctypes.get_errno(), "a namespace cannot be made or entered")


def tell(kind: str, **figures: Any) -> None:
  print(json.dumps(dict(kind=kind) | figures), flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("count", type=int, help="hosts")
  parser.add_argument("--congestion", default="", help="empty: the machine's")
  options = parser.parse_args()
  links = Network(options.count, options.congestion)
  tell(
    "ready",
    ends=[
      (end.address, f"/proc/{os.getpid()}/fd/{end.namespace}")
      for end in links.ends
    ],
  )
  links.run()


if __name__ == "__main__":
  main()
