"""The one kind of error that a user is meant to read."""


class UserError(Exception):
  """A mistake that its reader can mend: shown as a paragraph, no traceback.

  The message names the setting, the value seen, what was expected and what to
  do. The commands print it to stderr and exit with status 2.
  """


def not_installed(what: str, package: object, extra: str) -> UserError:
  """The error of something that takes a package which is in an extra."""
  return UserError(
    f"{what} takes the package {package}: pip install"
    f" 'intellect_jax[{extra}]', from a checkout '.[{extra}]'."
  )
