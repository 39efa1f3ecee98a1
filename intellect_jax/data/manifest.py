"""What a prepared source is: its manifest, written by `data.prepare`.

    manifest.json      this
    train-00000.tokens, train-00000.ends         shards, see shards.py
    held_out-00000.tokens, held_out-00000.ends   documents never trained on
    train-00000.mask, held_out-00000.mask        of conversations alone

The digest is over the contents, not over where they came from: who prepares
the same text with the same tokenizer has the same digest, on any machine.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

from blake3 import blake3

from intellect_jax.data.shards import Tokens, map_shard
from intellect_jax.errors import UserError

MANIFEST = "manifest.json"
FORMAT = {"text": 1, "chat": 2, "preference": 2}  # of each form of source
SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class Contents:
  """What the digest is of.

  Attributes:
    format: of these files.
    tokenizer: its digest.
    eos: the id that ends each document.
    dtype: of the ids, such as "<u2".
    splits: of each split its shards in order, as dicts: name, tokens,
      documents, and the hex BLAKE3 of the files: tokens_hash, ends_hash.
    form: "text"; or "chat", conversations; or "preference", of which chosen and
      rejected are two documents, one after the other. Of both of these only a
      part is trained on, and shards have a mask_hash too.
    chat_template: that wrote them, in Jinja.
  """

  format: int
  tokenizer: str
  eos: int
  dtype: str
  splits: dict[str, list[dict[str, Any]]]
  form: str = "text"
  chat_template: str = ""

  def to_dict(self) -> dict[str, Any]:
    """As it is written and hashed: text is as it was before there was chat."""
    fields = dataclasses.asdict(self)
    if self.form == "text":
      del fields["form"], fields["chat_template"]
    return fields

  def digest(self) -> str:
    """Hex BLAKE3 of all of it."""
    text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
    return blake3(text.encode()).hexdigest()

  def count(self, split: str, what: str) -> int:
    """Tokens or documents of a split."""
    return sum(shard[what] for shard in self.splits[split])


class Prepared:
  """A prepared source in a folder.

  Attributes:
    folder: where it is.
    contents: what its digest is of.
    digest: hex BLAKE3.
    about: where it came from, for its reader.
  """

  def __init__(self, folder: pathlib.Path, files: bool = True):
    """Reads the manifest.

    Args:
      folder: of the source.
      files: look that all of them are there, and as large as they were.

    Raises:
      UserError: that names the file, if one is missing or not as it was.
    """
    self.folder = folder
    path = folder / MANIFEST
    if not path.is_file():
      raise UserError(
        f"There is no prepared source in {folder}: it has no {MANIFEST}. Make"
        " it with python -m intellect_jax.data.prepare --output=FOLDER, or set"
        " --config.island.data.folder to the folder that holds the sources'"
        " folders."
      )
    try:
      read = json.loads(path.read_text())
      self.contents = Contents(**read["contents"])
      self.digest, self.about = str(read["digest"]), dict(read["about"])
      computed = self.contents.digest()
      counts = {s: self.contents.count(s, "tokens") for s in SPLITS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(
        f"{path} is no manifest of a prepared source ({error!r}). Prepare the"
        " source again into another folder."
      ) from None
    if computed != self.digest:
      raise UserError(
        f"{path} says that its digest is {self.digest[:12]}, but its contents"
        f" have {computed[:12]}: it was changed. Prepare the source again, or"
        " copy it again from where it is whole."
      )
    form, expected = self.contents.form, FORMAT.get(self.contents.form)
    if self.contents.format != expected:
      raise UserError(
        f"{path} has format {self.contents.format} for {form!r}, and this"
        f" version of intellect_jax reads {expected}. Prepare the source again."
      )
    for split, tokens in counts.items():
      if tokens < 2:
        raise UserError(
          f"The prepared source {folder} has {tokens} tokens in its split"
          f" {split!r}, and both {' and '.join(SPLITS)} need some. Prepare it"
          " again with more text or another --held_out."
        )
    if files:
      self._check_sizes()

  @property
  def form(self) -> str:
    """As in `Contents`."""
    return self.contents.form

  def _files(self):
    """Yields (path, bytes, hex hash) of every file."""
    width = int(self.contents.dtype[-1])
    for split in SPLITS:
      for shard in self.contents.splits[split]:
        tokens, documents = shard["tokens"], shard["documents"]
        sizes = dict(tokens=width * tokens, ends=8 * documents)
        if self.contents.form != "text":
          sizes.update(mask=tokens)
        for kind, size in sizes.items():
          path = self.folder / f"{shard['name']}.{kind}"
          yield path, size, shard[f"{kind}_hash"]

  def _check_sizes(self) -> None:
    for path, size, _ in self._files():
      seen = path.stat().st_size if path.is_file() else None
      if seen != size:
        found = "is missing" if seen is None else f"has {seen} bytes"
        raise UserError(
          f"{path} {found}, and its manifest says {size} bytes. Copy or"
          " prepare the source again."
        )

  def verify(self) -> None:
    """Hashes all files: at the speed of the disk.

    Raises:
      UserError: naming the first file that is not as it was.
    """
    for path, _, expected in self._files():
      seen = hash_of(path)
      if seen != expected:
        raise UserError(
          f"{path} has the BLAKE3 {seen[:12]}, and its manifest says"
          f" {expected[:12]}: the file is damaged. Copy or prepare the source"
          " again."
        )

  def tokens(self, split: str) -> Tokens:
    """The documents of a split, end to end."""
    return self._stream(split, "tokens", self.contents.dtype)

  def mask(self, split: str) -> Tokens:
    """For each of their tokens 1, if it is trained on, or 0; not of text."""
    return self._stream(split, "mask", "u1")

  def _stream(self, split: str, kind: str, dtype: str) -> Tokens:
    shards = self.contents.splits[split]
    paths = [self.folder / f"{shard['name']}.{kind}" for shard in shards]
    return Tokens(
      [shard["tokens"] for shard in shards],
      functools.partial(_map, paths, dtype),
    )


def _map(paths: list[pathlib.Path], dtype: str, number: int):
  return map_shard(paths[number], dtype)


def write(
  folder: pathlib.Path, contents: Contents, about: dict[str, Any]
) -> None:
  """Writes the manifest, whole or not at all."""
  document = dict(
    digest=contents.digest(),
    contents=contents.to_dict(),
    about=about,
  )
  partial = folder / f"{MANIFEST}.partial"
  partial.write_text(json.dumps(document, indent=1) + "\n")
  partial.rename(folder / MANIFEST)


def hash_of(path: pathlib.Path) -> str:
  """Hex BLAKE3 of a file."""
  hasher = blake3(max_threads=blake3.AUTO)
  if path.stat().st_size:  # an empty file cannot be mapped
    hasher.update_mmap(path)
  return hasher.hexdigest()
