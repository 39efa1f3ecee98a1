"""What a run will take, as tables: memory, time, traffic.

Each row says how its figure is known: counted, traced, by a formula, measured.
"""

import time

from jax.sharding import Mesh
from ml_collections import ConfigDict
import rich.table

from intellect_jax import config as config_lib
from intellect_jax.errors import UserError
from intellect_jax.inner import flops
from intellect_jax.inner.memory import device_memory
from intellect_jax.inner.optimizer import learning_rate as inner_learning_rate
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import llama, sharding
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer import traffic
from intellect_jax.outer.codec import make_codec
from intellect_jax.outer.layout import Layout
from intellect_jax.outer.overlap import blends, most_ahead
from intellect_jax.outer.rates import learning_rate
from intellect_jax.outer.schedule import payload_reduction

_GB = 1e9
# INTELLECT-1, arXiv 2412.01152, table 2: 100 steps in 38 minutes; rounds in
# seconds, compute utilization and MFU in percent.
_I1_WINDOW, _I1_MFU = 38 * 60, 43.3
_I1_ROUNDS = {
  "USA": (103, 95.7, 41.4),
  "USA and Europe": (382, 85.6, 37.1),
  "the world": (469, 83.0, 36.0),
}
_I1_BYTES = traffic.coded_bytes_sent(14, 10_211_381_248)  # one byte a value


