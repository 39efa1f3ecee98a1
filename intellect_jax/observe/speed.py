"""How fast an island trains, and how much of its devices that takes."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from intellect_jax.inner import flops
from intellect_jax.model.llama import LlamaConfig

_MEMORY = ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")


class Speed:
  """Figures of inner steps: step time, MFU, memory of the fullest device."""

  def __init__(
    self, run: ConfigDict, island: ConfigDict, devices: Sequence[Any]
  ):
    self._c = LlamaConfig.of(run.model, island.model)
    self._reference = run.inner.loss == "dpo"
    self._length = run.data.sequence_length
    self._tokens_a_step = run.inner.batch_size * self._length
    own = jax.process_index()
    self._devices = [d for d in devices if d.process_index == own]
    self._peak = sum(flops.peak_flops(d.device_kind) for d in devices)
    self._last: tuple[int, float] | None = None  # step and train_seconds

  def of(self, event: Mapping[str, Any]) -> dict[str, float]:
    """Of a "step" event, compared with the one before.

    step_seconds, without what the island was blocked; mfu, if the peak of the
    devices is known (inner/flops.py); bytes of device memory, if the backend
    counts them (CPUs do not).
    """
    last, now = self._last, (event["step"], event["train_seconds"])
    self._last = now
    figures: dict[str, float] = self._memory()
    if last is None or now[0] <= last[0]:
      return figures
    seconds = (now[1] - last[1]) / (now[0] - last[0])
    figures["step_seconds"] = seconds
    if seconds > 0 and not math.isnan(self._peak):
      figures["mfu"] = flops.utilization(
        self._c,
        self._length,
        self._tokens_a_step / seconds,
        self._peak,
        self._reference,
      )
    return figures

  def _memory(self) -> dict[str, float]:
    counts = [device.memory_stats() or {} for device in self._devices]
    return {
      f"device_{name}": max(count[name] for count in counts)
      for name in _MEMORY
      if all(name in count for count in counts)
    }
