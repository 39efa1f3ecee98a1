"""The plan of memory against the compiler's own, where it compiles."""

import jax
import pytest

from intellect_jax import config as config_lib
from intellect_jax.inner.memory import activation_bytes, device_memory
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import llama, sharding


def small(layers, **island_model):
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  config.run.model.update(
    layers=layers, width=128, heads=4, kv_heads=2, head_dim=32, ffn=384
  )
  config.run.data.update(sequence_length=256)
  config.island.model.update(scan_layers=True, **island_model)
  return config.run, config.island


def planned_and_compiled(run, island, devices):
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  step = TrainStep(run, island, mesh)
  compiled = step.compile()
  plan = device_memory(run, island, step, mesh)
  # Of the arguments, all but the batch and the position are the state.
  state = plan.parameters + plan.moments
  assert 0 <= compiled["arguments"] - state < 0.05 * state + 50_000
  return plan.total - state, compiled["temporaries"]


@pytest.mark.usefixtures("optimized")
def test_the_plan_is_what_the_compiler_needs():
  """In float32: XLA computes bfloat16 in float32 on CPUs."""
  few = planned_and_compiled(*small(2, remat="dots"), devices=4)
  many = planned_and_compiled(*small(6, remat="dots"), devices=4)
  full = planned_and_compiled(*small(2, remat="full"), devices=1)
  layers = [b - a for a, b in zip(few, many, strict=True)]
  assert layers[0] == pytest.approx(layers[1], rel=0.05)
  for planned, compiled in (few, many, full):
    # The plan adds up what need not live at the same time.
    assert 0.9 < planned / compiled < 1.4


def test_remat_keeps_less():
  full, dots, none = (
    activation_bytes(llama.LlamaConfig.of(run.model, island.model), 256, 0)
    for run, island in (small(4, remat=r) for r in ("full", "dots", "none"))
  )
  assert full < 0.5 * dots < 0.5 * none


def test_full_remat_keeps_the_residual_stream():
  """A layer keeps its input: length x width x 2 bytes."""
  kept = []
  for layers in (3, 4):
    run, island = small(layers, remat="full", attention="cudnn")
    run.model.dtype = "bfloat16"
    c = llama.LlamaConfig.of(run.model, island.model)
    kept.append(activation_bytes(c, 256, 0))
  assert kept[1] - kept[0] == 256 * 128 * 2


def test_ten_billion_parameters_on_eight_devices():
  """Four bytes each, for master copies, and for each of Adam's moments."""
  config = config_lib.load(
    config_lib.base_path().with_name("intellect_1_10b.py")
  )
  run, island = config.run, config.island
  mesh = sharding.abstract_mesh(-1, 1, 8)
  plan = device_memory(run, island, TrainStep(run, island, mesh), mesh)
  assert plan.parameters == 10_211_381_248 * 4 // 8
  assert plan.moments == pytest.approx(2 * plan.parameters, abs=100)
  assert 42 * 8192 * 4096 * 2 < plan.activations < 4e9
  assert plan.total < 80e9
