"""Sizes of arrays: a few, so that few programs are compiled."""


def rounded(size: int, least: int = 1) -> int:
  """The least power of two times `least` that is no smaller than `size`."""
  while least < size:
    least *= 2
  return least
