"""DiLoCo on replicas in one process: the real steps, codecs and outer optimizer.

It computes what a swarm does whose islands are all in every record
(tests/end_to_end/test_swarm_equals_simulation.py has swarms of processes), but
compiles once, and needs no network.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from intellect_jax.data.index import GlobalIndex
from intellect_jax.elastic import means
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.inner.step import TrainStep
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer import delta, nesterov, traffic
from intellect_jax.outer.codec import Codec, make_codec
from intellect_jax.outer.feedback import ErrorFeedback
from intellect_jax.outer.layout import Layout
from intellect_jax.outer.schedule import Schedule, position


class Replicas:
  """Some islands of a run, and theta and b, which are one for all of them.

  Attributes:
    codec: of the exchange.
    layout: of theta.
    theta: float32 [layout.size].
    steps: of each island, in all of the run.
  """

  def __init__(
    self,
    run: ConfigDict,
    count: int,
    train_step: TrainStep,
    index: GlobalIndex,
  ):
    """Makes the initial state.

    Args:
      run: the run half of the config; of `outer`, the codec, H, eta and mu.
      count: islands.
      train_step: compiled for `run.model` and `run.inner`.
      index: the global sample index. At each step, neighbours train on
        neighbouring batches of it, whatever the outer loop is like.
    """
    self._run = run
    self._step = train_step
    self.codec = make_codec(run.outer.codec)
    params = train_step.abstract_state.params
    self.layout = Layout.of(params, tensor_names(params), self.codec.block)
    first = train_step.init(jax.random.key(run.seed))
    self.theta = self.layout.flatten(first.params)
    self._momentum = np.zeros_like(self.theta)
    self._islands = [train_step.from_params(first.params) for _ in range(count)]
    zero = np.zeros_like(self.theta)
    self._feedback = [
      ErrorFeedback(zero, run.outer.feedback) for _ in range(count)
    ]
    batch, length = run.inner.batch_size, run.data.sequence_length
    self._tokens = batch * length  # of an island's step
    self.steps = run.tokens // (count * self._tokens)
    self._batches = [
      index.batches(
        [
          (at, at + batch)
          for at in range(
            island * batch, self.steps * count * batch, count * batch
          )
        ],
        batch,
      )
      for island in range(count)
    ]

  def train(self, on_round: Callable[[int], Any] = lambda number: None) -> None:
    """All of the run; `on_round` hears the number of each record."""
    inner_steps = self._run.outer.inner_steps
    for first in range(0, self.steps, inner_steps):
      for at in range(first, min(first + inner_steps, self.steps)):
        self._train_step(at)
      self._outer_step()
      on_round(first // inner_steps + 1)

  def _train_step(self, at: int) -> None:
    """Each island's step number `at`."""
    count = len(self._islands)
    where = position(0, at * self._tokens, count)
    schedule = Schedule(where, self._run.tokens)
    self._islands = [
      self._step(island, next(batches), schedule)[0]
      for island, batches in zip(self._islands, self._batches, strict=True)
    ]

  def _outer_step(self) -> None:
    """A round of plain DiLoCo: x is theta afterwards."""
    codes = []
    for island, feedback in zip(self._islands, self._feedback, strict=True):
      values = np.empty(self.layout.size, np.float32)
      delta.delta(self.theta, island.params, self.layout, values)
      feedback.add_to(values, 0)
      codes.append(encoded(self.codec, values))
      if self.codec.sparse:
        self.codec.accumulate(values, codes[-1], -1.0)
        feedback.propose(values)
        feedback.decide(b"", included=True, lost=False)
    mean, outer = coded_mean(self.codec, codes), self._run.outer
    nesterov.apply(
      self.theta, self._momentum, mean, outer.learning_rate, outer.momentum
    )
    params = self.params()
    self._islands = [
      island._replace(params=self._step.place(params))
      for island in self._islands
    ]

  def params(self) -> Any:
    """Theta as a tree of arrays."""
    return self.layout.unflatten(self.theta)

  @property
  def values(self) -> int:
    """Parameters of the model."""
    return sum(tensor.size for tensor in self.layout.tensors)

  def coded_bytes_sent(self, islands: int) -> float:
    """By one of so many islands in a round."""
    delta_bytes = self.layout.blocks * self.codec.block_bytes
    shares = not self.codec.sparse
    return traffic.coded_bytes_sent(islands, delta_bytes, shares)


def encoded(codec: Codec, values: np.ndarray) -> np.ndarray:
  """The codes of float32 [n]."""
  codes = np.empty(len(values) // codec.block * codec.block_bytes, np.uint8)
  codec.encode(values, codes)
  return codes


def coded_mean(codec: Codec, codes: Sequence[np.ndarray]) -> np.ndarray:
  """The mean of coded deltas as everybody decodes it, float32 [n]."""
  mean = np.empty(len(codes[0]) // codec.block_bytes * codec.block, np.float32)
  members = [pb.Member(weight=1, clip=1) for _ in codes]
  means.average(codec, members, codes, mean)
  if not codec.sparse:  # the owner of a share encodes it once more
    codec.decode(encoded(codec, mean), mean)
  return mean