class Forecast:
  """The figures of one config on one kind of island.

  Attributes:
    memory: of one device, bytes.
    step_seconds: of one inner step.
    sent: coded bytes that an island sends in a round.
  """

  def __init__(
    self,
    config: ConfigDict,
    devices: int,
    device: str,
    mfu: float,
    islands: int,
  ):
    """Traces the step.

    Raises:
      UserError: if the device is unknown, or the model, the batch or the
        microbatch do not divide among the devices.
    """
    self.run, self.island = config.run, config.island
    config_lib.validate(config)
    self.devices, self.device, self.islands = devices, device, islands
    self.peak = devices * flops.peak_flops(device)
    if not self.peak > 0:
      raise UserError(
        f"--device={device} is not one of {', '.join(flops.PEAK)}: its peak"
        " FLOP/s are not known. Take the nearest, and scale --mfu."
      )
    if not 0 < mfu <= 1:
      raise UserError(f"--mfu={mfu} must be above 0 and at most 1.")
    self.mfu = mfu
    mesh = sharding.abstract_mesh(
      self.island.mesh.fsdp, self.island.mesh.tensor, devices
    )
    self.mesh = mesh
    self.c = llama.LlamaConfig.of(self.run.model, self.island.model)
    step = TrainStep(self.run, self.island, mesh)
    self.memory = device_memory(self.run, self.island, step, mesh)
    self.lowered_seconds = self._lower(mesh)

    data, inner = self.run.data, self.run.inner
    self.step_tokens = inner.batch_size * data.sequence_length
    self.token_flops = flops.flops_per_token(self.c, data.sequence_length)
    self.step_seconds = self.step_tokens * self.token_flops / (mfu * self.peak)
    abstract = step.abstract_state.params
    codec = make_codec(self.run.outer.codec)
    names = tensor_names(abstract)
    self.layout = Layout.of(abstract, names, codec.block)
    self.coded = self.layout.blocks * codec.block_bytes
    self.sparse = codec.sparse
    self.sent = traffic.coded_bytes_sent(
      islands, self.coded, shares=not codec.sparse
    )

  @property
  def window_seconds(self) -> float:
    return self.run.outer.inner_steps * self.step_seconds

  def _lower(self, mesh: Mesh) -> float:
    """Lowers the step for CUDA; returns the seconds that it took.

    With plain attention: cuDNN's needs the library to be there.
    """
    island = self.island.copy_and_resolve_references()
    island.model.attention = "xla"
    began = time.monotonic()
    traced = TrainStep(self.run, island, mesh).trace()
    traced.lower(lowering_platforms=("cuda",))
    return time.monotonic() - began

  def round_seconds(self, gigabits: float) -> float:
    wire = traffic.wire_bytes(self.sent)
    host = traffic.host_seconds(self.layout.size, self.island.threads)
    return traffic.transfer_seconds(wire, gigabits * 1e9) + host

  def model_table(self) -> rich.table.Table:
    table = _table(
      f"{self.run.name}: model and step", "", "", "how it is known"
    )
    params = llama.parameter_count(self.c)
    c = self.c
    mesh = dict(self.mesh.shape)
    tokens = self.step_tokens / self.step_seconds
    days = self.run.tokens / (self.islands * tokens) / 86400
    for row in (
      ("parameters", f"{params:,}", "counted"),
      ("mesh", f"{mesh['fsdp']} fsdp x {mesh['tensor']} tensor", "config"),
      (
        "the step",
        f"lowered for CUDA in {self.lowered_seconds:.1f} s",
        "traced on abstract devices, xla attention",
      ),
      (
        "FLOPs a token",
        f"{self.token_flops:.4g}",
        f"formula: 6 N + 12 * {c.layers} * {c.heads * c.head_dim} * L",
      ),
      ("tokens a step", f"{self.step_tokens:,}", "config"),
      (
        "a step",
        f"{self.step_seconds:.3g} s",
        f"formula: {self.mfu:.1%} of {self.peak / 1e12:.0f} TFLOP/s",
      ),
      ("tokens/s, an island", f"{tokens:,.0f}", "from that"),
      (
        f"a window of {self.run.outer.inner_steps} steps",
        _duration(self.window_seconds),
        "from that",
      ),
      (
        "outer learning rate",
        f"{learning_rate(self.run.outer, self.islands):.2g}",
        f"run.outer.learning_rate={self.run.outer.learning_rate}",
      ),
      (
        f"all {self.run.tokens:,} tokens",
        f"{days:.3g} days",
        f"{self.islands} islands that never wait",
      ),
    ):
      table.add_row(*row)
    return table

  def memory_table(self) -> rich.table.Table:
    memory, inner = self.memory, self.island.inner
    batch = inner.microbatch or self.run.inner.batch_size
    sequences = batch // self.mesh.shape["fsdp"]
    chunk = inner.loss_chunk or self.run.data.sequence_length
    on_device = self.island.encode_on_device != "no" and not self.sparse
    theta = memory.parameters if on_device else 0
    outer = self.run.outer
    keeps = most_ahead(outer) > 0 and not blends(outer)
    kept = memory.parameters * keeps * (2 if outer.eager else 1)
    table = _table("one device", "", "GB", "how it is known")
    for name, size, source in (
      ("parameters", memory.parameters, "exact: shapes and shardings"),
      ("moments", memory.moments, "exact: shapes and shardings"),
      ("gradients", memory.gradients, "formula: 4 bytes, and 4 for their sum"),
      (
        "activations",
        memory.activations,
        f"traced: {sequences} sequences, remat {self.c.remat},"
        f" {self.c.attention} attention",
      ),
      ("a layer again", memory.layer, "traced: its backward pass"),
      ("logits", memory.logits, f"formula: {chunk} positions a sequence"),
      ("a whole weight", memory.gathered, "formula: the largest, float32"),
      ("theta", theta, "as the parameters: deltas are encoded here"),
      ("x at a proposal", kept, "where steps ahead began"),
      (
        "in all",
        memory.total + theta + kept,
        "the sum; on CPUs XLA takes 0.7 to 1.1 of it",
      ),
    ):
      table.add_row(name, f"{size / _GB:.3g}", source)
    return table

  def host_table(self) -> rich.table.Table:
    outer = 8 * self.layout.size
    table = _table("the island's host", "", "GB", "what it is")
    device_state = self.devices * (self.memory.parameters + self.memory.moments)
    feedback, mean, record = 0.0, self.coded, "the coded mean"
    if self.sparse:
      feedback = outer / 2
      mean, record = self.islands * self.coded, "the codes of all islands"
    saved = outer + feedback + device_state
    for name, size, what in (
      ("outer state", outer, "theta and b, float32"),
      ("error feedback", 2 * feedback, "float32, and what it becomes: sparse"),
      ("a round", self.coded + mean, "the codes of a delta, and the mean"),
      ("served to a newcomer", outer, "a copy of theta and b"),
      ("a checkpoint, on disk", saved, "outer and inner state"),
      ("a record, on disk", mean, record),
    ):
      table.add_row(name, f"{size / _GB:.3g}", what)
    return table

  def round_table(self, links: list[float]) -> rich.table.Table:
    outer = self.run.outer
    ahead = most_ahead(outer) or outer.inner_steps
    values, threads = self.layout.size, self.island.threads
    reduction = payload_reduction(
      self.islands, values, outer.inner_steps, self.sent
    )
    table = _table(
      f"a round of {self.islands} islands: each sends {self.sent / _GB:.3g} GB"
      f" of codes, {traffic.wire_bytes(self.sent) / _GB:.3g} GB on the wire;"
      f" {reduction:.0f} times less than data parallel",
      *("Gb/s", "transfer", "round", "utilization"),
      f"{ahead} steps ahead",
    )
    host = traffic.host_seconds(values, threads)
    table.caption = (
      f"Formulas. A round is the transfer and {host:.3g} s of work on"
      f" {threads} threads; latencies, and waiting for slower islands, are left"
      f" out. run.outer has overlap_steps={outer.overlap_steps} and"
      f" max_ahead_steps={outer.max_ahead_steps}."
    )
    for link in links:
      seconds = self.round_seconds(link)
      wait, overlap = (
        traffic.compute_utilization(
          self.window_seconds, seconds, steps * self.step_seconds
        )
        for steps in (0, ahead)
      )
      table.add_row(
        f"{link:g}",
        _duration(seconds - host),
        _duration(seconds),
        f"{wait:.1%}",
        f"{overlap:.1%}",
      )
    return table


