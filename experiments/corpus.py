"""Makes a real mixture of three sources, about 30 MB: `make corpus`.

  python experiments/corpus.py --output=runs/corpus

    docs    Python's documentation, its sources: Debian's package python3-doc,
            PSF-2.0
    words   WordNet 3.0, definitions and examples: Debian's wordnet-base,
            Princeton's WordNet license
    code    the standard library of the Python that runs this, without tests:
            PSF-2.0

Packages are fetched by apt-get and unpacked here; nothing is installed, and it
takes no root. The license texts come to licenses/, and what is made from the
sources falls under them. configs/corpus.py trains on it.
"""

from collections.abc import Iterator
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import sysconfig

from absl import app, flags

OUTPUT = flags.DEFINE_string("output", "runs/corpus", "Folder for all of it.")

TOKENIZER = "bpe:8192"  # of configs/corpus.py too
HELD_OUT = 0.02
TOGETHER = 40  # entries of WordNet in one document; neighbours are related
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests"}


def main(argv) -> None:
  del argv
  output = pathlib.Path(OUTPUT.value).absolute()
  texts = output / "texts"
  if not (output / "fetched.done").exists():
    for package in (_documentation(), "wordnet-base"):
      _fetch(package, output)
    (output / "fetched.done").touch()
  shutil.rmtree(texts, ignore_errors=True)
  fetched = output / "fetched"
  copy(fetched.glob("usr/share/doc/*/html"), texts / "docs", "*.rst.txt")
  write_words(fetched / "usr/share/wordnet", texts / "words.jsonl")
  library = pathlib.Path(sysconfig.get_path("stdlib"))
  copy([library], texts / "code", "*.py")
  _keep_licenses(fetched, library, output / "licenses")
  for name, given in (
    ("docs", texts / "docs"),
    ("words", texts / "words.jsonl"),
    ("code", texts / "code"),
  ):
    _prepare(given, output / "prepared" / name)
  print(
    f"\nThree sources are in {output}/prepared, their licenses in"
    f" {output}/licenses. Next:\n\n  python -m intellect_jax.swarm"
    " --config=configs/corpus.py --islands=3 \\\n"
    f"      --config.island.data.folder={output}/prepared"
    f" --workdir={output}/run"
  )


def _documentation() -> str:
  """The package that python3-doc stands for: python3.11-doc or another."""
  told = _say("apt-cache", "depends", "python3-doc")
  names = [line.split()[-1] for line in told.splitlines() if "Depends:" in line]
  names = [name for name in names if name.endswith("-doc")]
  if not names:
    sys.exit(
      "apt-cache knows no package python3-doc. This takes Debian, Ubuntu or"
      " the like, and its lists of packages: run apt-get update first."
    )
  return names[0]


def _fetch(package: str, output: pathlib.Path) -> None:
  """Downloads a package and unpacks it; nothing is installed."""
  downloads = output / "packages"
  downloads.mkdir(parents=True, exist_ok=True)
  print(f"fetching {package}", flush=True)
  _say("apt-get", "download", package, folder=downloads)
  (archive,) = downloads.glob(f"{package}_*.deb")
  _say("dpkg-deb", "-x", str(archive), str(output / "fetched"))


def _say(*command: str, folder: pathlib.Path | None = None) -> str:
  try:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  except FileNotFoundError:
    sys.exit(f"There is no {command[0]}: this takes Debian or the like.")
  if done.returncode:
    sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()}")
  return done.stdout


def copy(folders, to: pathlib.Path, pattern: str) -> None:
  """Copies the text files that are not tests."""
  for folder in folders:
    for path in sorted(folder.rglob(pattern)):
      place = path.relative_to(folder)
      if not NOT_THE_LIBRARY.isdisjoint(place.parts):
        continue
      (to / place).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(path, to / place)


def write_words(wordnet: pathlib.Path, to: pathlib.Path) -> None:
  """Writes WordNet as JSON lines, some entries a document."""
  with open(to, "w") as file:
    for part in ("noun", "verb", "adj", "adv"):
      read = entries(wordnet / f"data.{part}")
      while group := list(itertools.islice(read, TOGETHER)):
        text = "\n".join(f"{words} ({part}): {gloss}" for words, gloss in group)
        file.write(json.dumps(dict(text=text)) + "\n")


def entries(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields words and gloss of each set of synonyms in a data file."""
  for line in path.read_text().splitlines():
    if line.startswith("  "):  # the license
      continue
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    count = int(fields[3], 16)
    words = (fields[4 + 2 * i].replace("_", " ") for i in range(count))
    yield ", ".join(words), gloss.strip()


def _keep_licenses(
  fetched: pathlib.Path, library: pathlib.Path, to: pathlib.Path
) -> None:
  to.mkdir(exist_ok=True)
  for path in fetched.glob("usr/share/doc/*/copyright"):
    shutil.copyfile(path, to / path.parent.name)
  if (library / "LICENSE.txt").exists():
    shutil.copyfile(library / "LICENSE.txt", to / "code")


def _prepare(given: pathlib.Path, output: pathlib.Path) -> None:
  command = [
    *(sys.executable, "-m", "intellect_jax.data.prepare"),
    *(f"--input={given}", f"--output={output}", f"--tokenizer={TOKENIZER}"),
    f"--held_out={HELD_OUT}",
  ]
  if subprocess.run(command).returncode:
    sys.exit(f"{given} could not be prepared; it is said above why.")


if __name__ == "__main__":
  app.run(main)
