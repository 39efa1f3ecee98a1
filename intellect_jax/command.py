"""What all commands share: flags, errors that read well, a config."""

from collections.abc import Callable
import ctypes
import functools
import os
import pathlib
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from intellect_jax import config as config_lib
from intellect_jax.errors import UserError

if TYPE_CHECKING:
  from intellect_jax.checkpoint import pretrained

PARENT = "INTELLECT_JAX_PARENT"  # environment: process to end with, if any

# A flag that is defined here is shown by --help of the command that asked.
flags.disclaim_key_flags()

_EXIT_USER_ERROR = 2
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


@functools.cache
def define_config() -> flags.FlagHolder:
  """The --config flag: a file, and --config.run.… or --config.island.…"""
  return config_flags.DEFINE_config_file(
    "config",
    str(config_lib.base_path()),
    "Config file; fields are set by --config.run.outer.inner_steps=20 and the"
    " like. All of them stand, explained, in configs/base.py.",
    lock_config=True,
  )


def define_workdir(what: str) -> flags.FlagHolder:
  return flags.DEFINE_string(
    "workdir",
    None,
    f"Folder for {what}; made if needed.",
    required=True,
    allow_override=True,  # several commands in one process, as in tests
  )


def define_model_folder() -> flags.FlagHolder:
  """The --workdir flag of commands that use a trained model."""
  return flags.DEFINE_string(
    "workdir",
    None,
    "Workdir of an island that has trained, or still trains; or the folder of a"
    " Hugging Face Llama, as export writes it.",
    required=True,
    allow_override=True,  # several commands in one process, as in tests
  )


@functools.cache
def define_model_use() -> tuple[flags.FlagHolder, flags.FlagHolder]:
  """The --dtype and --context flags of commands that use a trained model."""
  dtype = flags.DEFINE_enum(
    "compute_dtype",
    "",
    ["", "float32", "bfloat16"],
    "In which the model computes; empty: as it was trained.",
  )
  context = flags.DEFINE_integer(
    "context",
    0,
    "Most tokens that the model looks at; 0: as many as it was trained on.",
    lower_bound=0,
  )
  return dtype, context


@functools.cache
def define_sampling() -> tuple[flags.FlagHolder, ...]:
  """The flags --tokens, --temperature, --top_k, --top_p and --seed."""
  return (
    flags.DEFINE_integer("tokens", 100, "Most tokens to add.", lower_bound=1),
    flags.DEFINE_float(
      "temperature", 0.7, "Divides the logits; 0: the likeliest.", 0.0
    ),
    flags.DEFINE_integer("top_k", 40, "Likeliest tokens; 0: all.", 0),
    flags.DEFINE_float(
      "top_p",
      1.0,
      "The fewest likeliest tokens with so much probability; 1: all.",
      lower_bound=0.0,
      upper_bound=1.0,
    ),
    flags.DEFINE_integer("seed", 0, "Another seed, another text."),
  )


def define_output(what: str, required: bool = True) -> flags.FlagHolder:
  return flags.DEFINE_string(
    "output",
    None,
    what,
    required=required,
    allow_override=True,  # as that of the workdir
  )


@functools.cache
def define_dtype() -> flags.FlagHolder:
  """The --dtype flag of commands that write weights; --part as well."""
  return flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "float32 is exact."
  )


@functools.cache
def define_part() -> flags.FlagHolder:
  return flags.DEFINE_float("part", 5.0, "Gigabytes in a file, at most.", 0.0)


@functools.cache
def define_input() -> flags.FlagHolder:
  """The --input flag of commands that read texts; the next two as well."""
  return flags.DEFINE_multi_string(
    "input", None, "File, folder or URL; may be repeated.", required=True
  )


@functools.cache
def define_pattern() -> flags.FlagHolder:
  return flags.DEFINE_string(
    "pattern", "*", "Names of files to take, such as '*.py'."
  )


@functools.cache
def define_field() -> flags.FlagHolder:
  return flags.DEFINE_string(
    "field",
    "",
    "Field of JSON or column of Parquet that has the text; empty: 'text', and a"
    " record of an ArrayRecord is the text itself.",
  )


@functools.cache
def define_insecure() -> flags.FlagHolder:
  return flags.DEFINE_bool(
    "insecure", False, "Listen beyond this machine without TLS, at your risk."
  )


