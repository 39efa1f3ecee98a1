"""Four host devices for every test, set before any backend exists.

INTELLECT_JAX_TEST_PLATFORM=cuda takes GPUs instead: see `make gpu-smoke`.
"""

import os

import jax

PLATFORM = os.environ.get("INTELLECT_JAX_TEST_PLATFORM", "cpu")
jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 4)
