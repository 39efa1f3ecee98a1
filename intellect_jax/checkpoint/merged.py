"""Models merged: the tensors of the result, a piece at a time.

What a merge has to know of a tensor, or of a model, as a whole (an angle, the
magnitude to trim at) is found by reading it once before. So memory holds a
piece of each model, whatever their size.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from intellect_jax.checkpoint import tensors
from intellect_jax.checkpoint.pretrained import TOKENIZER
from intellect_jax.checkpoint.tensors import Folder
from intellect_jax.errors import UserError
from intellect_jax.model import merging

Cut = Callable[[int, np.ndarray], np.ndarray]  # of a model's task vector

WITHOUT_BASE = ("linear", "slerp")
METHODS = (
  *WITHOUT_BASE,
  "task_arithmetic",
  "ties",
  "dare_linear",
  "dare_ties",
)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to merge; see model/merging.py.

  Attributes:
    method: one of METHODS.
    weights: of the models, relative to each other.
    density: part of a task vector that ties and dare keep.
    scale: factor on the merged task vector.
    t: of slerp.
    trim: "tensor" or "model", of which ties keeps the largest part.
    seed: of what dare drops.
  """

  method: str
  weights: Sequence[float]
  density: float = 0.2
  scale: float = 1.0
  t: float = 0.5
  trim: str = "tensor"
  seed: int = 0

  def settings(self) -> list[str]:
    """Those that matter to the method, in words."""
    if self.method in WITHOUT_BASE:
      return [f"t {self.t:g}"] if self.method == "slerp" else []
    told = [f"scale {self.scale:g}"]
    if self.method != "task_arithmetic":
      told.append(f"density {self.density:g}")
    if self.method == "ties":
      told.append(f"trimmed by {self.trim}")
    if self.method.startswith("dare"):
      told.append(f"seed {self.seed}")
    return told

  def check(self, models: int, has_base: bool) -> None:
    """Raises UserError if so many models cannot be merged like this."""
    if models < 2:
      raise UserError("A merge takes two models or more: repeat --model=….")
    if self.method == "slerp" and models != 2:
      raise UserError(
        f"slerp lies between two models, and --model names {models}. Merge two"
        " at a time, or take --method=linear."
      )
    if has_base == (self.method in WITHOUT_BASE):
      raise UserError(
        f"--method={self.method} takes no --base: it is not between the models."
        if has_base
        else f"--method={self.method} merges differences from what the models"
        " were tuned from: say what that is, with --base=FOLDER."
      )
    if len(self.weights) != models or not sum(self.weights) > 0:
      raise UserError(
        f"--weight gives {list(self.weights)} for {models} models. Give one"
        " each, in the order of --model, and not all 0; or none."
      )


