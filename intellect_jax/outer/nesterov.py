"""The outer optimizer: SGD with Nesterov momentum on the mean delta."""

import chex
import numpy as np

from intellect_jax.outer import kernels


def apply(
  theta: np.ndarray,
  momentum: np.ndarray,
  mean: np.ndarray,
  learning_rate: float,
  mu: float,
  scale: float = 1.0,
) -> None:
  """Applies one outer step in place: DiLoCo, arXiv 2311.08105, algorithm 1.

    d     =  scale mean
    b     <- mu b + d
    theta <- theta - eta (d + mu b)

  as torch.optim.SGD and optax.sgd with nesterov=True compute it. Every
  operation is rounded to float32 in this order, so that islands which start
  from the same bits end with the same bits. Values are independent: threads
  may apply disjoint ranges.

  Args:
    theta: outer parameters, float32 [n], overwritten.
    momentum: b, float32 [n], overwritten.
    mean: the decoded mean of the deltas, float32 [n].
    learning_rate: eta, taken as float32.
    mu: momentum, taken as float32.
    scale: factor on the mean (see `merge.py`), taken as float32. With 1 the
      bits are those without a factor.
  """
  chex.assert_equal_shape([theta, momentum, mean])
  kernels.nesterov(
    theta,
    momentum,
    mean,
    np.float32(scale),
    np.float32(learning_rate),
    np.float32(mu),
  )


def gain(mu: float, along: float, square: float) -> float:
  """How many times its own length d a step goes in the direction of d.

    1 + mu + mu^2 <b_before, d> / |d|^2  =  1 + mu <b, d> / |d|^2

  1 + mu at the first step; it grows to 1 / (1 - mu) if all steps have one
  direction, and falls below 1 where they turn back.

  Args:
    mu: momentum of the step.
    along: <b, d>, with b after the step.
    square: |d|^2, above 0.
  """
  return 1 + mu * along / square
