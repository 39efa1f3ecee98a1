"""One process's copy of theta and b, and its devices' part of x.

Theta and b are whole in the memory of every host, so that placing them on the
devices needs no other host, and any of them can serve a newcomer. What is done
with x needs all devices of the island: every process carries out the same
orders one after the other, each in its training thread.
"""

from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from intellect_jax.checkpoint.durable import DamagedError
from intellect_jax.checkpoint.pretrained import Weights
from intellect_jax.data.index import GlobalIndex
from intellect_jax.elastic import reduce
from intellect_jax.elastic.holdings import Holdings
from intellect_jax.elastic.part import Part
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.errors import UserError
from intellect_jax.inner.step import TrainState, TrainStep
from intellect_jax.outer.delta import delta
from intellect_jax.outer.device_codec import DeltaEncoder
from intellect_jax.outer.excerpt import Excerpt
from intellect_jax.outer.fragments import Fragment
from intellect_jax.outer.schedule import Schedule

Params = Any  # a tree of arrays on the island's devices


def delta_name(fragment: int) -> bytes:
  """Of an encoded delta, until it is served."""
  return b"delta %d" % fragment


class Replica:
  """Carries out orders (island.proto), in the training thread.

  Attributes:
    state: parameters x and Adam's moments, once there are any. Process 0's
      training loop holds them between orders.
  """

  def __init__(
    self,
    run: ConfigDict,
    held: Holdings,
    part: Part,
    train_step: TrainStep,
    index: GlobalIndex,
    weights: Weights | None,
    encoder: DeltaEncoder | None,
  ):
    """Prepares.

    Args:
      run: the run half of the config.
      held: theta, b, log and checkpoints.
      part: of this process in the exchange.
      train_step: compiled already.
      index: the global sample index.
      weights: that the run starts from, if it does and they are here.
      encoder: of deltas, if they are encoded on the devices.
    """
    self.state: Any = None
    self._run = run
    self._held = held
    self._part = part
    self._train_step = train_step
    self._index = index
    self._weights = weights
    self._encoder = encoder
    self._theta: Params | None = None  # on the devices, to encode from
    self._batches: Iterator[dict[str, np.ndarray]] = iter(())
    shardings = train_step.state_shardings.params
    self._excerpts = [Excerpt(f, shardings) for f in held.fragments]
    # By fragment, if steps go on after the proposal: x there; then where they
    # go on from, if that is elsewhere.
    self._frozen: dict[int, list[list[jax.Array]]] = {}

  def do(self, order: ipb.Order) -> ipb.Report:
    """Carries out an order."""
    kind = order.WhichOneof("order")
    assert kind is not None
    report = getattr(self, f"_{kind}")(getattr(order, kind))
    return report or ipb.Report()

  # ---------------------------------------------------------------- beginnings

  def _initialise(self, order: ipb.Initialise) -> None:
    """Makes record 0's state; every other island fetches these very bits."""
    self.state = self._initial_state()
    theta = self._held.layout.flatten(self.state.params)
    both = np.concatenate([theta, np.zeros_like(theta)])
    self._held.stand_at(pb.Record(islands=1), both)
    self._held.agree([])
    self._keep_theta(self.state.params)

  def _initial_state(self) -> TrainState:
    """Random, or from given weights; always with zero moments.

    Adapters are random in any case: the weights are beside them.
    """
    step = self._train_step
    if not self._run.init_from or self._run.model.lora_rank:
      return step.init(jax.random.key(self._run.seed))
    if self._weights is None:
      raise UserError(
        f"This run starts from given weights ({self._run.init_from[:12]}…), and"
        " this island is its first. Start it with --init-from=FOLDER, as the"
        " coordinator was; the islands after it need no folder."
      )
    return step.from_params(self._weights.read(step.abstract_state.params))

  def _restore(self, order: ipb.RestoreCheckpoint) -> ipb.Report:
    try:
      self.state = self._held.restore(order.checkpoint, order.record)
    except DamagedError as error:
      return ipb.Report(failure=str(error))
    self._keep_theta(self.state.params)
    return ipb.Report()

  def _stand(self, order: ipb.Stand) -> None:
    """Theta and b are those that were fetched, and x is theta."""
    both = self._part.take(order.fetched).view(np.float32)
    self._held.stand_at(order.record, both)
    if self.state is None:
      self.state = self._train_step.from_params(self._held.host_theta())
      self._keep_theta(self.state.params)
    else:
      self._revert(ipb.Revert())

  # --------------------------------------------------------------------- steps

  def _window(self, lease: pb.LeaseGrant) -> None:
    self._batches = self.batches([(i.start, i.stop) for i in lease.samples])

  def batches(
    self, samples: list[tuple[int, int]]
  ) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches of some samples."""
    batch_size = self._run.inner.batch_size
    return self._index.batches(samples, batch_size, self._train_step.rows)

  def _step(self, order: ipb.Step) -> None:
    schedule = Schedule(order.position, order.total_tokens, order.scale)
    self.state, _ = self._train_step(self.state, next(self._batches), schedule)

  # ------------------------------------------------------- proposals and records

  def _freeze(self, order: ipb.Freeze) -> ipb.Report:
    """Encodes this process's part of theta - x of a fragment."""
    encode = self._encode if self._encoder is None else self._encode_on_device
    number = order.fragment
    fragment, chunk = self._held.fragments[number], self._part.chunk(number)
    start, stop = self._part.delta_cut(number)
    encoded = encode(fragment, start, stop, chunk)
    if order.keep_x:
      self._frozen[number] = [self._excerpts[number].copy(self.state.params)]
    if order.HasField("eager"):
      self._go_ahead(number, order.eager)
    report = self._part.keep(delta_name(number), start, encoded, number)
    report.state_hash = self._held.state_hash(number)
    return report

  def _encode_on_device(
    self, fragment: Fragment, start: int, stop: int, chunk: int
  ) -> reduce.Encoded:
    assert self._encoder is not None and self._theta is not None
    codes, x = np.empty(stop - start, np.uint8), self.state.params
    self._encoder.encode(self._theta, x, codes, start, fragment.tensors)
    return reduce.Encoded.of(self._held.codec, codes, chunk)

  def _encode(
    self, fragment: Fragment, start: int, stop: int, chunk: int
  ) -> reduce.Encoded:
    held, codec, feedback = self._held, self._held.codec, self._held.feedback
    first, last = (
      at // codec.block_bytes * codec.block for at in (start, stop)
    )
    tensors, origin = fragment.overlapping(first, last)
    theta, x = held.outer.theta, self.state.params
    source = delta(
      theta, x, held.layout, reduce.PIECE, tensors, fragment.tensors
    )
    left_out = np.empty(0 if feedback is None else last - first, np.float32)

    def pieces() -> Iterator[np.ndarray]:
      stop = origin
      for piece in source:
        start, stop = stop, stop + len(piece)
        piece = piece[max(0, first - start) : max(0, last - start)]
        start = max(first, start)
        if feedback is not None:
          before, piece = piece, left_out[start - first :][: len(piece)]
          piece[:] = before
          feedback.add_to(piece, start)
        yield piece

    try:
      encoded = reduce.encode(codec, pieces(), stop - start, chunk)
    finally:
      for _ in source:  # the island's other processes need this one to the end
        pass
    if feedback is not None:
      codec.accumulate(left_out, encoded.codes, -1.0)
      feedback.propose(left_out)
    return encoded

  def _go_ahead(self, number: int, expected: ipb.Eager) -> None:
    """Goes on from where the island's own part of the next step leads."""
    excerpt, outer = self._excerpts[number], self._held.outer
    x = excerpt.eager(
      self.state.params,
      excerpt.place(outer.theta),
      excerpt.place(outer.momentum),
      expected.part,
      expected.learning_rate,
      expected.momentum,
    )
    self.state = self.state._replace(params=x)
    self._frozen[number].append(excerpt.copy(x))

  def _merge(self, order: ipb.Merge) -> None:
    """Applies a record, whose mean is on the shelf: docs/protocol.md, 3.

    Of the fragment that it moves,

      x <- theta_new + (x - anchor)

    where the anchor is what steps went on from since the proposal if the record
    includes it, so that they go on from the new theta; and the old theta if it
    was left out, so that its whole displacement stays for the next proposal.
    With an alpha, what is included is blended: x <- alpha x + (1 - alpha)
    theta_new.
    """
    held = self._held
    if not order.record.HasField("step"):
      held.apply(order.record)  # theta stays
      return
    number = order.record.step.fragment
    excerpt, x = self._excerpts[number], self.state.params
    frozen = self._frozen.pop(number, [])
    goes_on = order.anchor == ipb.Merge.ANCHOR_FROZEN and bool(frozen)
    stays = order.anchor == ipb.Merge.ANCHOR_THETA
    if goes_on:
      x = excerpt.displacement(x, frozen[-1])
    elif stays:
      if len(frozen) > 1:  # back to what was proposed, and on from there
        x = excerpt.rebase(excerpt.displacement(x, frozen[1]), frozen[0])
      x = excerpt.displacement(x, excerpt.place(held.outer.theta))
    del frozen  # before theta comes to the devices
    held.apply(order.record)
    theta = excerpt.place(held.outer.theta)
    if order.alpha:
      x = excerpt.blend(x, theta, order.alpha)
    elif goes_on or stays:
      x = excerpt.rebase(x, theta)
    else:
      x = excerpt.set(x, theta)
    self.state = self.state._replace(params=x)
    if self._theta is not None:
      theta = excerpt.place(held.outer.theta)
      self._theta = excerpt.set(self._theta, theta)

  def _revert(self, order: ipb.Revert) -> None:
    if order.HasField("fragment"):
      excerpt = self._excerpts[order.fragment]
      theta = excerpt.place(self._held.outer.theta)
      params = excerpt.set(self.state.params, theta)
      self.state = self.state._replace(params=params)
      self._frozen.pop(order.fragment, None)
      return
    self._frozen.clear()
    self.state = self.state._replace(params=self._held.place_theta())
    self._keep_theta(self.state.params)

  def _rebuild(self, order: ipb.Rebuild) -> ipb.Report:
    """Compares a fragment with what the log comes to; x stays."""
    held, before = self._held, self._held.actual_hash(order.fragment)
    rebuilt = held.rebuild(order)
    return ipb.Report(record=order.record, state_hash=before, rebuilt=rebuilt)

  def _keep_theta(self, theta: Params) -> None:
    """Keeps a copy of theta on the devices, if deltas are encoded there."""
    if self._encoder is not None:
      self._theta = self._train_step.place(theta)

  def _save(self, order: ipb.Save) -> None:
    self._held.save(self.state)
