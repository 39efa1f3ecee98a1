"""What all commands share."""

from absl import flags

from intellect_jax import replay


def test_help_lists_shared_flags_too():
  """It lists the key flags of a command's module."""
  shown = flags.FLAGS.get_key_flags_for_module(replay)
  assert {flag.name for flag in shown} == {"workdir", "to", "output"}
