"""Shares by capacity: those with which the exchange takes least time.

Of n members, i owns the part s_i of a vector, and for each byte of the vector
its link carries

    up     1 - s_i of its own delta,       (n - 1) s_i of the mean to others
    down   (n - 1) s_i of others' deltas,  1 - s_i of the mean from others

both at a time, since shares are read along while they are reduced. So either
way it carries 1 + (n - 2) s_i, and the exchange takes as long as on the slowest
link: a linear program in the s_i and the time.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

_SLACK = 0.01  # of the least time, for shares that are more alike
_HALVINGS = 60  # of an interval: to the last bit
_PARTS = 1_000_000  # of a whole, for weights


@dataclasses.dataclass(frozen=True)
class Link:
  """How a member is connected."""

  up: float  # bytes/s; 0: not known
  down: float
  weight: int  # of its share, as long as no link is known
  relayed: bool = False  # the relay's link counts too: no more than by weight


class Balance:
  """Weights of shares, which do not follow every breath of the links."""

  def __init__(self):
    self._names: list[str] = []
    self._held = np.zeros(0)  # shares of the last attempt, by name

  def weights(self, links: Mapping[str, Link], gain: float) -> list[int]:
    """How large a share suits each member, in their order.

    The shares of before, or those by weight, stay unless the best ones take so
    much less time.

    Args:
      links: by member.
      gain: of time, as a fraction.
    """
    by_weight = [link.weight for link in links.values()]
    base = np.array(by_weight) / sum(by_weight)
    held = self._held if self._names == list(links) else base
    shares = _chosen(list(links.values()), base, held, gain)
    self._names, self._held = list(links), shares
    if np.array_equal(shares, base):
      return by_weight
    return [round(_PARTS * share) for share in shares]


def _chosen(
  links: list[Link], base: np.ndarray, held: np.ndarray, gain: float
) -> np.ndarray:
  rates = completed(links)
  if rates is None or len(links) == 1:
    return base
  up, down = rates
  most = np.where([link.relayed for link in links], base, 1.0)
  best = solve(up, down, base, most)
  enough = seconds(best, up, down) / (1 - gain)
  for shares in (held, base):
    if (shares <= most).all() and seconds(shares, up, down) <= enough:
      return shares
  return best


def completed(links: list[Link]) -> tuple[np.ndarray, np.ndarray] | None:
  """Rates up and down, bytes/s; None if there are none.

  Who has none is like the median of those that have, by weight. A direction
  that nobody knows is like the other one.
  """
  weight = np.array([link.weight for link in links])
  up, down = (
    _filled(np.array(rates), weight)
    for rates in zip(*((link.up, link.down) for link in links), strict=True)
  )
  if not up.any() and not down.any():
    return None
  return (up if up.any() else down), (down if down.any() else up)


def _filled(rates: np.ndarray, weight: np.ndarray) -> np.ndarray:
  known = rates > 0
  if not known.any():
    return rates
  return np.where(known, rates, weight * np.median((rates / weight)[known]))


def seconds(shares: np.ndarray, up: np.ndarray, down: np.ndarray) -> float:
  """Of the exchange of one byte of the vector; float64 [members] each."""
  carried = 1 + (len(shares) - 2) * shares
  return float((carried / np.minimum(up, down)).max())


def solve(
  up: np.ndarray, down: np.ndarray, near: np.ndarray, most: np.ndarray
) -> np.ndarray:
  """The shares with the least `seconds`, or nearly; float64 [members] each.

  Args:
    up: bytes/s.
    down: bytes/s.
    near: shares above 0; of those as good, the result has their proportions.
    most: bounds, with a sum of 1 or more.
  """
  n = len(up)
  if n == 2:
    return near  # both links carry the vector once, whatever the shares
  # Costs half a second, and most runs on one machine never need it.
  from scipy.optimize import linprog

  # So that all numbers are near 1.
  rate = np.minimum(up, down) * seconds(near, up, down)
  # Unknown are the shares and the time: (n - 2) share - rate * time <= -1.
  found = linprog(
    [0.0] * n + [1.0],
    A_ub=np.hstack([np.eye(n) * (n - 2), -rate[:, None]]),
    b_ub=-np.ones(n),
    A_eq=[[1.0] * n + [0.0]],
    b_eq=[1.0],
    bounds=[*((0.0, bound) for bound in most), (0.0, None)],
  )
  if not found.success:  # rates that no link has
    return near
  # Within this time, each share may be anything up to a bound.
  time = (1 + _SLACK) * found.x[n]
  return _within(near, np.minimum(most, (time * rate - 1) / (n - 2)))


def _within(near: np.ndarray, high: np.ndarray) -> np.ndarray:
  """In proportion to `near` as far as bounds allow, with the sum 1."""
  less, more = 0.0, float((high / near).max())
  for _ in range(_HALVINGS):
    scale = (less + more) / 2
    if np.minimum(scale * near, high).sum() < 1:
      less = scale
    else:
      more = scale
  return np.minimum(more * near, high)
