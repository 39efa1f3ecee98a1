"""A restarted island finds its step compiled."""

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from intellect_jax import config
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import sharding


@pytest.fixture
def cache(tmp_path):
  """A folder that JAX keeps compiled programs in, as train.py sets it up."""
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  compilation_cache.reset_cache()
  yield tmp_path
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  compilation_cache.reset_cache()


def test_the_step_is_compiled_once_for_all_starts(cache):
  heard = []
  listen = lambda event, **_: heard.append(event)  # noqa: E731
  jax.monitoring.register_event_listener(listen)
  try:
    for found in (0, 1):
      compile_step()
      assert heard.count("/jax/compilation_cache/cache_hits") == found
  finally:
    jax.monitoring.unregister_event_listener(listen)
  assert any(cache.iterdir())


def compile_step():
  tiny = config.load(config.base_path().parent / "tiny.py")
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  TrainStep(tiny.run, tiny.island, mesh).compile()