class Merged:
  """The result of a merge.

  Attributes:
    shapes: of its tensors by name.
  """

  def __init__(
    self, recipe: Recipe, models: Sequence[Folder], base: Folder | None
  ):
    """Reads nothing yet but for ties with trim="model".

    Args:
      recipe: checked.
      models: in the order of its weights.
      base: what they were tuned from, if the method wants it.

    Raises:
      UserError: if they are no models of one shape.
    """
    self._recipe, self._models, self._base = recipe, models, base
    first, *others = models if base is None else (base, *models)
    for other in others:
      _check_alike(first, other)
    self.shapes = first.shapes
    self._thresholds: list[float] | None = None
    if recipe.method == "ties" and recipe.trim == "model":
      self._thresholds = self._largest(list(self.shapes))

  def pieces(self, name: str) -> Iterator[np.ndarray]:
    """Yields the values of a tensor, float32, in order."""
    recipe = self._recipe
    if recipe.method == "linear":
      for models in self._read(name):
        yield merging.linear(models, recipe.weights)
    elif recipe.method == "slerp":
      cosine = merging.cosine((x, y) for x, y in self._read(name))
      a, b = map(np.float32, merging.slerp_factors(recipe.t, cosine))
      for x, y in self._read(name):
        yield a * x + b * y
    else:
      elects = recipe.method.endswith("ties")
      combine = merging.elect if elects else merging.task_arithmetic
      cut = self._cut(name)
      for base, deltas in self._deltas([name], range(len(self._models))):
        deltas = [cut(i, delta) for i, delta in enumerate(deltas)]
        yield combine(base, deltas, recipe.weights, recipe.scale)

  def _read(self, name: str) -> Iterator[list[np.ndarray]]:
    """Yields a tensor's pieces, of all models."""
    for rows in tensors.row_pieces(self.shapes[name]):
      yield [model.read(name, rows) for model in self._models]

  def _cut(self, name: str) -> Cut:
    """Cuts down what models have learnt in a tensor, piece after piece."""
    recipe, models = self._recipe, range(len(self._models))
    if recipe.method == "ties":
      thresholds = self._thresholds or self._largest([name])
      return lambda model, delta: merging.trim(delta, thresholds[model])
    if recipe.method.startswith("dare"):
      drawn = [merging.generator_of(recipe.seed, i, name) for i in models]
      return lambda model, delta: merging.drop(
        delta, recipe.density, drawn[model]
      )
    return lambda model, delta: delta

  def _deltas(
    self, names: Sequence[str], models: Sequence[int]
  ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yields pieces of the base, and of what models have learnt since."""
    assert self._base is not None  # the recipe is checked
    for name in names:
      for rows in tensors.row_pieces(self.shapes[name]):
        base = self._base.read(name, rows)
        read = [self._models[i].read(name, rows) for i in models]
        yield base, [x - base for x in read]

  def _largest(self, names: list[str]) -> list[float]:
    """Where to trim each model, for these tensors together."""
    size = sum(math.prod(self.shapes[name]) for name in names)

    def of_model(model: int) -> float:
      def pieces() -> Iterator[np.ndarray]:
        return (delta for _, (delta,) in self._deltas(names, [model]))

      return merging.largest(pieces, self._recipe.density, size)

    return [of_model(i) for i in range(len(self._models))]


# In config.json: fields without which equal shapes still mean another model.
_OF_ONE_MODEL = (
  "model_type",
  "hidden_act",
  "head_dim",
  "num_attention_heads",
  "num_key_value_heads",
  "rms_norm_eps",
  "rope_theta",
  "rope_parameters",
  "rope_scaling",
  "sliding_window",
  "tie_word_embeddings",
)


def _check_alike(first: Folder, other: Folder) -> None:
  """Raises UserError unless two folders have models of one shape."""
  differing = [
    f"{name} has shape {_shape(first, name)} there and {_shape(other, name)}"
    " here"
    for name in dict.fromkeys(itertools.chain(first.shapes, other.shapes))
    if first.shapes.get(name) != other.shapes.get(name)
  ]
  ours, theirs = _config(first), _config(other)
  differing += [
    f"{name} is {ours[name]} there and {theirs[name]} here"
    for name in _OF_ONE_MODEL
    if name in ours and name in theirs and ours[name] != theirs[name]
  ]
  vocabularies = [v for f in (first, other) if (v := _vocabulary(f))]
  if vocabularies[:1] != vocabularies[-1:]:
    differing.append("its tokenizer.json has another vocabulary")
  if differing:
    more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise UserError(
      f"{other.path} cannot be merged with {first.path}:"
      f" {'; '.join(differing[:3])}{more}. Merge models of one shape alone,"
      " tuned from one base."
    )


def _shape(folder: Folder, name: str) -> str:
  return str(folder.shapes[name]) if name in folder.shapes else "none"


def _config(folder: Folder) -> dict[str, Any]:
  return tensors.read_json(folder.path / tensors.CONFIG)


def _vocabulary(folder: Folder) -> Any:
  """What ids mean, as far as the folder says."""
  path = folder.path / TOKENIZER
  if not path.is_file():
    return None
  return tensors.read_json(path).get("model", {}).get("vocab")
