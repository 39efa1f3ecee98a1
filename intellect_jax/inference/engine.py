"""Many texts written at once: continuous batching over a cache of slots.

A text is read into a slot, some hundred tokens a call, and from then on gets a
token with each step, together with all others; whoever is done makes room for
the next (Orca, OSDI 2022). What a slot holds stays until it is needed: a text
that begins as another one did, as the turns of a conversation and the examples
of a benchmark do, is read from where they part.
"""

from collections import deque
from collections.abc import Callable, Sequence
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from intellect_jax.errors import UserError
from intellect_jax.inference.loading import Model
from intellect_jax.inference.shapes import rounded
from intellect_jax.inference.trie import common_prefix
from intellect_jax.model import cache as cache_lib
from intellect_jax.model.cache import Cache
from intellect_jax.model.sampling import choose

READ = 512  # tokens of a prompt that are read in one call
_LEAST_ROOM = 128
_WORTH_COPYING = 32  # tokens


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn; see `choose`."""

  temperature: float = 0.7
  top_k: int = 40
  top_p: float = 1.0
  seed: int = 0

  def with_seed(self, seed: int) -> "Sampling":
    """The same with another seed, of which the last 32 bits count."""
    return dataclasses.replace(self, seed=seed % 2**32)

  def check(self) -> None:
    """Raises UserError if a value is out of range."""
    for name, value, holds, expected in (
      ("temperature", self.temperature, self.temperature >= 0, "at least 0"),
      ("top_k", self.top_k, self.top_k >= 0, "at least 0; 0 is all"),
      ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
      ("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 2^32 - 1"),
    ):
      if not holds:
        raise UserError(f"{name} is {value}, but must be {expected}.")


GREEDY = Sampling(temperature=0.0)


@dataclasses.dataclass(eq=False)
class Request:
  """A text to go on with.

  Attributes:
    prompt: ids, at least one.
    most: tokens to add at most, at least one.
    sampling: how.
    take: called with each new token and its log-probability (nats, before
      temperature and the like); whether to go on.
    done: called when there will be no more, with why: "stop", if `take` said
      so, "length", or "cancelled".
  """

  prompt: Sequence[int]
  most: int
  sampling: Sampling
  take: Callable[[int, float], bool]
  done: Callable[[str], None] = lambda why: None


@dataclasses.dataclass(eq=False)
class _Slot:
  number: int
  text: list[int] = dataclasses.field(default_factory=list)
  held: int = 0  # tokens of the text that the cache has
  request: Request | None = None
  added: int = 0  # tokens
  used: int = 0  # when it was last taken

  @property
  def unread(self) -> int:
    return len(self.text) - self.held if self.request else 0


class Engine:
  """Writes on, one step at a time; for one thread.

  Attributes:
    slots: how many texts at once.
    tokens_read: that went through the model, of texts alone.
  """

  def __init__(self, model: Model, slots: int = 1, slide: bool = False):
    """Nothing is computed yet.

    Args:
      model: its context is the most that a slot holds.
      slots: texts at once, rounded up to the devices of the mesh's fsdp axis.
      slide: whether a text that fills the context goes on from its last half,
        read anew. Otherwise it ends there.
    """
    fsdp = model.mesh.shape["fsdp"]
    self.slots = -(-slots // fsdp) * fsdp
    self._model, self._slide = model, slide
    self._slots = [_Slot(number) for number in range(self.slots)]
    self._waiting: deque[Request] = deque()
    self._clock = itertools.count(1)
    self.tokens_read = 0
    self._cache: Cache | None = None
    self._copy = jax.jit(cache_lib.copied, donate_argnums=0)

  def add(self, request: Request) -> None:
    """Takes a request; the next steps work on it. Raises as `check`."""
    self.check(request)
    self._waiting.append(request)

  def check(self, request: Request) -> None:
    """Whether a request can be answered; may be asked from any thread.

    Raises:
      UserError: if its prompt does not fit, or its sampling is out of range.
    """
    request.sampling.check()
    if not request.prompt or request.most < 1:
      raise UserError("A request takes a token to go on from, and one to add.")
    if len(request.prompt) >= self._model.context and not self._slide:
      raise UserError(
        f"The prompt has {len(request.prompt)} tokens, and the model's context"
        f" of {self._model.context} must hold the answer too. Shorten it, or"
        " start with a larger --context."
      )

  def cancel(self, request: Request) -> None:
    """Ends a request, if it has not ended."""
    if request in self._waiting:
      self._waiting.remove(request)
      request.done("cancelled")
    for slot in self._slots:
      if slot.request is request:
        self._end(slot, "cancelled")

  def cancel_all(self) -> None:
    """Ends all requests."""
    for slot in self._slots:
      if slot.request:
        self._end(slot, "cancelled")
    while self._waiting:
      self._waiting.popleft().done("cancelled")

  def run(self) -> None:
    """Steps until no request is left."""
    while self.step():
      pass

  def step(self) -> bool:
    """Reads a piece of what is unread, then adds a token to every other text.

    Returns whether there is more to do.
    """
    self._admit()
    reading = [slot for slot in self._slots if slot.unread > 1]
    if reading:
      self._read(reading)
    if any(slot.unread == 1 for slot in self._slots):
      self._write()
    return bool(self._waiting) or any(slot.request for slot in self._slots)

  # ---------------------------------------------------------------- slots

  def _admit(self) -> None:
    free = [slot for slot in self._slots if slot.request is None]
    while free and self._waiting:
      request = self._waiting.popleft()
      prompt = list(request.prompt)[-self._most_kept(request) :]
      slot, held = self._slot_for(prompt, free)
      free.remove(slot)
      slot.text, slot.held, slot.request, slot.added = prompt, held, request, 0
      slot.used = next(self._clock)

  def _most_kept(self, request: Request) -> int:
    """Of a prompt, when texts slide: what leaves room to go on."""
    context = self._model.context
    fits = len(request.prompt) < context
    return context if fits else max(1, context // 2)

  def _slot_for(
    self, prompt: list[int], free: list[_Slot]
  ) -> tuple[_Slot, int]:
    """A free slot, and how much of the prompt it holds by now."""

    def shared(slot: _Slot) -> int:
      # The last token is always read: its logits are wanted.
      held = slot.text[: min(slot.held, len(prompt) - 1)]
      return common_prefix(held, prompt)

    oldest = min(free, key=lambda slot: slot.used)
    best = max(free, key=shared)
    holder = max(self._slots, key=shared)
    if shared(holder) >= shared(best) + _WORTH_COPYING:
      assert self._cache is not None
      with jax.set_mesh(self._model.mesh):
        self._cache = self._copy(self._cache, holder.number, oldest.number)
      return oldest, shared(holder)
    return (best, shared(best)) if shared(best) else (oldest, 0)

  def _end(self, slot: _Slot, why: str) -> None:
    request, slot.request = slot.request, None
    assert request is not None
    request.done(why)

  # ---------------------------------------------------------------- calls

  def _read(self, reading: list[_Slot]) -> None:
    """The next piece of each of these prompts."""
    rows = rounded(len(reading), self._model.mesh.shape["fsdp"])
    longest = max(slot.unread for slot in reading)
    self._call(reading, rows, min(rounded(longest, 8), READ))

  def _write(self) -> None:
    """A token for each text that is read."""
    self._call(self._slots, self.slots, 1)

  def _call(self, slots: list[_Slot], rows: int, length: int) -> None:
    """One call of the model; `slots` are all of them, or some."""
    writing = length == 1
    tokens = np.zeros((rows, length), np.int32)
    numbers = np.full(rows, self.slots, np.int32)  # of no slot
    starts, lengths = np.zeros(rows, np.int32), np.ones(rows, np.int32)
    most, read = 0, []
    for row, slot in enumerate(slots):
      starts[row] = slot.held  # what an idle row writes there means nothing
      if slot.request is None or (writing and slot.unread != 1):
        continue
      piece = slot.text[slot.held : slot.held + length]
      tokens[row, : len(piece)] = piece
      numbers[row], lengths[row] = slot.number, len(piece)
      slot.held += len(piece)
      most = max(most, slot.held)
      self.tokens_read += len(piece)
      if slot.unread == 0:
        read.append((row, slot))
    self._make_room(most)
    with jax.set_mesh(self._model.mesh):
      logits_RxV, self._cache = _extend(
        self._model.c,
        self._model.params,
        self._cache,
        None if writing else numbers,
        tokens,
        starts,
        lengths,
      )
      if not read:
        return
      drawn, logprobs = map(np.asarray, _draw(logits_RxV, _rules(rows, read)))
    for row, slot in read:
      self._give(slot, int(drawn[row]), float(logprobs[row]))

  def _make_room(self, tokens: int) -> None:
    c, mesh = self._model.c, self._model.mesh
    room = min(rounded(tokens, _LEAST_ROOM), self._model.context)
    if self._cache is None:
      self._cache = cache_lib.empty(c, self.slots, room, mesh)
    elif room > self._cache.room:
      self._cache = cache_lib.grown(self._cache, room)

  def _give(self, slot: _Slot, token: int, logprob: float) -> None:
    request = slot.request
    assert request is not None
    slot.text.append(token)
    slot.added += 1
    if not request.take(token, logprob):
      self._end(slot, "stop")
    elif slot.added >= request.most:
      self._end(slot, "length")
    elif len(slot.text) > self._model.context:
      if self._slide:
        slot.text = slot.text[-max(1, self._model.context // 2) :]
        slot.held = 0
      else:
        self._end(slot, "length")


_extend = jax.jit(cache_lib.extend, static_argnums=0, donate_argnums=2)


@jax.jit
def _draw(logits_RxV: jax.Array, rules) -> tuple[jax.Array, jax.Array]:
  """A token for each row, by `choose` or the likeliest; its log-probability."""
  if rules is None:
    drawn_R = logits_RxV.argmax(axis=-1)
  else:
    drawn_R = choose(logits_RxV, *rules)
  logp_RxV = jax.nn.log_softmax(logits_RxV)
  logp_R = jnp.take_along_axis(logp_RxV, drawn_R[:, None], axis=1)[:, 0]
  return drawn_R, logp_R


def _rules(
  rows: int, read: Sequence[tuple[int, _Slot]]
) -> tuple[np.ndarray, ...] | None:
  """What `choose` wants of each row; None if all take the likeliest."""
  temperature, top_p = np.zeros(rows, np.float32), np.ones(rows, np.float32)
  top_k, steps = np.zeros((2, rows), np.int32)
  seeds = np.zeros(rows, np.uint32)
  for row, slot in read:
    assert slot.request is not None
    sampling = slot.request.sampling
    temperature[row], top_p[row] = sampling.temperature, sampling.top_p
    top_k[row], seeds[row] = sampling.top_k, sampling.seed
    steps[row] = slot.added
  if not temperature.any():
    return None
  return temperature, top_k, top_p, seeds, steps
