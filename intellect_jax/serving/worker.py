"""The thread that an engine lives on, and how others have it work."""

from collections.abc import Callable
import contextlib
import queue
import threading

from absl import logging

from intellect_jax.inference.engine import Engine, Request

_Command = Callable[[], object]


class Worker:
  """Steps an engine while there is work, and sleeps while there is none.

  Attributes:
    engine: to be touched by this thread alone, except for `check`.
    alive: false when the engine has failed: then nothing is answered any more.
  """

  def __init__(self, engine: Engine, failed: Callable[[], object]):
    """Starts the thread.

    Args:
      engine: which nobody else steps.
      failed: called on this thread if the engine raises.
    """
    self.engine, self.alive = engine, True
    self._failed = failed
    self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
    self._thread = threading.Thread(
      target=self._work, name="engine", daemon=True
    )
    self._thread.start()

  def add(self, request: Request) -> None:
    self._commands.put(lambda: self.engine.add(request))

  def cancel(self, request: Request) -> None:
    self._commands.put(lambda: self.engine.cancel(request))

  def close(self) -> None:
    """Ends the thread after the step under way."""
    self._commands.put(None)
    self._thread.join()

  def _work(self) -> None:
    busy = False
    try:
      while True:
        if not busy:
          command = self._commands.get()
          if command is None:
            return
          command()
        with contextlib.suppress(queue.Empty):
          while True:
            command = self._commands.get_nowait()
            if command is None:
              return
            command()
        busy = self.engine.step()
    except Exception:
      # Out of memory, most likely: its cache is gone, so it cannot go on.
      logging.exception("The engine has failed.")
      self.alive = False
      self._failed()
    finally:
      self.engine.cancel_all()
