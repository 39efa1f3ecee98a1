"""The processes of an island, and how they find each other.

An island that spans hosts is several processes of one JAX runtime
(jax.distributed): their devices form one mesh, and XLA passes arrays between
them, by gloo on CPUs and by NCCL on GPUs. Never between islands: the death of
one process is the death of all in a runtime.
"""

import os
import pathlib
import secrets
import socket
import sys
import traceback

import jax
from jax.experimental import multihost_utils
import numpy as np

from intellect_jax.elastic import rpc
from intellect_jax.errors import UserError

_TEXT = 1024  # bytes of what one process tells all others


class Team:
  """The island's processes, from `with` on; see `join`.

  Attributes:
    process: which one this is; 0 leads.
    processes: how many there are.
    host: on which the others reach this one.
  """

  def __init__(self, process: int = 0, processes: int = 1, host: str = ""):
    self.process = process
    self.processes = processes
    self.host = host or "127.0.0.1"

  @property
  def leads(self) -> bool:
    return self.process == 0

  def folder(self, workdir: pathlib.Path) -> pathlib.Path:
    """This process's own part of the island's workdir."""
    return workdir if self.leads else workdir / f"process-{self.process}"

  def name(self, island: str) -> str:
    """By which relays know this process."""
    return island if self.leads else f"{island}#{self.process}"

  def same(self, data: bytes = b"") -> bytes:
    """What process 0 passes, on every process. All of them call it."""
    if self.processes == 1:
      return data
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(length, np.uint8)
    if self.leads:
      padded[:] = np.frombuffer(data, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded).tobytes()

  def each(self, text: str) -> list[str]:
    """What each process passes, in order. All of them call it."""
    if self.processes == 1:
      return [text]
    padded = np.zeros(_TEXT, np.uint8)
    padded[: len(text.encode())] = np.frombuffer(text.encode(), np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row.tobytes().rstrip(b"\0").decode() for row in rows]

  def check_shared(self, folder: pathlib.Path) -> None:
    """Raises UserError unless all processes see the same folder."""
    if self.processes == 1:
      return
    token = self.same(secrets.token_hex(8).encode() if self.leads else b"")
    path = folder / f"seen-{token.decode()}"
    if self.leads:
      folder.mkdir(parents=True, exist_ok=True)
      path.touch()
    self.same()  # not before it is there
    seen = self.each("yes" if path.exists() else socket.gethostname())
    if self.leads:
      path.unlink()
    blind = [host for host in seen if host != "yes"]
    if blind:
      raise UserError(
        f"--workdir={folder} is another folder on {', '.join(blind)} than on"
        " this island's first host. All hosts of an island write one"
        " checkpoint together: name a folder on a disk that they share."
      )

  def __enter__(self) -> "Team":
    return self

  def __exit__(self, kind, error, trace) -> None:
    """After a failure this process ends at once, and so do the others.

    Threads of JAX and Orbax would wait for them, minutes long.
    """
    if error is None or self.processes == 1:
      return
    if isinstance(error, UserError):
      print(error, file=sys.stderr)
    else:
      traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if isinstance(error, UserError) else 1)


def join(processes: int, process: int | None, address: str | None) -> Team:
  """Meets the other processes of this island, if there are any.

  Call it before JAX is used.

  Args:
    processes: how many there are, one a host; 0: as many as Slurm has started.
    process: which one this is; None: as Slurm counts.
    address: host:port of process 0, which all of them reach.

  Raises:
    UserError: if something is not known, or they cannot meet.
  """
  if processes == 0:
    processes = _from_slurm("process_count", "SLURM_NTASKS")
  if processes == 1:
    return Team()
  if process is None:
    process = _from_slurm("process_id", "SLURM_PROCID")
  if address is None or not 0 <= process < processes:
    raise UserError(
      f"--process_count is {processes}, so --process_id must be from 0 to"
      f" {processes - 1} (it is {process}), and --island_coordinator=HOST:PORT"
      " must name the host of process 0 and a free port there."
    )
  rpc.split_address(address)
  try:
    # Without detection of clusters: where it finds one, such as Slurm, JAX
    # would give each process one device of its host.
    jax.distributed.initialize(
      address, processes, process, cluster_detection_method="deactivate"
    )
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"The {processes} processes of this island did not meet at {address}:"
      f" {error} Start all of them, with the same --island_coordinator."
    ) from error
  return Team(process, processes, rpc.own_host(address))


def _from_slurm(flag: str, variable: str) -> int:
  value = os.environ.get(variable, "")
  if not value.isdecimal():
    raise UserError(
      f"--{flag} is not given, and {variable} is not set: this is not a task of"
      f" Slurm. Name it by --{flag}=N."
    )
  return int(value)
