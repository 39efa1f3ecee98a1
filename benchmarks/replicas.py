"""DiLoCo on replicas in one process: the real steps, codecs and outer optimizer.

It computes what a swarm does whose islands are all in every record
(tests/end_to_end/test_swarm_equals_simulation.py has swarms of processes), but
compiles once, and needs no network.
"""

from collections.abc import Callable, Sequence
import itertools
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from intellect_jax.data.index import GlobalIndex
from intellect_jax.elastic import means
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.inner.step import TrainStep
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer import nesterov, overlap, traffic
from intellect_jax.outer.codec import Codec, make_codec
from intellect_jax.outer.feedback import ErrorFeedback
from intellect_jax.outer.fragments import partition
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
    codec: Codec | None = None,
  ):
    """Makes the initial state.

    Args:
      run: the run half of the config; of `outer`, the codec, H, eta, mu, tau,
        alpha, P, and whether it is eager. Records come as late as they may.
      count: islands.
      train_step: compiled for `run.model` and `run.inner`.
      index: the global sample index. At each step, neighbours train on
        neighbouring batches of it, whatever the outer loop is like.
      codec: of the exchange; None: that of `run.outer`.
    """
    self._run = run
    self._step = train_step
    self.codec = codec or make_codec(run.outer.codec)
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
    block = self.layout.block
    # By fragment: where its values are, and each island's x at its proposal.
    self._places = [
      np.concatenate([np.arange(a * block, b * block) for a, b in f.runs])
      for f in partition(self.layout, run.outer.fragments)
    ]
    self._anchors: dict[int, list[np.ndarray]] = {}
    self._moved = [False] * run.outer.fragments
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
    outer, rounds, late = (
      self._run.outer,
      0,
      overlap.most_ahead(self._run.outer),
    )
    turns, merges = itertools.cycle(self._turns()), {}
    for step in range(self.steps):
      self._train_step(step)
      done, within = step + 1, step % outer.inner_steps + 1
      if done in merges:
        self._merge(merges.pop(done))
      before, after = (
        n * outer.fragments // outer.inner_steps for n in (within - 1, within)
      )
      if after > before or done == self.steps:
        fragment, rounds = next(turns), rounds + 1
        self._outer_step(fragment)
        if late:
          merges[done + late] = fragment
        else:
          self._merge(fragment)
        on_round(rounds)

  def _turns(self) -> list[int]:
    """Fragment 0 is the last, so that its rounds end whole windows."""
    return [*range(1, self._run.outer.fragments), 0]

  def _train_step(self, at: int) -> None:
    """Each island's step number `at`."""
    count = len(self._islands)
    where = position(0, at * self._tokens, count)
    schedule = Schedule(where, self._run.tokens)
    self._islands = [
      self._step(island, next(batches), schedule)[0]
      for island, batches in zip(self._islands, self._batches, strict=True)
    ]

  def _outer_step(self, fragment: int) -> None:
    """A round: theta moves, and x is where it was, or ahead of it."""
    places, outer, codes = self._places[fragment], self._run.outer, []
    theta, momentum = self.theta[places], self._momentum[places]
    xs = [self.layout.flatten(i.params)[places] for i in self._islands]
    for x, feedback in zip(xs, self._feedback, strict=True):
      values = theta - x
      if self.codec.sparse:
        feedback.add_to(values, 0)
      codes.append(encoded(self.codec, values))
      if self.codec.sparse:
        self.codec.accumulate(values, codes[-1], -1.0)
        feedback.propose(values)
        feedback.decide(b"", included=True, lost=False)
    if outer.eager and self._moved[fragment]:
      rule = 1 / len(xs), outer.learning_rate, outer.momentum
      xs = [overlap.eager(x, theta, momentum, *rule) for x in xs]
      for number, x in enumerate(xs):
        self._set(number, places, x)
    self._anchors[fragment], self._moved[fragment] = xs, True
    mean = coded_mean(self.codec, codes)
    nesterov.apply(theta, momentum, mean, outer.learning_rate, outer.momentum)
    self.theta[places], self._momentum[places] = theta, momentum

  def _merge(self, fragment: int) -> None:
    """What becomes of x: docs/protocol.md, 3."""
    places, outer = self._places[fragment], self._run.outer
    theta = self.theta[places]
    anchors = self._anchors.pop(fragment)
    for number, anchor in enumerate(anchors):
      x = self.layout.flatten(self._islands[number].params)[places]
      if overlap.blends(outer):
        x = overlap.blend(x, theta, outer.merge_alpha)
      elif overlap.most_ahead(outer):
        x = overlap.rebase(overlap.displacement(x, anchor), theta)
      else:
        x = theta
      self._set(number, places, x)

  def _set(self, number: int, places: np.ndarray, values: np.ndarray) -> None:
    """Moves some of an island's x."""
    island = self._islands[number]
    x = self.layout.flatten(island.params)
    x[places] = values
    params = self._step.place(self.layout.unflatten(x))
    self._islands[number] = island._replace(params=params)

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
