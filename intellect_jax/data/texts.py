"""The tokenized sources of a run: what ships, and what was prepared.

Run and island must mean the same data. So the run half has two digests, of the
tokenizer and of the prepared sources: whoever starts the run (a coordinator, or
an island alone) notes those of its own files, and who joins must have files
with the same. It also notes the chat template of conversations, with which the
model can be spoken to.
"""

import pathlib

from blake3 import blake3
from ml_collections import ConfigDict
import numpy as np

from intellect_jax.data import sources
from intellect_jax.data.manifest import Prepared
from intellect_jax.data.shards import Tokens
from intellect_jax.data.tokenizer import Tokenizer, tokenizer_of
from intellect_jax.errors import UserError

SHIPPED = "python_docs"


class Shipped:
  """The shipped text, tokenized in memory."""

  def __init__(self, held_out: float, tokenizer: Tokenizer):
    """Splits and tokenizes it.

    Raises:
      UserError: if the split leaves no document on one of its sides.
    """
    split = {"train": [], "held_out": []}
    for document in sources.documents():
      is_held_out = sources.is_held_out(document.encode(), held_out)
      split["held_out" if is_held_out else "train"].append(document)
    if not all(split.values()):
      raise UserError(
        f"run.data.held_out is {held_out}, which leaves {len(split['train'])}"
        f" documents for training and {len(split['held_out'])} for evaluation;"
        " both need some. Change it in the config file or with"
        " --config.run.data.held_out=0.05."
      )
    self._tokens = {
      name: _tokenize(documents, tokenizer) for name, documents in split.items()
    }

  def tokens(self, split: str) -> Tokens:
    return self._tokens[split]


Text = Shipped | Prepared


def _tokenize(documents: list[str], tokenizer: Tokenizer) -> Tokens:
  tokens = [
    np.append(tokenizer.encode(d), np.int32(tokenizer.eos)) for d in documents
  ]
  return Tokens.of(np.concatenate(tokens), np.cumsum([len(t) for t in tokens]))


def open_texts(
  data: ConfigDict, tokenizer: Tokenizer, island: ConfigDict | None
) -> list[Text]:
  """Opens the sources of a run, in the order of `run.data.sources`.

  Raises:
    UserError: if one is not here, is damaged, is of another tokenizer, or they
      are not the sources of the run.
  """
  prepared = _prepared(data, tokenizer, island)
  _check_digest(data, prepared)
  if island is not None and island.verify:
    for source in prepared.values():
      source.verify()
  return [
    prepared[name] if name != SHIPPED else Shipped(data.held_out, tokenizer)
    for name in data.sources
  ]


def _prepared(
  data: ConfigDict,
  tokenizer: Tokenizer,
  island: ConfigDict | None,
  files: bool = True,
) -> dict[str, Prepared]:
  """The prepared sources of the run: each must fit its tokenizer."""
  names = [name for name in data.sources if name != SHIPPED]
  if not names:
    return {}
  if island is None or not island.folder:
    raise UserError(
      f"run.data.sources has {', '.join(names)}, and island.data.folder is"
      " empty: set --config.island.data.folder to the folder in which their"
      f" folders are, or train on {SHIPPED!r}, the text that ships in the"
      " package."
    )
  prepared = {}
  for name in names:
    folder = pathlib.Path(island.folder).expanduser() / name
    source = Prepared(folder, files)
    contents = source.contents
    if (contents.tokenizer, contents.eos) != (tokenizer.digest, tokenizer.eos):
      raise UserError(
        f"{source.folder} was prepared with a tokenizer of digest"
        f" {contents.tokenizer[:12]} ({source.about.get('tokenizer')}), but"
        f" run.data.tokenizer={data.tokenizer} has {tokenizer.digest[:12]}."
        " Set run.data.tokenizer to that one, or prepare the source with this"
        " one into another folder."
      )
    prepared[name] = source
  return prepared


def _check_digest(data: ConfigDict, prepared: dict[str, Prepared]) -> None:
  seen = _digest(prepared)
  if data.digest and data.digest != seen:
    raise UserError(
      f"The prepared sources here ({_listed(prepared)}) have digest"
      f" {seen[:12] or 'none'}, but run.data.digest is {data.digest[:12]}: the"
      " run trains on other data. Copy the sources from where the run was"
      " started, or leave run.data.digest empty to start a run on these."
    )


def _listed(prepared: dict[str, Prepared]) -> str:
  return ", ".join(f"{n} {s.digest[:12]}" for n, s in prepared.items())


def _digest(prepared: dict[str, Prepared]) -> str:
  """One digest of all; empty if there are none."""
  text = "\n".join(f"{n} {s.digest}" for n, s in prepared.items())
  return blake3(text.encode()).hexdigest() if text else ""


def identify(config: ConfigDict, files: bool = True) -> None:
  """Notes in the run half which tokenizer and which data this host has.

  The chat template too, if there are conversations.

  Args:
    config: both halves; the run half is changed.
    files: the sources are here, and not their manifests alone.

  Raises:
    UserError: if anything is missing, does not fit, or is not what the run
      half says already; or if its loss is not for data of this form.
  """
  run = config.run
  tokenizer = tokenizer_of(run, config.island.data.folder)
  prepared = _prepared(run.data, tokenizer, config.island.data, files)
  _check_digest(run.data, prepared)
  _check_forms(run, prepared)
  run.data.chat_template = _chat_template(run.data, prepared)
  run.data.tokenizer_digest = tokenizer.digest
  run.data.digest = _digest(prepared)


def _check_forms(run: ConfigDict, prepared: dict[str, Prepared]) -> None:
  dpo = run.inner.loss == "dpo"
  for name in run.data.sources:
    form = prepared[name].form if name in prepared else "text"
    if dpo != (form == "preference"):
      raise UserError(
        f"The source {name!r} is of the form {form!r}, but run.inner.loss is"
        f" {run.inner.loss!r}: 'dpo' is for sources of the form 'preference'"
        " and no others, 'cross_entropy' for 'text' and 'chat'. Set"
        " --config.run.inner.loss or run.data.sources."
      )


def _chat_template(data: ConfigDict, prepared: dict[str, Prepared]) -> str:
  """The one that all conversations were prepared with, or the run's own."""
  found = {
    name: source.contents.chat_template
    for name, source in prepared.items()
    if source.contents.chat_template
  }
  templates = {*found.values(), data.chat_template} - {""}
  if len(templates) > 1:
    raise UserError(
      f"The sources {', '.join(found)} were prepared with other chat templates"
      " than each other, or than run.data.chat_template. Prepare them again"
      " with one --chat_template, and leave run.data.chat_template empty."
    )
  return next(iter(templates), "")