@functools.cache
def define_init_from() -> flags.FlagHolder:
  return flags.DEFINE_string(
    "init-from",
    None,
    "Folder of a Hugging Face Llama: the run begins with its weights, not with"
    " random ones. For the coordinator, and for the first island at least; for"
    " all islands if the run keeps them: DPO and adapters.",
  )


def weights(
  holder: flags.FlagHolder, config: ConfigDict
) -> "pretrained.Weights | None":
  """The weights that --init-from names, noted in the run half of `config`."""
  if holder.value is None:
    if config_lib.keeps_weights(config.run) and not config.run.init_from:
      raise UserError(
        "This run keeps the weights that it starts from, for DPO or beside"
        " adapters. Name their folder with --init-from, here as on every island."
      )
    return None
  # Here, because it brings JAX, and a relay is to start quickly.
  from intellect_jax.checkpoint.pretrained import Weights

  weights = Weights(path(holder))
  config.run.init_from = weights.digest
  return weights


def overridden() -> list[str]:
  """Config fields that were set on the command line: run.outer.momentum …"""
  return sorted(config_flags.get_override_values(flags.FLAGS["config"]))


def config_flags_given() -> list[str]:
  """The --config flags of this process, to start another with the same."""
  holder = flags.FLAGS["config"]
  overrides = config_flags.get_override_values(holder)
  return [
    f"--config={config_flags.get_config_filename(holder)}",
    *(f"--config.{field}={value}" for field, value in overrides.items()),
  ]


def path(holder: flags.FlagHolder) -> pathlib.Path:
  return pathlib.Path(holder.value).expanduser().absolute()


def run(main: Callable[..., None], words: bool = False) -> None:
  """Runs a command. A UserError becomes a paragraph and exit status 2.

  Args:
    main: called without arguments, or with the words that are no flags.
    words: whether there may be such words.
  """
  _end_with_parent()

  def checked(argv: list[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)
    if len(argv) > 1 and not words:
      _fail(f"{argv[1]!r} is no flag. --help lists them.")
    try:
      main(*[argv[1:]] if words else [])
    except UserError as error:
      _fail(str(error))
    except KeyboardInterrupt:
      _fail("Interrupted.", status=130)

  app.run(checked, flags_parser=_parse)


def _end_with_parent() -> None:
  """A part of a swarm is killed when the swarm is: none outlives it."""
  parent = os.environ.get(PARENT)
  if parent is not None:
    end_with(int(parent))


def end_with(parent: int) -> None:
  """Lets the kernel kill this process when the one that started it ends."""
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:  # it has ended meanwhile
    sys.exit(1)


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    _fail(f"{error} --help lists the flags, configs/base.py the fields.")
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    # ml_collections names the nearest known key.
    _fail(f"The config has no such field or value. {_plain(error)}")
  except (UserError, OSError) as error:
    _fail(
      f"{_plain(error)} Shipped configs are {', '.join(config_lib.shipped())}"
      f" in {config_lib.base_path().parent}."
    )


def _plain(error: Exception) -> str:
  text = str(error.args[0]) if error.args else str(error)
  return text.replace("\\n", " ").replace("\n", " ").strip("'\" ")


def _fail(message: str, status: int = _EXIT_USER_ERROR) -> NoReturn:
  print(f"{pathlib.Path(sys.argv[0]).name}: {message}", file=sys.stderr)
  sys.exit(status)


def island_of(holder: flags.FlagHolder) -> ConfigDict:
  """The island half of the flag, for who uses a model that has been trained.

  JAX is set up by it.

  Raises:
    UserError: if a field of the run half was set: the model has them.
  """
  fields = [field for field in overridden() if field.startswith("run.")]
  if fields:
    raise UserError(
      f"--config.{fields[0]} is a field of the run, and this model has been"
      " trained: only --config.island.… fields count here."
    )
  island = config_of(holder).island
  set_up_jax(island)
  return island


def set_up_jax(island: ConfigDict) -> None:
  """Takes the platform, the host devices and the cache that `island` says."""
  import jax  # here, because a relay is to start quickly

  if island.platform:
    jax.config.update("jax_platforms", island.platform)
  jax.config.update("jax_num_cpu_devices", island.cpu_devices)
  if island.compilation_cache:
    jax.config.update(
      "jax_compilation_cache_dir", os.path.expanduser(island.compilation_cache)
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def config_of(holder: flags.FlagHolder) -> ConfigDict:
  """The checked config of the flag."""
  config_lib.validate(holder.value)
  return holder.value
