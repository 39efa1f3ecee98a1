"""The text that ships, and which of any text is kept for evaluation."""

import hashlib
import lzma
import pathlib

from intellect_jax.errors import UserError

SHIPPED = pathlib.Path(__file__).with_name("shipped")
SEPARATOR = "\x1e"  # between two documents of a shipped text

# A new file, made by the script beside it, needs a new digest here. Losses of
# runs with the old file then compare no more with those of the new one.
SHA256 = {
  "python_docs.txt.xz": (
    "80e73da67a3ce974675358907323afe93dec13ff3c8cc0aa43d697e1a375b882"
  ),
  "tekken.tiktoken.xz": (
    "24a614d887e3f81ec08abd21c0b6e21d8b9440d59ac77ca8093b4f5fba22174c"
  ),
}


def documents() -> list[str]:
  """Returns the documents of the shipped text, always in the same order."""
  return read_shipped("python_docs.txt.xz").split(SEPARATOR)


def is_held_out(document: bytes, fraction: float) -> bool:
  """Whether a document is kept for evaluation and never trained on.

  A function of the document's bytes alone: the same on every island, whatever
  the order of the documents, and the same for two copies of a document. What
  a small fraction holds out, a larger one holds out too.
  """
  digest = hashlib.sha256(document).digest()
  return int.from_bytes(digest[:8], "big") < fraction * 2**64


def read_shipped(name: str) -> str:
  """Returns a text file of the package, checked and unpacked.

  Raises:
    UserError: if the file is not, byte for byte, the one that was shipped.
  """
  packed = (SHIPPED / name).read_bytes()
  if (seen := hashlib.sha256(packed).hexdigest()) != SHA256[name]:
    raise UserError(
      f"{SHIPPED / name} has the SHA-256 {seen}, but this version of"
      f" intellect_jax was made with {SHA256[name]}. The file is damaged or"
      " of another version; install the package again."
    )
  return lzma.decompress(packed).decode()
