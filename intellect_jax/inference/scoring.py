"""How likely texts are: log-probabilities of tokens, given those before them.

Dimensions as in llama.py; A places of a row that are asked about, T tokens that
are asked for at each.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intellect_jax.errors import UserError
from intellect_jax.inference import trie
from intellect_jax.inference.loading import Model
from intellect_jax.inference.shapes import rounded
from intellect_jax.inference.trie import Row, Text
from intellect_jax.model import llama, sharding

LEAST_ROW = 512  # tokens: shorter texts share rows
LONG_ROW = 2048  # tokens: rows that hold two of the longest texts, at most
_WORTH_LONG_ROWS = 0.9  # of the tokens: longer rows cost more attention
_STEPS = 8  # lengths of rows that are compiled for
_LOGITS = 2**26  # that exist at once
_AHEAD = 2  # batches in flight


class Score(NamedTuple):
  """Of the tokens of a text that were asked for."""

  log_likelihood: float  # nats, their sum
  greedy: bool  # whether each of them is the likeliest


class Scorer:
  """Scores texts on a model's mesh, in batches of rows of like length.

  Attributes:
    tokens_read: that went through the model, padding included.
  """

  def __init__(self, model: Model, batch_tokens: int = 8192):
    """Compiles nothing yet.

    Args:
      model: on its mesh.
      batch_tokens: in a batch, about; at least a row for each device of the
        fsdp axis.
    """
    self._model = model
    self._batch_tokens = batch_tokens
    self.tokens_read = 0

  def score(
    self,
    texts: Sequence[Text],
    progress: Callable[[int], object] = lambda texts: None,
  ) -> list[Score]:
    """Scores each text, in their order.

    Args:
      texts: any number.
      progress: called with how many more are done.

    Raises:
      UserError: if one is longer than the model's context and a token, of which
        the last is only asked for.
    """
    if not texts:
      return []
    longest = max(len(text.tokens) for text in texts)
    if longest > self._model.context + 1:
      raise UserError(
        f"A text of {longest} tokens is longer than the model's context of"
        f" {self._model.context}. Cut it, or start with a larger --context."
      )
    sums, greedy = [0.0] * len(texts), [True] * len(texts)
    for rows, scores in self._ahead(self._batches(texts, longest - 1)):
      logps, likeliest = map(np.asarray, scores)
      for i, row in enumerate(rows):
        _note(row, logps[i], likeliest[i], sums, greedy)
        progress(len({number for _, _, number in row.asked}))
    return [Score(*both) for both in zip(sums, greedy, strict=True)]

  def _ahead(self, batches):
    """Rows and their scores, while the next batches are being computed."""
    flights: deque = deque()
    for batch in batches:
      flights.append((batch[0], self._start(*batch)))
      if len(flights) > _AHEAD:
        yield flights.popleft()
    yield from flights

  def _batches(
    self, texts: Sequence[Text], longest: int
  ) -> Iterator[tuple[list[Row], int, int]]:
    """Rows of like length, how long they are made, and how many with fillers."""
    most, packed = _packed(texts, longest)
    step = -(-most // _STEPS)
    packed.sort(key=len, reverse=True)
    fsdp = self._model.mesh.shape["fsdp"]
    for steps, rows in itertools.groupby(packed, lambda r: -(-len(r) // step)):
      length = steps * step
      size = max(1, self._batch_tokens // length // fsdp) * fsdp
      for batch in _split(rows, size):
        filled = fsdp * rounded(-(-len(batch) // fsdp))
        yield batch, length, min(size, filled)

  def _start(
    self, rows: list[Row], length: int, size: int
  ) -> tuple[jax.Array, jax.Array]:
    """Begins to compute what is asked for; returns arrays of the device."""
    tokens, depths, ends = np.zeros((3, size, length), np.int32)
    asked = [_by_place(row) for row in rows]
    most = rounded(max(map(len, asked)))
    width = rounded(max(len(t) for places in asked for t in places.values()))
    places = np.zeros((size, most), np.int32)
    targets = np.zeros((size, most, width), np.int32)
    for i, (row, wanted) in enumerate(zip(rows, asked, strict=True)):
      tokens[i, : len(row)] = row.tokens
      depths[i, : len(row)] = row.depths
      ends[i, : len(row)] = row.ends
      places[i, : len(wanted)] = list(wanted)
      for k, following in enumerate(wanted.values()):
        targets[i, k, : len(following)] = list(following)
    self.tokens_read += size * length
    chunk = min(
      most, rounded(max(1, _LOGITS // self._model.c.vocab_size // size))
    )
    mesh = self._model.mesh
    with jax.set_mesh(mesh):
      return _scores(
        self._model.c,
        chunk,
        self._model.params,
        *jax.device_put(
          (tokens, depths, ends, places, targets), sharding.batch_sharding(mesh)
        ),
      )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(
  c, chunk, params, tokens_BxL, depths_BxL, ends_BxL, places_BxA, targets_BxAxT
):
  """Log-probabilities BxAxT of the targets, and the likeliest tokens BxA."""
  model = llama.bind(c, params)
  mask_BxLxL = ancestors(ends_BxL)
  x_BxLxD = model.hidden_under(mask_BxLxL, tokens_BxL, depths_BxL)
  x_BxAxD = jnp.take_along_axis(x_BxLxD, places_BxA[:, :, None], axis=1)

  def score(part):
    x_BxSxD, targets_BxSxT = part
    logits_BxSxV = model.logits(x_BxSxD)
    asked_BxSxT = jnp.take_along_axis(logits_BxSxV, targets_BxSxT, axis=2)
    total_BxS = jax.nn.logsumexp(logits_BxSxV, axis=2)
    return asked_BxSxT - total_BxS[:, :, None], logits_BxSxV.argmax(axis=2)

  def split(x_BxAx_):  # chunks first
    B, A, *rest = x_BxAx_.shape
    return jnp.moveaxis(x_BxAx_.reshape(B, A // chunk, chunk, *rest), 1, 0)

  def joined(x_):
    x_BxNxSx_ = jnp.moveaxis(x_, 0, 1)
    B, N, S, *rest = x_BxNxSx_.shape
    return x_BxNxSx_.reshape(B, N * S, *rest)

  parts = jax.lax.map(score, (split(x_BxAxD), split(targets_BxAxT)))
  return jax.tree.map(joined, parts)


def ancestors(ends_BxL: jax.Array) -> jax.Array:
  """True where token m is an ancestor of token l or l itself: see `trie`."""
  place_L = jnp.arange(ends_BxL.shape[1])
  return (place_L <= place_L[:, None]) & (place_L[:, None] < ends_BxL[:, None])


def _packed(texts: Sequence[Text], longest: int) -> tuple[int, list[Row]]:
  """Rows, and how long they may be: longer ones where texts share much."""
  short = max(longest, LEAST_ROW)
  long = max(short, min(2 * longest, LONG_ROW))
  rows, longer = (list(trie.rows(texts, most)) for most in (short, long))
  tokens, fewer = (sum(map(len, packed)) for packed in (rows, longer))
  if fewer <= _WORTH_LONG_ROWS * tokens:
    return long, longer
  return short, rows


def _by_place(row: Row) -> dict[int, dict[int, None]]:
  """The tokens that are asked for at each place, each once, in order."""
  places: dict[int, dict[int, None]] = {}
  for place, token, _ in row.asked:
    places.setdefault(place, {})[token] = None
  return places


def _note(
  row: Row,
  logps_AxT: np.ndarray,
  likeliest_A: np.ndarray,
  sums: list[float],
  greedy: list[bool],
) -> None:
  """Adds what has been computed of a row to the texts' sums."""
  at = {
    (place, token): (k, n)
    for k, (place, tokens) in enumerate(_by_place(row).items())
    for n, token in enumerate(tokens)
  }
  for place, token, number in row.asked:
    k, n = at[place, token]
    sums[number] += float(logps_AxT[k, n])
    greedy[number] &= bool(likeliest_A[k] == token)


def _split(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
  rows = iter(rows)
  while batch := list(itertools.islice(rows, size)):
    yield batch
