"""Step time, MFU and device memory from the events of inner steps."""

import types

import jax
import pytest

from intellect_jax import config as config_lib
from intellect_jax.observe.speed import Speed

MEMORY = dict(bytes_in_use=5, peak_bytes_in_use=7, bytes_limit=9, num_allocs=1)


def intellect_1(devices):
  config = config_lib.load(config_lib.base_path().parent / "intellect_1_10b.py")
  return Speed(config.run, config.island, devices)


def h100s(n, **memory):
  return [
    types.SimpleNamespace(
      process_index=0,
      device_kind="NVIDIA H100 80GB HBM3",
      memory_stats=lambda: memory,
    )
    for _ in range(n)
  ]


def test_intellect_1s_window_is_its_published_utilization():
  """100 steps in 38 minutes; time that it was blocked does not count."""
  speed = intellect_1(h100s(8))
  assert speed.of(dict(step=1, train_seconds=40.0)) == {}
  figures = speed.of(dict(step=101, train_seconds=40.0 + 38 * 60))
  assert figures["step_seconds"] == pytest.approx(22.8)
  assert figures["mfu"] == pytest.approx(0.433, rel=0.01)


def test_memory_is_that_of_the_fullest_device():
  devices = h100s(1, **MEMORY) + h100s(1, **MEMORY | {"bytes_in_use": 6})
  assert intellect_1(devices).of(dict(step=1, train_seconds=1.0)) == dict(
    device_bytes_in_use=6, device_peak_bytes_in_use=7, device_bytes_limit=9
  )


def test_on_a_cpu_there_is_only_time():
  speed = intellect_1(jax.devices())
  speed.of(dict(step=1, train_seconds=1.0))
  assert speed.of(dict(step=3, train_seconds=2.0)) == {"step_seconds": 0.5}
