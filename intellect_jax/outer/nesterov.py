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
) -> None:
  """Applies one outer step in place: DiLoCo, arXiv 2311.08105, algorithm 1.

    b     <- mu b + d
    theta <- theta - eta (d + mu b)

  as torch.optim.SGD and optax.sgd with nesterov=True compute it. Every
  operation is rounded to float32 in this order, so that islands which start
  from the same bits end with the same bits. Values are independent: threads
  may apply disjoint ranges.

  Args:
    theta: outer parameters, float32 [n], overwritten.
    momentum: b, float32 [n], overwritten.
    mean: d, the decoded mean of the deltas, float32 [n].
    learning_rate: eta, taken as float32.
    mu: momentum, taken as float32.
  """
  chex.assert_equal_shape([theta, momentum, mean])
  kernels.nesterov(
    theta, momentum, mean, np.float32(learning_rate), np.float32(mu)
  )
