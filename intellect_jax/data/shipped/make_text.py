"""Makes `python_docs.txt.xz`: prose from Python's documentation.

Two sources that every Python 3.11 carries: the language reference behind
`help("with")` (`pydoc_data.topics`), and the docstrings of the standard
library, read without importing it. One document a topic, one a module:

  python make_text.py           # writes beside itself, prints the digest

The result depends on the patch release (3.11.7 made what is shipped), so it is
fixed by the digest in `intellect_jax/data/sources.py`. Its license is
PSF-2.0: LICENSE.python_docs.txt.
"""

import ast
from collections.abc import Iterator
import hashlib
import lzma
import pathlib
from pydoc_data import topics
import re
import sysconfig
import warnings

OUTPUT = pathlib.Path(__file__).with_name("python_docs.txt.xz")
SEPARATOR = "\x1e"  # ASCII's record separator stands between two documents
NOT_THE_LIBRARY = {"site-packages", "test", "tests", "idle_test"}
DEFINITION = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

# A paragraph is no prose if it has a prompt, a grammar rule, a line drawn with
# punctuation, an address or a copyright in it, or too many odd characters.
NOT_PROSE = re.compile(
  r">>>|^ *\.\.\. |::=|[-=+|#*~]{3}|\w@\w|copyright", re.MULTILINE | re.I
)
UNDERLINE = re.compile(r"\n *([-=*~^#])\1{2,}(?=\n|$)")  # of a heading
ENGLISH = re.compile(r"[A-Za-z \n.,;:'’‘\"“”()-]")
PROSE = 0.92
REPEATABLE = 60  # characters; a shorter paragraph may occur again
SHORTEST = 200  # characters of a document; some topics repeat all but headings


def main() -> None:
  long_enough = [d for d in documents() if len(d) >= SHORTEST]
  text = SEPARATOR.join(long_enough).encode()
  packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
  OUTPUT.write_bytes(packed)
  print(f"{len(long_enough)} documents, {len(text)} bytes")
  print(f"SHA-256 when packed: {hashlib.sha256(packed).hexdigest()}")


def documents() -> Iterator[str]:
  """Yields the documents: topics, longest first, then modules by name."""
  seen: set[str] = set()
  # The longest are whole chapters; most of the others are cut out of them.
  for topic in sorted(topics.topics.values(), key=lambda t: (-len(t), t)):
    yield fresh_prose(topic, seen)
  library = pathlib.Path(sysconfig.get_path("stdlib"))
  for path in sorted(library.rglob("*.py")):
    module = path.relative_to(library).with_suffix("")
    if NOT_THE_LIBRARY.isdisjoint(module.parts):
      with warnings.catch_warnings(action="ignore"):
        tree = ast.parse(path.read_bytes())
      entries = [
        f"{name}\n\n{prose}".lstrip()
        for name, docstring in docstrings(tree)
        if (prose := fresh_prose(docstring, seen))
      ]
      title = ".".join(module.parts).removesuffix(".__init__")
      yield "\n\n".join([title, *entries])


def docstrings(node: ast.AST, name: str = "") -> Iterator[tuple[str, str]]:
  """Yields name and docstring of a module ("") and of all that is in it."""
  documented = isinstance(node, ast.Module | DEFINITION)
  if documented and (docstring := ast.get_docstring(node)):
    yield name, docstring
  for child in ast.iter_child_nodes(node):
    if isinstance(child, DEFINITION):
      yield from docstrings(child, f"{name}.{child.name}".lstrip("."))
    else:
      yield from docstrings(child, name)


def fresh_prose(text: str, seen: set[str]) -> str:
  """The paragraphs of `text` that read as English and are not in `seen`."""
  fresh = []
  text = UNDERLINE.sub("", text.expandtabs())
  for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
    words = " ".join(paragraph.split())
    if words in seen or not is_prose(paragraph):
      continue
    fresh.append(paragraph.rstrip())
    if len(words) >= REPEATABLE:
      seen.add(words)
  return "\n\n".join(fresh)


def is_prose(paragraph: str) -> bool:
  english = len(ENGLISH.findall(paragraph))
  return not NOT_PROSE.search(paragraph) and english > PROSE * len(paragraph)


if __name__ == "__main__":
  main()
