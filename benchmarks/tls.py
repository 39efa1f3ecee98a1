"""What encryption costs: the same bytes through gRPC with TLS and without.

  python -m benchmarks.tls

A blob's frames are read from another process on this machine, as in an exchange,
but neither hashed nor looked at. TLS is gRPC's own, with a certificate that is
made for this. `exchange.py` shows its cost beside what an exchange takes.
"""

import argparse
import concurrent.futures
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import grpc

from benchmarks.loopback import Child

_FRAME = 1 << 20  # bytes
_FRAMES = 256  # of a transfer
_TIMES = 5
_METHOD = "/benchmarks.Frames/Read"
_NAME = "localhost"


def seconds_a_gigabyte() -> dict[str, float]:
  """By "plain" and "tls", median; empty without openssl."""
  if not shutil.which("openssl"):
    return {}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    _make_certificate(folder)
    server = Child("benchmarks.tls", [f"--serve={folder}"], folder / "log.txt")
    try:
      ports = server.wait("ready")
      roots = (folder / "certificate.pem").read_bytes()
      address = f"{_NAME}:{{}}".format
      channels = dict(
        plain=grpc.insecure_channel(address(ports["plain"])),
        tls=grpc.secure_channel(
          address(ports["tls"]), grpc.ssl_channel_credentials(roots)
        ),
      )
      # In turns, so that whatever else this machine does meets both.
      taken = [
        {kind: _read(channel) for kind, channel in channels.items()}
        for _ in range(_TIMES + 1)
      ][1:]
      for channel in channels.values():
        channel.close()
    finally:
      server.kill()
  gigabytes = _FRAME * _FRAMES / 1e9
  return {
    kind: statistics.median(turn[kind] for turn in taken) / gigabytes
    for kind in channels
  }


def _read(channel: grpc.Channel) -> float:
  began, size = time.perf_counter(), 0
  for frame in channel.unary_stream(_METHOD)(b""):
    size += len(frame)
  assert size == _FRAME * _FRAMES
  return time.perf_counter() - began


def _make_certificate(folder: pathlib.Path) -> None:
  command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256"
  command += f" -nodes -days 1 -subj /CN={_NAME}"
  command += f" -addext subjectAltName=DNS:{_NAME}"
  files = f" -keyout {folder}/key.pem -out {folder}/certificate.pem"
  subprocess.run((command + files).split(), check=True, capture_output=True)


def _serve(folder: pathlib.Path) -> None:
  """Until standard input ends."""
  frame = bytes(_FRAME)
  handler = grpc.unary_stream_rpc_method_handler(
    lambda request, context: (frame for _ in range(_FRAMES))
  )
  service, method = _METHOD.strip("/").split("/")
  server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
  server.add_generic_rpc_handlers(
    (grpc.method_handlers_generic_handler(service, {method: handler}),)
  )
  key, certificate = (
    (folder / f"{name}.pem").read_bytes() for name in ("key", "certificate")
  )
  secure = grpc.ssl_server_credentials([(key, certificate)])
  plain = server.add_insecure_port("127.0.0.1:0")
  tls = server.add_secure_port("127.0.0.1:0", secure)
  server.start()
  print(json.dumps(dict(kind="ready", plain=plain, tls=tls)), flush=True)
  sys.stdin.read()


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--serve", type=pathlib.Path, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.serve:
    _serve(options.serve)
    return
  for kind, seconds in seconds_a_gigabyte().items():
    print(f"{kind:6} {seconds:.3f} s/GB")


if __name__ == "__main__":
  main()
