"""AdamW or Muon, what is decayed, and the learning rate."""

import itertools
import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax
import optax.contrib


def make_optimizer(run_inner: ConfigDict) -> optax.GradientTransformation:
  """AdamW (arXiv 1711.05101) up to the learning rate, after a norm clip.

  With `optimizer` "muon", the matrices of the blocks are Muon's (arXiv
  2502.16982) instead of Adam's; clip, decay and learning rate stay the same.

  The learning rate is left out, and with it optax's count of steps: the
  schedule follows the tokens of the whole swarm (`learning_rate`), while the
  moments' own count, for their bias correction, stays with them.
  """
  scale = optax.scale_by_adam(
    run_inner.beta1, run_inner.beta2, run_inner.epsilon
  )
  if run_inner.optimizer == "muon":
    scale = optax.partition(
      {"muon": _scale_by_muon(run_inner), "adam": scale}, _muon_or_adam
    )
  return optax.chain(
    optax.clip_by_global_norm(run_inner.clip_norm),
    scale,
    optax.add_decayed_weights(run_inner.weight_decay, mask=decays),
  )


def _scale_by_muon(run_inner: ConfigDict) -> optax.GradientTransformation:
  """Orthogonalized momentum, as large as an update of Adam's.

  An orthogonal matrix has a root mean square of max(rows, columns)^-1/2; made
  muon_rms, one learning rate and one decay are right for both.
  """

  def size(update_NxIxO, axes):
    rows, columns = (
      math.prod(update_NxIxO.shape[i] for i in side) for side in axes
    )
    return run_inner.muon_rms * max(rows, columns) ** 0.5 * update_NxIxO

  return optax.chain(
    optax.contrib.scale_by_muon(
      beta=run_inner.muon_beta, weight_dimension_numbers=_matrices
    ),
    optax.stateless(lambda u, _: jax.tree.map(size, u, _matrices(u))),
  )


def _muon_or_adam(params):
  """Muon for the matrices between residual stream and residual stream.

  Not for norms, and not for the two tables of tokens, whose rows are apart.
  """

  def choose(path, _):
    block, norm = path[0].key == "blocks", path[-1].key.endswith("norm")
    return "muon" if block and not norm else "adam"

  return jax.tree.map_with_path(choose, params)


def _matrices(params):
  """Which axes are rows and columns: layers are neither, heads go together."""

  def axes(path, leaf):
    out_of_heads = path[-1].key.startswith("output")
    first_column = leaf.ndim - 1 if out_of_heads else 2
    return optax.contrib.MuonDimensionNumbers(
      tuple(range(1, first_column)), tuple(range(first_column, leaf.ndim))
    )

  return jax.tree.map_with_path(axes, params)


def decays(params):
  """True for what is decayed: all but the scales of norms.

  By name: stacked norm scales have two axes, like matrices.
  """
  return jax.tree.map_with_path(
    lambda path, _: not path[-1].key.endswith("norm"), params
  )


def as_params(opt_state, of_params, otherwise):
  """A tree like `opt_state`: for each moment, what its parameter has.

  Args:
    opt_state: of `make_optimizer`; moments stand under the parameters' keys.
    of_params: a tree like the parameters, or like any part that has moments.
    otherwise: for counts and the like.
  """

  def keys(path) -> tuple[str, ...]:
    is_key = lambda entry: isinstance(entry, jax.tree_util.DictKey)  # noqa: E731
    return tuple(e.key for e in itertools.takewhile(is_key, path[::-1]))

  found = {keys(path): x for path, x in jax.tree.leaves_with_path(of_params)}
  return jax.tree.map_with_path(
    lambda path, _: found.get(keys(path), otherwise), opt_state
  )


def learning_rate(run_inner: ConfigDict, total_tokens: float, position):
  """Warm-up, stable, decay (arXiv 2405.18392): linear up, `decay` down.

  Args:
    run_inner: learning_rate (peak), warmup_tokens, decay_tokens, decay and
      decay_to.
    total_tokens: where the run ends and the rate reaches decay_to of its peak.
    position: tokens the swarm has trained on, a scalar, traced or not.

  Returns:
    A float32 scalar.
  """
  # As floats: a run has more tokens than an int32 can count.
  warmup, decay = float(run_inner.warmup_tokens), float(run_inner.decay_tokens)
  position = jnp.asarray(position, jnp.float32)
  rate = jnp.float32(run_inner.learning_rate)
  if warmup:
    rate *= jnp.clip(position / warmup, 0, 1)
  if decay:
    way = jnp.clip((position - (total_tokens - decay)) / decay, 0, 1)
    fallen = _FALLEN[run_inner.decay](way)
    rate *= 1 - (1 - jnp.float32(run_inner.decay_to)) * fallen
  return rate


_FALLEN = {  # part of the way down, after a part of the tokens
  "sqrt": jnp.sqrt,
  "linear": lambda way: way,
  "cosine": lambda way: (1 - jnp.cos(jnp.pi * way)) / 2,
}
