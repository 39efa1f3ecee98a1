"""Serve a trained model to programs that speak OpenAI's API.

  python -m intellect_jax.serve --workdir=runs/demo/island-0

and then, with their client package or any other,

  client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
  client.completions.create(model="demo", prompt="The function returns")

/v1/completions and /v1/chat/completions, streamed or whole, and /v1/models.
Requests are written together, --slots at once. It takes the extra serve: pip
install 'intellect_jax[serve]'.
"""

import signal
import socket
from typing import Any

from absl import flags

from intellect_jax import command
from intellect_jax.elastic import rpc
from intellect_jax.errors import UserError, not_installed
from intellect_jax.inference.engine import Engine
from intellect_jax.inference.loading import Model, open_model

CONFIG = command.define_config()
WORKDIR = command.define_model_folder()
DTYPE, CONTEXT = command.define_model_use()
LISTEN = flags.DEFINE_string(
  "listen",
  "127.0.0.1:8000",
  "host:port; port 0 takes any free one",
  allow_override=True,  # of the coordinator's
)
INSECURE = command.define_insecure()
SLOTS = flags.DEFINE_integer(
  "slots", 8, "Texts written at once.", 1, allow_override=True
)
WAITING = flags.DEFINE_integer(
  "waiting", 256, "Texts that are written or wait; more are refused (429).", 1
)

_GRACE = 5  # seconds for requests under way when the server ends


def main() -> None:
  host, port = rpc.split_address(LISTEN.value)
  rpc.check_listen(LISTEN.value, rpc.Credentials(insecure=INSECURE.value))
  island = command.island_of(CONFIG)
  model = open_model(command.path(WORKDIR), island, DTYPE.value, CONTEXT.value)
  try:
    server = Server(model, host, port, SLOTS.value, WAITING.value)
  except ImportError as error:
    raise not_installed("serve", error.name, "serve") from None
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: server.stop())
  print(
    f"{model.name} is at http://{server.address}/v1, with a context of"
    f" {model.context} tokens; Ctrl-C ends.",
    flush=True,
  )
  server.run()
  if server.failed:
    raise UserError("The engine has failed: see above.")


class Server:
  """A model's HTTP server.

  Attributes:
    address: where it listens, host:port.
    failed: whether it ended because the engine did.
  """

  def __init__(
    self, model: Model, host: str, port: int, slots: int, waiting: int
  ):
    """Listens, and answers when it runs; the flags say what the numbers mean.

    Raises:
      UserError: if another program listens there.
    """
    import uvicorn  # pyright: ignore[reportMissingImports]

    from intellect_jax.serving.app import make_app
    from intellect_jax.serving.worker import Worker

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
      self._socket = socket.create_server((host, port), family=family)
    except OSError as error:
      raise UserError(
        f"Nothing can listen on --listen={rpc.join_address(host, port)}:"
        f" {error.strerror}. Choose another, or port 0."
      ) from None
    self.address = rpc.join_address(*self._socket.getsockname()[:2])
    self.failed = False
    self._worker = Worker(Engine(model, slots), self._fail)
    app = make_app(model, self._worker, waiting)
    self._server: Any = uvicorn.Server(
      uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE)
    )

  def run(self) -> None:
    """Answers until `stop`."""
    try:
      self._server.run(sockets=[self._socket])
    finally:
      self._worker.close()

  def stop(self) -> None:
    """Ends `run`; may be called from any thread."""
    self._server.should_exit = True

  def _fail(self) -> None:
    self.failed = True
    self.stop()


if __name__ == "__main__":
  command.run(main)
