"""A trace of the steps that were asked for."""

import jax
import jax.numpy as jnp
import pytest

from intellect_jax.errors import UserError
from intellect_jax.observe.profile import Profile


def names_in(folder):
  """Names of all events of the trace in `folder`."""
  [trace] = folder.rglob("*.xplane.pb")
  data = jax.profiler.ProfileData.from_file(str(trace))
  return {e.name for p in data.planes for line in p.lines for e in line.events}


@pytest.mark.parametrize("steps, traced", [("1:3", [1, 2]), ("2:9", [2, 3])])
def test_a_trace_has_the_steps_asked_for(tmp_path, steps, traced):
  """Also if the run ends first."""
  state = jnp.zeros(3)
  with Profile(tmp_path / "profile", steps) as profile:
    for step in range(4):
      profile.before_step(state)
      with jax.profiler.TraceAnnotation(f"inner step {step}"):
        state = state + 1
  seen = names_in(tmp_path / "profile")
  assert [i for i in range(4) if f"inner step {i}" in seen] == traced


def test_without_steps_nothing_is_written(tmp_path):
  with Profile(tmp_path / "profile", "") as profile:
    profile.before_step(jnp.zeros(3))
  assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", ["10", "15:10", "a:b", ":5", "-1:5"])
def test_steps_that_cannot_be_read_are_refused(tmp_path, steps):
  with pytest.raises(UserError, match="--profile_steps is"):
    Profile(tmp_path, steps)
