"""Training steps that are timed against each other: one batch, one model.

Each contestant is a function of a config that gives a function `steps(n)`: it
trains n steps, waits for the last, and returns its loss.
"""

from collections.abc import Callable
import itertools
import pathlib
import tempfile

import jax
from ml_collections import ConfigDict
import numpy as np

from benchmarks import plain_jax
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.elastic.identity import Identity
from intellect_jax.elastic.mesh import ElasticDeviceMesh
from intellect_jax.elastic.service import CoordinatorService
from intellect_jax.inner.step import TrainStep
from intellect_jax.model import llama, sharding
from intellect_jax.observe.island import IslandReport

Steps = Callable[[int], float]


def packed_batch(run: ConfigDict) -> dict[str, np.ndarray]:
  """Random tokens in documents of 100 tokens on average, as data/ packs them."""
  rng = np.random.default_rng(0)
  shape = run.inner.batch_size, run.data.sequence_length
  start = rng.random(shape) < 0.01
  start[:, 0] = True
  index = np.broadcast_to(np.arange(shape[1]), shape)
  first = np.maximum.accumulate(np.where(start, index, 0), axis=1)
  ids = rng.integers(0, run.model.vocab_size, (2, *shape), np.int32)
  last = np.roll(start, -1, axis=1)
  return dict(
    tokens=ids[0],
    targets=ids[1],
    segment_ids=np.cumsum(start, axis=1, dtype=np.int32),
    positions=(index - first).astype(np.int32),
    weights=1 - last.astype(np.float32),
  )


def _with_layers(config: ConfigDict, scanned: bool) -> TrainStep:
  config.island.model.scan_layers = scanned
  step = TrainStep(config.run, config.island, sharding.make_mesh())
  step.compile()
  return step


def ours(config: ConfigDict, scanned: bool) -> Steps:
  """This project's step."""
  step = _with_layers(config, scanned)
  state, batch = step.init(jax.random.key(0)), packed_batch(config.run)

  def steps(n: int) -> float:
    nonlocal state
    for _ in range(n):
      state, metrics = step(state, batch, 0.0)
    jax.block_until_ready(state)
    return float(metrics["loss"])

  return steps


def plain(config: ConfigDict, scanned: bool) -> Steps:
  """The same by hand, in one file."""
  init, step = plain_jax.make_step(config.run, scanned)
  c = llama.LlamaConfig.of(config.run.model, config.island.model)
  params = llama.init_params(c, jax.random.key(0), sharding.make_mesh())
  opt_state, batch = jax.jit(init)(params), packed_batch(config.run)

  def steps(n: int) -> float:
    nonlocal params, opt_state
    for _ in range(n):
      params, opt_state, loss = step(params, opt_state, batch)
    jax.block_until_ready(params)
    return float(loss)

  return steps


def loop(config: ConfigDict, scanned: bool) -> Steps:
  """This project's step in the loop of train.py: data, metrics, heartbeat."""
  run, step = config.run, _with_layers(config, scanned)
  workdir = pathlib.Path(tempfile.mkdtemp(prefix="benchmark-"))
  service = CoordinatorService(run, workdir / "coordinator")
  report = IslandReport(workdir, run)
  mesh = ElasticDeviceMesh(
    run,
    config.island,
    Identity(workdir, "benchmark"),
    step,
    GlobalIndex(run.data, tokenizer_of(run)),
    None,
    [service.address],
    service.description(),
    alone=True,
  )

  def train():
    with mesh:
      state = mesh.state
      for batch in mesh.batches():
        state, metrics = step(state, batch, mesh.schedule())
        state = mesh.after_step(state, metrics)
        report.take(mesh.events)
        yield state, metrics

  training = train()

  def steps(n: int) -> float:
    *_, (state, metrics) = itertools.islice(training, n)
    jax.block_until_ready(state)
    return float(metrics["loss"])

  return steps


def pytorch(config: ConfigDict, scanned: bool) -> Steps:
  """Hugging Face transformers' Llama, eager PyTorch, fused AdamW."""
  del scanned
  import torch  # pyright: ignore[reportMissingImports]
  import transformers  # pyright: ignore[reportMissingImports]

  model, inner = config.run.model, config.run.inner
  net = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      num_hidden_layers=model.layers,
      hidden_size=model.width,
      num_attention_heads=model.heads,
      num_key_value_heads=model.kv_heads,
      head_dim=model.head_dim,
      intermediate_size=model.ffn,
      vocab_size=model.vocab_size,
      rms_norm_eps=model.norm_epsilon,
      tie_word_embeddings=model.tied_embeddings,
      use_cache=False,
      attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
  )
  norms = [p for p in net.parameters() if p.ndim == 1]
  matrices = [p for p in net.parameters() if p.ndim > 1]
  optimizer = torch.optim.AdamW(
    [dict(params=norms, weight_decay=0.0), dict(params=matrices)],
    lr=inner.learning_rate,
    betas=(inner.beta1, inner.beta2),
    eps=inner.epsilon,
    weight_decay=inner.weight_decay,
    fused=True,
  )
  batch = {k: torch.from_numpy(v) for k, v in packed_batch(config.run).items()}
  ids = batch["segment_ids"]
  mask = (ids[:, None, :, None] == ids[:, None, None, :]).tril()
  targets = batch["targets"].long().flatten()
  weights = batch["weights"].flatten()

  def step() -> torch.Tensor:
    logits = net(
      input_ids=batch["tokens"].long(),
      position_ids=batch["positions"].long(),
      attention_mask=mask,
    ).logits
    losses = torch.nn.functional.cross_entropy(
      logits.flatten(0, 1), targets, reduction="none"
    )
    loss = (losses * weights).sum() / weights.sum()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), inner.clip_norm)
    optimizer.step()
    return loss

  def steps(n: int) -> float:
    for _ in range(n):
      loss = step()
    return loss.item()

  return steps


# The order is that of the turns: who is compared stands side by side.
CONTESTANTS: dict[str, tuple[Callable[[ConfigDict, bool], Steps], bool]] = {
  "ours, in train's loop": (loop, True),
  "ours, scanned": (ours, True),
  "plain JAX, scanned": (plain, True),
  "ours, unrolled": (ours, False),
  "plain JAX, unrolled": (plain, False),
  "PyTorch": (pytorch, False),
}
