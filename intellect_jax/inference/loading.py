"""A trained model, from an island's workdir or a Hugging Face folder."""

import dataclasses
import itertools
import pathlib

from blake3 import blake3
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from intellect_jax import config as config_lib
from intellect_jax.checkpoint import adapters, pretrained
from intellect_jax.checkpoint.durable import read_outer
from intellect_jax.checkpoint.tensors import read_json
from intellect_jax.data import chat
from intellect_jax.data.tokenizer import (
  Tokenizer,
  make_tokenizer,
  tokenizer_of,
)
from intellect_jax.errors import UserError
from intellect_jax.model import llama, sharding
from intellect_jax.model.huggingface import model_fields

_TOKENIZERS = (pretrained.TOKENIZER, "tokenizer.model")


@dataclasses.dataclass(frozen=True)
class Model:
  """Parameters on a mesh, and what it takes to use them.

  Attributes:
    c: the model; its dtype is that of compute.
    params: float32, on the mesh.
    mesh: over which params, batches and caches are sharded.
    tokenizer: text to ids.
    template: messages to the text of a conversation.
    context: tokens of the texts that it was trained on, at most.
    stops: ids that end a text.
    bos: ids that its tokenizer puts before every text; mostly none, or one.
    name: of the run or the folder, for people.
    digest: hex BLAKE3 of the parameters, as theta or the files of weights.
  """

  c: llama.LlamaConfig
  params: llama.Params
  mesh: Mesh
  tokenizer: Tokenizer
  template: chat.ChatTemplate
  context: int
  stops: frozenset[int]
  bos: tuple[int, ...]
  name: str
  digest: str = ""

  def encode(self, text: str) -> list[int]:
    """The ids of a text, in which names of special tokens are those tokens."""
    ids = self.tokenizer.tokenize(text).ids.tolist()
    begun = self.bos == tuple(ids[: len(self.bos)])  # by a chat template
    return ids if begun else [*self.bos, *ids]


def open_model(
  folder: pathlib.Path, island: ConfigDict, dtype: str = "", context: int = 0
) -> Model:
  """Opens what a run has trained, or what `export` and others have written.

  Args:
    folder: workdir of an island, whose newest checkpoint is read; or a folder
      with config.json, weights and a tokenizer.
    island: `island` of a config; its mesh and model count.
    dtype: of compute; empty: the model's own.
    context: in place of the model's own; 0: that.

  Raises:
    UserError: if the folder is neither, or not of a model that fits the mesh.
  """
  if (folder / pretrained.CONFIG).is_file():
    run, c, params, more, digest = _from_folder(folder)
    tokenizer = make_tokenizer(run.data.tokenizer, folder)
  else:
    outer = read_outer(folder / "checkpoints")
    run, more = config_lib.from_dict(outer.meta["run"]), frozenset()
    c, params = adapters.whole(run, outer.theta, folder)
    values = outer.theta.data.cast("B")
    digest = blake3(values, max_threads=blake3.AUTO).hexdigest()
    tokenizer = tokenizer_of(run, folder)
  c = dataclasses.replace(c, dtype=dtype or c.dtype, **island.model.to_dict())
  mesh = sharding.make_mesh(island.mesh.fsdp, island.mesh.tensor)
  return Model(
    c,
    jax.device_put(params, sharding.param_shardings(c, mesh)),
    mesh,
    tokenizer,
    chat.ChatTemplate(tokenizer, _template(folder)),
    context or run.data.sequence_length,
    more | {tokenizer.eos},
    _bos(folder / pretrained.TOKENIZER),
    run.name or folder.name,
    digest,
  )


def _from_folder(
  folder: pathlib.Path,
) -> tuple[ConfigDict, llama.LlamaConfig, llama.Params, frozenset[int], str]:
  """A run half that says what it is, model, weights, ids that stop, digest."""
  theirs = read_json(folder / pretrained.CONFIG)
  run = config_lib.base().run
  run.name = ""
  run.model.update(model_fields(theirs))
  run.data.sequence_length = theirs.get("max_position_embeddings", 2048)
  names = [name for name in _TOKENIZERS if (folder / name).is_file()]
  if not names:
    raise UserError(
      f"There is no tokenizer in {folder}: it takes a {_TOKENIZERS[0]} or a"
      f" {_TOKENIZERS[1]}, as intellect_jax.export writes it."
    )
  run.data.tokenizer = names[0]
  c = llama.LlamaConfig.of(run.model, config_lib.base().island.model)
  weights = pretrained.Weights(folder)
  params = weights.read(llama.abstract_params(c))
  return run, c, params, _stops(folder), weights.digest


def _template(folder: pathlib.Path) -> str:
  """The chat template that comes with the tokenizer; empty: none."""
  if (folder / chat.FILE).is_file():
    return chat.read_template(folder / chat.FILE)
  path = folder / "tokenizer_config.json"
  if path.is_file() and "chat_template" in read_json(path):
    return chat.read_template(path)
  return ""


def _stops(folder: pathlib.Path) -> frozenset[int]:
  """What generation_config.json says ends a text: an id, or several."""
  path = folder / "generation_config.json"
  told = read_json(path).get("eos_token_id") if path.is_file() else None
  return frozenset([told] if isinstance(told, int) else told or ())


def _bos(tokenizer: pathlib.Path) -> tuple[int, ...]:
  """The ids that a tokenizer.json puts before every text."""
  if not tokenizer.is_file():
    return ()
  processor = read_json(tokenizer).get("post_processor") or {}
  for part in processor.get("processors", [processor]):
    pieces = iter(part.get("single", ()))  # of a TemplateProcessing
    names = itertools.takewhile(lambda piece: "SpecialToken" in piece, pieces)
    ids = [
      part["special_tokens"][p["SpecialToken"]["id"]]["ids"] for p in names
    ]
    if ids:
      return tuple(itertools.chain(*ids))
  return ()
