"""The configuration: where defaults come from, what is valid, its digest.

The fields themselves stand in `configs/base.py`, with units and sources.
"""

import hashlib
import importlib.util
import json
import math
import pathlib
import types

import ml_collections

from intellect_jax.errors import UserError

ConfigDict = ml_collections.ConfigDict


def base_path() -> pathlib.Path:
  """Path of `configs/base.py`, in a checkout or in an installed wheel."""
  package = pathlib.Path(__file__).resolve().parent
  for folder in (package / "configs", package.parent / "configs"):
    if (folder / "base.py").is_file():
      return folder / "base.py"
  raise UserError(f"configs/base.py is missing beside {package}; reinstall.")


def base() -> ConfigDict:
  """Returns the default configuration, locked: unknown keys are errors."""
  return load(base_path())


def load(path: str | pathlib.Path) -> ConfigDict:
  """Returns what `get_config()` of the file at `path` returns, locked."""
  config = _module(pathlib.Path(path)).get_config()
  config.lock()
  return config


def _module(path: pathlib.Path) -> types.ModuleType:
  if not path.is_file():
    raise UserError(
      f"There is no config file at {path}. Shipped ones are in"
      f" {base_path().parent}: {', '.join(shipped())}."
    )
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def shipped() -> list[str]:
  """Names of the config files that ship with the project."""
  return sorted(path.name for path in base_path().parent.glob("*.py"))


def digest(run: ConfigDict) -> str:
  """Hex SHA-256 of the run half: two islands of one run have the same."""
  return hashlib.sha256(to_json(run).encode()).hexdigest()


