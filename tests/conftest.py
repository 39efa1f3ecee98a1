"""Four host devices for every test, set before any backend exists.

INTELLECT_JAX_TEST_PLATFORM=cuda takes GPUs instead: see `make gpu-smoke`.
"""

import os

PLATFORM = os.environ.get("INTELLECT_JAX_TEST_PLATFORM", "cpu")
if PLATFORM == "cpu":
  # Half of the time would go into optimizing what runs once. Set for the
  # processes that a test starts, too: their bits are to be the same.
  os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture
def optimized():
  """For tests of what the compiler makes: it does all that it can."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
