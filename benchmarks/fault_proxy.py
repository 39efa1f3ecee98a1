"""A TCP proxy that plays a bad network: slow, far, cut, or silently dead.

  with FaultProxy(server_address) as proxy:
    talk_to(proxy.address)
    proxy.down.rate = 12.5e6  # 100 Mbit/s from the server to its callers
    proxy.up.hold()           # what callers send is acknowledged, and stays
    proxy.up.release()        # … and arrives late, as after a partition
    proxy.reset()             # every connection ends with a TCP reset
  proxy.cut(is_bob)         # a black hole for callers at ports that are Bob's

It ends TCP on both sides, as a middlebox does: the sender's kernel hears
acknowledgements whatever becomes of the bytes. So it can show neither packet
loss nor congestion control, but the worse case of a peer that looks alive.
"""

import asyncio
from collections.abc import Callable
import os
import pathlib
import random
import socket
import struct
import threading
from typing import Self

_READ = 256 << 10  # bytes
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: close is a reset


class Link:
  """One direction. Set `delay`, `jitter` and `rate` at any time."""

  def __init__(self, loop: asyncio.AbstractEventLoop, window: int):
    self.delay = 0.0  # seconds on the way
    self.jitter = 0.0  # seconds more, at random; TCP keeps the order
    self.rate = 0.0  # bytes/s of all connections together; 0: unlimited
    self.bytes = 0  # that arrived
    self._window = window
    self._loop = loop
    self._flowing = asyncio.Event()
    self._flowing.set()
    self._free = 0.0  # when the link has sent what was given to it

  def hold(self) -> None:
    """A black hole: bytes are taken, up to the window, and do not arrive."""
    self._loop.call_soon_threadsafe(self._flowing.clear)

  def release(self) -> None:
    """What was held arrives now, in order."""
    self._loop.call_soon_threadsafe(self._flowing.set)

  async def carry(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ) -> None:
    """Moves one connection's bytes until the sender ends the stream."""
    on_the_way = asyncio.Queue()
    room = asyncio.Semaphore(max(1, self._window // _READ))
    async with asyncio.TaskGroup() as tasks:
      tasks.create_task(self._arrive(on_the_way, room, writer))
      due = 0.0
      while True:
        await room.acquire()
        data = await reader.read(_READ)
        now = self._loop.time()
        if self.rate:
          self._free = max(now, self._free) + len(data) / self.rate
        sent = max(now, self._free) if self.rate else now
        due = max(due, sent + self.delay + random.uniform(0, self.jitter))
        on_the_way.put_nowait((due, data))
        if not data:
          return

  async def _arrive(
    self,
    on_the_way: asyncio.Queue,
    room: asyncio.Semaphore,
    writer: asyncio.StreamWriter,
  ) -> None:
    while True:
      due, data = await on_the_way.get()
      await asyncio.sleep(due - self._loop.time())
      await self._flowing.wait()
      if not data:
        writer.write_eof()
        return
      writer.write(data)
      await writer.drain()
      self.bytes += len(data)
      room.release()


class FaultProxy:
  """Listens at `address` and carries every connection to `target`.

  Attributes:
    up: the link from the callers to the target.
    down: the link from the target to the callers.
  """

  def __init__(
    self, target: str, listen: str = "127.0.0.1:0", window: int = 32 << 20
  ):
    """Starts. `window`: bytes on the way, a connection and direction."""
    self.target = target
    self._loop = asyncio.new_event_loop()
    self.up = Link(self._loop, window)
    self.down = Link(self._loop, window)
    self._refusing = False
    self._is_cut: Callable[[int], bool] = lambda port: False
    self._pairs: dict[asyncio.Task, list[asyncio.StreamWriter]] = {}
    self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
    self._thread.start()
    host, port = _split(listen)
    self._server = self._run(asyncio.start_server(self._meet, host, port))
    bound = self._server.sockets[0].getsockname()[1]
    self.address = f"{listen.rpartition(':')[0]}:{bound}"

  def partition(self) -> None:
    """Both directions become black holes, until `heal`."""
    self.up.hold()
    self.down.hold()

  def cut(self, callers: Callable[[int], bool]) -> None:
    """Some callers, told by their port, reach nobody here, until `heal`.

    Their connections are reset; of new ones all bytes are taken.
    """
    self._is_cut = callers
    self._run(self._reset(callers))

  def heal(self) -> None:
    self._refusing = False
    was_cut, self._is_cut = self._is_cut, lambda port: False
    self._run(self._reset(was_cut))
    self.up.release()
    self.down.release()

  def reset(self) -> None:
    """Resets all connections; new ones are welcome."""
    self._run(self._reset())

  def refuse(self) -> None:
    """Resets all connections, and new ones at once, until `heal`."""
    self._refusing = True
    self.reset()

  @property
  def connections(self) -> int:
    return len(self._pairs)

  def close(self) -> None:
    """Ends all connections and stops listening."""
    self._run(self._stop())
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join()
    self._loop.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _run(self, work):
    return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

  async def _meet(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ) -> None:
    task = asyncio.current_task()
    assert task is not None
    ends = self._pairs[task] = [writer]
    try:
      if self._refusing:
        raise ConnectionRefusedError
      if self._is_cut(_port(writer)):
        while await reader.read(_READ):
          pass
        return
      far_reader, far_writer = await asyncio.open_connection(
        *_split(self.target)
      )
      ends.append(far_writer)
      async with asyncio.TaskGroup() as tasks:
        tasks.create_task(self.up.carry(reader, far_writer))
        tasks.create_task(self.down.carry(far_reader, writer))
    except* OSError:
      self._abort(ends)  # a reset of one end is a reset of the other
    except* asyncio.CancelledError:
      pass  # by `reset`, which has ended both
    finally:
      del self._pairs[task]
      for end in ends:
        end.close()

  def _abort(self, ends: list[asyncio.StreamWriter]) -> None:
    for end in ends:
      end_socket = end.get_extra_info("socket")
      if end_socket is not None and end_socket.fileno() >= 0:
        end_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
      end.transport.abort()

  async def _reset(
    self, callers: Callable[[int], bool] = lambda port: True
  ) -> None:
    tasks = [t for t, ends in self._pairs.items() if callers(_port(ends[0]))]
    for task in tasks:
      self._abort(self._pairs[task])
      task.cancel()  # also one whose bytes are held
    await asyncio.gather(*tasks, return_exceptions=True)

  async def _stop(self) -> None:
    self._server.close()
    await self._reset()


def _split(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(":")
  return host.strip("[]"), int(port)


def _port(writer: asyncio.StreamWriter) -> int:
  """Of the caller."""
  return writer.get_extra_info("peername")[1]


def ports_of(pid: int) -> set[int]:
  """Local ports of a process's TCP connections, on Linux."""
  sockets = set()
  for path in pathlib.Path(f"/proc/{pid}/fd").iterdir():
    try:
      sockets.add(os.readlink(path))
    except FileNotFoundError:  # closed meanwhile
      continue
  ports = set()
  for table in "tcp", "tcp6":
    for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
      fields = line.split()
      if f"socket:[{fields[9]}]" in sockets:
        ports.add(int(fields[1].rpartition(":")[2], 16))
  return ports