def schedule_table(run: ConfigDict) -> rich.table.Table:
  """What changes on the way, by tokens: learning rate and mixture."""
  inner, end = run.inner, run.tokens
  starts = [start for start, _ in run.data.stages]
  told: dict[int, list[str]] = {tokens: [] for tokens in (0, *starts, end)}
  for start in starts[1:]:
    told[start].append("another mixture" if start < end else "never reached")
  if inner.warmup_tokens:
    told.setdefault(inner.warmup_tokens, []).append("the rate has warmed up")
  if inner.decay_tokens:
    begin = max(0, end - inner.decay_tokens)
    told.setdefault(begin, []).append(f"it falls: {inner.decay}")
  told[end].append("the end")
  table = _table("schedule, by tokens of all islands", "", "tokens", "of all",
                 "learning rate", "how it is mixed")  # fmt: skip
  for tokens, what in sorted(told.items()):
    _, weights = max(s for s in run.data.stages if s[0] <= tokens)
    mixture = [
      f"{name} {100 * weight:.3g} %"
      for name, weight in zip(run.data.sources, weights, strict=True)
      if weight
    ]
    rate = inner_learning_rate(inner, end, tokens)
    table.add_row(
      "; ".join(what),
      f"{tokens:,}",
      f"{tokens / end:.1%}",
      f"{float(rate):.3g}",
      ", ".join(mixture),
    )
  return table


def intellect_1_table() -> rich.table.Table:
  """The formulas beside what INTELLECT-1 measured."""
  table = _table(
    "check: INTELLECT-1's measured rounds, 38 minutes of training between",
    *("islands in", "round", "utilization", "formula", "MFU", "formula"),
    *("Gb/s that implies", "100 steps ahead"),
  )
  for place, (seconds, utilization, mfu) in _I1_ROUNDS.items():
    formula = traffic.compute_utilization(_I1_WINDOW, seconds)
    ahead = traffic.compute_utilization(_I1_WINDOW, seconds, _I1_WINDOW)
    table.add_row(
      place,
      f"{seconds} s",
      f"{utilization} %",
      f"{100 * formula:.1f} %",
      f"{mfu} %",
      f"{_I1_MFU * formula:.1f} %",
      f"{8 * _I1_BYTES / seconds / 1e9:.2f}",
      f"{ahead:.1%}",
    )
  table.caption = "arXiv 2412.01152, table 2; Gb/s for 14 islands"
  return table


def _table(title: str, *columns: str) -> rich.table.Table:
  table = rich.table.Table(title=title, title_justify="left")
  for number, column in enumerate(columns):
    text = number == 0 or column.startswith(("how", "what"))
    table.add_column(column, justify="left" if text else "right")
  return table


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f"{seconds:.3g} s"
  if seconds < 7200:
    return f"{seconds / 60:.3g} min"
  return f"{seconds / 3600:.3g} h"
