"""A trace of some inner steps, for XProf, Perfetto or TensorBoard."""

import pathlib

import jax

from intellect_jax.errors import UserError


class Profile:
  """Traces the inner steps `first` to `last` of this process.

  To be told of every step before it starts; closes what is open when left.
  """

  def __init__(self, folder: pathlib.Path, steps: str):
    """Takes `steps` as "10:15": from the 10th until before the 15th.

    Args:
      folder: for the trace; made if needed.
      steps: counted from 0 in this process; "" for none.

    Raises:
      UserError: if `steps` cannot be read so.
    """
    self._folder = folder
    self._steps = _read(steps) if steps else range(0)
    self._step = 0
    self._tracing = False

  def before_step(self, state) -> None:
    """Starts or ends the trace if it is time to; `state` of the last step."""
    inside = self._step in self._steps
    self._step += 1
    if inside == self._tracing:
      return
    jax.block_until_ready(state)
    if inside:
      jax.profiler.start_trace(self._folder)
      self._tracing = True
    else:
      self._end()

  def _end(self) -> None:
    jax.profiler.stop_trace()
    self._tracing = False
    print(f"A profile of the steps lies in {self._folder}.", flush=True)

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *_) -> None:
    if self._tracing:
      self._end()


def _read(steps: str) -> range:
  first, _, last = steps.partition(":")
  if first.isdecimal() and last.isdecimal() and int(first) < int(last):
    return range(int(first), int(last))
  raise UserError(
    f"--profile_steps is {steps!r}, but must be two steps of this process like"
    " 10:15, the first one before the second."
  )
