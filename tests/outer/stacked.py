"""Names of tensors as a stacked model has them, for tests of the layout."""

from collections.abc import Iterator
from typing import NamedTuple


class Name(NamedTuple):
  name: str
  path: tuple[str, ...]
  layer: int | None


def of_layer(layer: int) -> Iterator[Name]:
  """Two tensors of a layer, each a row of a stacked leaf."""
  prefix = f"model.layers.{layer}"
  yield Name(f"{prefix}.self_attn.q_proj.weight", ("blocks", "q"), layer)
  yield Name(f"{prefix}.input_layernorm.weight", ("blocks", "norm"), layer)