def to_json(run: ConfigDict) -> str:
  """The run half as canonical JSON: sorted keys, no spaces."""
  return json.dumps(run.to_dict(), sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> ConfigDict:
  """The run half from `to_json`; see `from_dict`."""
  return from_dict(json.loads(text))


def from_dict(fields: dict) -> ConfigDict:
  """The run half with these fields, checked against those of this version.

  Raises:
    UserError: if the fields are not those that this version knows.
  """
  run = base().run
  _overwrite(run, fields, "run")
  validate_run(run)
  return run


def _overwrite(config: ConfigDict, values: dict, path: str) -> None:
  """Sets every field of `config` from nested `values`; all must be there."""
  if set(values) != set(config):
    differing = sorted(set(values) ^ set(config))
    raise UserError(
      f"This run's config differs from this version's in the fields of {path}:"
      f" {', '.join(differing)}. Use the version of intellect_jax that the run"
      " was started with, on the coordinator and on every island."
    )
  for key, value in values.items():
    if isinstance(config[key], ConfigDict):
      _overwrite(config[key], value, f"{path}.{key}")
    else:
      config[key] = _tuples(value)


def _tuples(value):
  """Lists as the tuples that JSON made them of, at any depth."""
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  return value


def validate(config: ConfigDict) -> None:
  """Checks both halves; see `validate_run` and `validate_island`."""
  validate_run(config.run)
  validate_island(config.run, config.island)


def validate_run(run: ConfigDict) -> None:
  """Raises UserError, naming field and remedy, for an impossible run."""
  model, data, inner, outer = run.model, run.data, run.inner, run.outer
  for section, names in (
    (model, "layers width heads kv_heads head_dim ffn vocab_size"),
    (data, "sequence_length"),
    (inner, "batch_size"),
    (outer, "inner_steps"),
    (run.elastic, "start_islands min_islands"),
    (run.evaluation, "every"),
  ):
    for name in names.split():
      _require(section[name] >= 1, name, section[name], "at least 1")
  _require(run.tokens >= 1, "run.tokens", run.tokens, "at least 1")
  _require(
    model.heads % model.kv_heads == 0,
    "run.model.kv_heads",
    model.kv_heads,
    f"a divisor of run.model.heads={model.heads}",
  )
  _require(
    model.head_dim % 2 == 0,
    "run.model.head_dim",
    model.head_dim,
    "an even number, because RoPE rotates pairs",
  )
  _require(
    model.dtype in ("float32", "bfloat16"),
    "run.model.dtype",
    model.dtype,
    "float32 or bfloat16",
  )
  _require(
    inner.optimizer in ("adamw", "muon"),
    "run.inner.optimizer",
    inner.optimizer,
    "adamw or muon",
  )
  _require(
    inner.decay in ("sqrt", "linear", "cosine"),
    "run.inner.decay",
    inner.decay,
    "sqrt, linear or cosine",
  )
  _require(
    0 <= inner.decay_to <= 1,
    "run.inner.decay_to",
    inner.decay_to,
    "from 0 to 1, the part of the rate that is left at the end",
  )
  _require(
    inner.loss in ("cross_entropy", "dpo"),
    "run.inner.loss",
    inner.loss,
    "cross_entropy or dpo",
  )
  _require(inner.dpo_beta > 0, "run.inner.dpo_beta", inner.dpo_beta, "above 0")
  _require(
    inner.dpo_nll_weight >= 0,
    "run.inner.dpo_nll_weight",
    inner.dpo_nll_weight,
    "not negative",
  )
  _require(
    outer.codec in ("int8", "int4", "e3m0", "sparse2", "float32"),
    "run.outer.codec",
    outer.codec,
    "int8, int4, e3m0, sparse2 or float32",
  )
  _validate_outer_optimizer(outer)
  _require(
    outer.max_ahead_steps >= 0 and outer.max_carry >= 0,
    "run.outer.max_ahead_steps and max_carry",
    (outer.max_ahead_steps, outer.max_carry),
    "not negative",
  )
  _require(
    0 <= outer.overlap_steps < outer.inner_steps,
    "run.outer.overlap_steps",
    outer.overlap_steps,
    f"not negative, and below run.outer.inner_steps={outer.inner_steps}",
  )
  most = min(outer.inner_steps, model.layers)
  _require(
    1 <= outer.fragments <= most,
    "run.outer.fragments",
    outer.fragments,
    f"from 1 to {most}: each has a layer, and a step of run.outer.inner_steps",
  )
  _require(
    0 <= outer.merge_alpha < 1,
    "run.outer.merge_alpha",
    outer.merge_alpha,
    "at least 0 and below 1, where x would never hear of theta",
  )
  _require(
    not outer.eager
    or max(outer.overlap_steps, outer.max_ahead_steps) > 0 == outer.merge_alpha,
    "run.outer.eager",
    outer.eager,
    "False without steps ahead (run.outer.overlap_steps or max_ahead_steps), and"
    " with a run.outer.merge_alpha, which is another rule for them",
  )
  _require(
    outer.clip_ratio == 0 or outer.clip_ratio >= 1,
    "run.outer.clip_ratio",
    outer.clip_ratio,
    "0, for none, or at least 1",
  )
  _require(
    min(
      run.elastic.lease_seconds,
      run.elastic.fetch_patience,
      run.elastic.recheck_patience,
    )
    > 0,
    "run.elastic.lease_seconds, fetch_patience and recheck_patience",
    (
      run.elastic.lease_seconds,
      run.elastic.fetch_patience,
      run.elastic.recheck_patience,
    ),
    "above 0",
  )
  _require(
    run.elastic.deadline_ratio >= 1.1,
    "run.elastic.deadline_ratio",
    run.elastic.deadline_ratio,
    "at least 1.1, or ordinary jitter would leave islands out",
  )
  _require(
    run.elastic.share_by in ("capacity", "equal"),
    "run.elastic.share_by",
    run.elastic.share_by,
    "capacity or equal",
  )
  _require(
    0 <= run.elastic.share_gain < 1,
    "run.elastic.share_gain",
    run.elastic.share_gain,
    "at least 0 and below 1",
  )
  _validate_data(data)


def _validate_outer_optimizer(outer: ConfigDict) -> None:
  rate = outer.learning_rate
  _require(
    rate == "auto" or (type(rate) in (int, float) and 0 < rate <= 2),
    "run.outer.learning_rate",
    rate,
    "'auto', or a number above 0 and at most 2; good ones lie between 0.4 and"
    " 0.8",
  )
  _require(
    0 <= outer.momentum < 1,
    "run.outer.momentum",
    outer.momentum,
    "at least 0 and below 1",
  )
  for name in ("momentum_warmup_tokens", "decay_tokens"):
    _require(outer[name] >= 0, f"run.outer.{name}", outer[name], "not negative")
  _require(
    0 < outer.decay_to <= 1,
    "run.outer.decay_to",
    outer.decay_to,
    "above 0 and at most 1, the part of the rate that is left at the end",
  )
  _require(
    outer.merge in ("mean", "rda"),
    "run.outer.merge",
    outer.merge,
    "mean or rda",
  )
  if outer.codec == "sparse2":
    _validate_sparse(outer)


def _validate_sparse(outer: ConfigDict) -> None:
  """Error feedback takes the place of momentum: SparseLoCo, 2508.15706."""
  wrong = [
    (name, wanted)
    for name, values in (
      ("learning_rate", (1, "auto")),
      ("momentum", (0,)),
      ("merge", ("mean",)),
    )
    if outer[name] not in values
    for wanted in values[:1]
  ]
  if wrong:
    seen = " and ".join(f"{name} {outer[name]}" for name, _ in wrong)
    flags = " ".join(f"--config.run.outer.{n}={w}" for n, w in wrong)
    raise UserError(
      f"run.outer.codec is sparse2, but run.outer has {seen}. The error feedback"
      " of sparse2 takes the place of an outer optimizer: its mean is applied as"
      f" it is. Change it in the config file or with {flags}"
    )
  _require(
    outer.merge_alpha == 0,
    "run.outer.merge_alpha",
    outer.merge_alpha,
    "0 with run.outer.codec=sparse2, whose error feedback has what was not sent:"
    " in x it would count twice",
  )
  _require(
    outer.fragments == 1,
    "run.outer.fragments",
    outer.fragments,
    "1 with run.outer.codec=sparse2",
  )
  _require(
    not outer.eager,
    "run.outer.eager",
    outer.eager,
    "False with run.outer.codec=sparse2, whose records have little of a delta",
  )
  _require(
    0 <= outer.feedback <= 1,
    "run.outer.feedback",
    outer.feedback,
    "from 0 to 1",
  )


def _validate_data(data: ConfigDict) -> None:
  _require(
    0 < data.held_out < 1,
    "run.data.held_out",
    data.held_out,
    "a fraction between 0 and 1",
  )
  _require(
    0 <= data.seed < 2**32, "run.data.seed", data.seed, "from 0 to 2^32 - 1"
  )
  sources = data.sources
  _require(
    0 < len(sources) == len(set(sources)) and all(sources),
    "run.data.sources",
    sources,
    "one name or more, each once, as in ('docs', 'code')",
  )
  _require(
    len(data.stages) > 0
    and all(len(stage) == 2 for stage in data.stages)
    and all(len(weights) == len(sources) for _, weights in data.stages),
    "run.data.stages",
    data.stages,
    "a tuple of (tokens, weights) with as many weights as run.data.sources has"
    f" names, {len(sources)}",
  )
  starts = [start for start, _ in data.stages]
  _require(
    starts[0] == 0 and starts == sorted(set(starts)),
    "run.data.stages",
    data.stages,
    "stages that begin at increasing tokens, the first at 0",
  )
  for _, weights in data.stages:
    _require(
      min(weights) >= 0 and abs(math.fsum(weights) - 1) < 1e-6,
      "run.data.stages",
      data.stages,
      f"weights from 0 to 1 with the sum 1; {tuple(weights)} have the sum"
      f" {math.fsum(weights):g}",
    )


def validate_island(run: ConfigDict, island: ConfigDict) -> None:
  """Raises UserError if this island cannot take part in `run`."""
  microbatch, batch = island.inner.microbatch, run.inner.batch_size
  _require(
    microbatch >= 0 and (microbatch == 0 or batch % microbatch == 0),
    "island.inner.microbatch",
    microbatch,
    f"0 or a divisor of run.inner.batch_size={batch}",
  )
  for name, value in (
    ("run.inner.joiner_warmup_steps", run.inner.joiner_warmup_steps),
    ("island.inner.window_steps", island.inner.window_steps),
    ("island.log_gb", island.log_gb),
    ("island.disk_gb", island.disk_gb),
  ):
    _require(value >= 0, name, value, "not negative")
  window, overlap = island.inner.window_steps, run.outer.overlap_steps
  _require(
    window == 0 or window > overlap,
    "island.inner.window_steps",
    window,
    f"0, for run.outer.inner_steps, or above run.outer.overlap_steps={overlap}",
  )
  chunk, length = island.inner.loss_chunk, run.data.sequence_length
  _require(
    chunk >= 0 and (chunk == 0 or length % chunk == 0),
    "island.inner.loss_chunk",
    chunk,
    f"0 or a divisor of run.data.sequence_length={length}",
  )
  _require(
    island.upload_mbit >= 0 and island.download_mbit >= 0,
    "island.upload_mbit and download_mbit",
    (island.upload_mbit, island.download_mbit),
    "not negative; 0 is no cap",
  )
  _require(
    island.data.workers >= 0,
    "island.data.workers",
    island.data.workers,
    "not negative",
  )
  _require(
    island.model.remat in ("none", "dots", "full"),
    "island.model.remat",
    island.model.remat,
    "none, dots or full",
  )
  _require(
    island.model.attention in ("xla", "cudnn"),
    "island.model.attention",
    island.model.attention,
    "xla or cudnn",
  )
  _require(
    island.encode_on_device in ("auto", "yes", "no"),
    "island.encode_on_device",
    island.encode_on_device,
    "auto, yes or no",
  )


def keeps_weights(run: ConfigDict) -> bool:
  """Whether every island needs the weights that the run starts from."""
  return run.inner.loss == "dpo" or run.model.lora_rank > 0


def loss_unit(run: ConfigDict) -> str:
  """What losses of a run are a mean over: a "token", or a "pair" of DPO."""
  return "pair" if run.inner.loss == "dpo" else "token"


def _require(holds: bool, name: str, value: object, expected: str) -> None:
  if not holds:
    raise UserError(
      f"{name} is {value}, but must be {expected}. Change it in the config"
      f" file or with --config.{name}=… on the command line."
    )
