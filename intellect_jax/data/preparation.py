"""Tokenizing a source once, in parallel and so that a kill loses little.

The files are cut into parts, which only their sizes decide: the same input
gives the same parts on any machine, with any number of processes. A part
becomes one shard of each split, by one process, and then a note is left:

    plan.json          what was asked for; another plan may not go on here
    part-00012.json    shards and counts of a part that is done
    *.partial          of a process that works, or was killed

A preparation that goes on does the parts without a note. At the end the notes
become the manifest.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import time
from typing import Any

from absl import logging
from blake3 import blake3
import numpy as np

from intellect_jax.data import (
  conversations,
  files,
  manifest,
  readers,
  sources,
)
from intellect_jax.data.chat import ChatTemplate
from intellect_jax.data.manifest import Contents, Prepared
from intellect_jax.data.readers import Fields, Piece, Record
from intellect_jax.data.shards import ShardWriter
from intellect_jax.data.tokenizer import Tokenizer, make_tokenizer
from intellect_jax.errors import UserError

PARTS = 64  # that an input is cut into, unless they get too small or too large
SMALLEST, LARGEST = 2**22, 2**28  # bytes of a part's input
_PLAN = "plan.json"
_TOLD = 64  # documents between two words about progress
_TIMED = 16  # documents of which the time of one in the tokenizer is taken
_SPAWN = multiprocessing.get_context("spawn")


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is asked for, apart from where the input and the output are.

  Attributes:
    tokenizer: as make_tokenizer takes it.
    fields: how records are read, and what form of source they become.
    format: a key of readers.FORMATS, or empty: by the files' names.
    pattern: of the names of files to take.
    held_out: fraction of the documents kept for evaluation.
    part_bytes: input of a part, about; 0: by the size of all of it.
    max_broken: records that may be skipped.
    chat_template: of conversations, in Jinja; empty: the default one.
  """

  tokenizer: str
  fields: Fields = dataclasses.field(default_factory=Fields)
  format: str = ""
  pattern: str = "*"
  held_out: float = 0.005
  part_bytes: int = 0
  max_broken: int = 0
  chat_template: str = ""


@dataclasses.dataclass
class Done:
  """What has become of some parts.

  Attributes:
    shards: of each split, what the manifest says of them.
    documents, empty: documents with tokens, and those without.
    broken: records that were skipped.
    text_bytes: of the documents, as UTF-8; of ids, their own.
    seconds: of processor time, and
    timed_seconds: of some of it, within the tokenizer, for
    timed_bytes: of text.
  """

  shards: dict[str, list[dict]]
  documents: int = 0
  empty: int = 0
  broken: int = 0
  text_bytes: int = 0
  seconds: float = 0.0
  timed_seconds: float = 0.0
  timed_bytes: int = 0

  @classmethod
  def nothing(cls) -> "Done":
    return cls({split: [] for split in manifest.SPLITS})

  def add(self, other: "Done") -> None:
    for split, shards in other.shards.items():
      self.shards[split] += shards
    for field in dataclasses.fields(self)[1:]:
      total = getattr(self, field.name) + getattr(other, field.name)
      setattr(self, field.name, total)


class Preparation:
  """Makes a prepared source of files.

  Attributes:
    finished: whether the manifest was there already.
    input_bytes: of all files.
    done: of the parts that are done.
    done_bytes: of their input.
  """

  def __init__(
    self, inputs: Sequence[str], settings: Settings, output: pathlib.Path
  ):
    """Looks at the input and at what an earlier preparation left.

    Raises:
      UserError: if there is no input, no such tokenizer, or the output has
        another source.
    """
    self._output = output
    self._tokenizer = make_tokenizer(settings.tokenizer)
    self._settings = dataclasses.replace(
      settings,
      fields=dataclasses.replace(
        settings.fields,
        eos=self._tokenizer.eos,
        vocab_size=self._tokenizer.vocab_size,
      ),
      chat_template=self._template(settings),
    )
    found = files.find(inputs, settings.pattern)
    self.input_bytes = sum(file.size for file in found)
    self._parts = self._cut(found)
    self._check_output()
    self._notes = {
      number: Done(**json.loads(path.read_text()))
      for number in range(len(self._parts))
      if (path := output / f"part-{number:05d}.json").is_file()
    }
    self.finished = (output / manifest.MANIFEST).is_file()

  def _template(self, settings: Settings) -> str:
    if settings.fields.form == "text":
      return ""
    return ChatTemplate(self._tokenizer, settings.chat_template).source

  def _cut(self, found: list[files.File]) -> list[list[Piece]]:
    settings = self._settings
    size = self.input_bytes // PARTS
    target = settings.part_bytes or min(max(size, SMALLEST), LARGEST)
    parts: list[list[Piece]] = []
    filled = 0
    for file in found:
      kind = settings.format or readers.format_of(file.name)
      for piece in readers.cut(file, kind, settings.fields, target):
        if not parts or filled + piece.size > target:
          parts.append([])
          filled = 0
        parts[-1].append(piece)
        filled += piece.size
    return parts

  def _plan(self) -> dict[str, Any]:
    """What must be the same for another process to go on."""
    settings = dataclasses.asdict(self._settings)
    del settings["max_broken"]
    settings.update(tokenizer=self._tokenizer.digest)
    pieces = [
      [(p.name, p.format, p.start, p.stop, p.size) for p in part]
      for part in self._parts
    ]
    listed = json.dumps(pieces).encode()
    return dict(settings=settings, parts=blake3(listed).hexdigest())

  def _check_output(self) -> None:
    plan, path = json.dumps(self._plan(), indent=1), self._output / _PLAN
    if not path.is_file():
      if self._output.is_dir() and any(self._output.iterdir()):
        raise UserError(
          f"{self._output} is not empty, and no preparation was begun in it."
          " Choose another --output."
        )
      self._output.mkdir(parents=True, exist_ok=True)
      path.write_text(plan)
    elif path.read_text() != plan:
      raise UserError(
        f"{self._output} has a preparation of other files, with another"
        " tokenizer or with other settings. Choose another --output, or remove"
        " that one."
      )

  @property
  def done(self) -> Done:
    total = Done.nothing()
    for number in sorted(self._notes):
      total.add(self._notes[number])
    return total

  @property
  def done_bytes(self) -> int:
    return sum(
      piece.size for number in self._notes for piece in self._parts[number]
    )

  def run(self, workers: int, told: Callable[[int], None]) -> Done:
    """Does the parts that are left; returns what they came to, now alone.

    Args:
      workers: processes; 0: this one.
      told: called with bytes of input as they are read.

    Raises:
      UserError: if more records are broken than may be.
    """
    left = [n for n in range(len(self._parts)) if n not in self._notes]
    now = Done.nothing()
    results = self._in_processes if workers else self._here
    for number, done in results(left, workers, told):
      self._notes[number] = done
      now.add(done)
    return now

  def _here(self, left, workers, told) -> Iterator[tuple[int, Done]]:
    read, broken = self._counters()
    worker = _Worker(
      self._tokenizer, self._settings, self._output, read, broken
    )
    for number in left:
      before = read.value
      yield number, worker.part(number, self._parts[number])
      told(read.value - before)

  def _counters(self) -> tuple[Any, Any]:
    """Bytes read and records skipped, shared by all processes."""
    return _SPAWN.Value("q", 0), _SPAWN.Value("q", self.done.broken)

  def _in_processes(self, left, workers, told) -> Iterator[tuple[int, Done]]:
    read, broken = self._counters()
    pool = concurrent.futures.ProcessPoolExecutor(
      max(1, min(workers, len(left))),
      _SPAWN,
      _start_worker,
      (self._settings, self._output, read, broken, os.getpid()),
    )
    told_of = 0
    with pool:
      pending = {pool.submit(_part, n, self._parts[n]): n for n in left}
      try:
        while pending:
          finished, _ = concurrent.futures.wait(
            pending, 0.2, concurrent.futures.FIRST_COMPLETED
          )
          for future in finished:
            yield pending.pop(future), future.result()
          so_far = read.value
          told(so_far - told_of)
          told_of = so_far
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise

  def finish(self) -> Prepared:
    """Writes the manifest and removes the notes.

    Raises:
      UserError: if a split has no documents.
    """
    done, tokenizer = self.done, self._tokenizer
    form = self._settings.fields.form
    for split, shards in done.shards.items():
      if not shards:
        raise UserError(
          f"Of {done.documents} documents none are in the split {split!r}:"
          f" with --held_out={self._settings.held_out:g} each document is in it"
          " by its hash. Give more documents, or another --held_out in another"
          " --output."
        )
    manifest.write(
      self._output,
      Contents(
        manifest.FORMAT[form],
        tokenizer.digest,
        tokenizer.eos,
        _dtype(tokenizer),
        done.shards,
        form,
        self._settings.chat_template,
      ),
      dict(
        tokenizer=os.path.basename(self._settings.tokenizer),
        files=len({p.name for part in self._parts for p in part}),
        input_bytes=self.input_bytes,
        text_bytes=done.text_bytes,
        documents=done.documents,
        empty_documents=done.empty,
        broken_records=done.broken,
        held_out=self._settings.held_out,
      ),
    )
    for path in self._output.glob("part-*.json"):
      path.unlink()
    return Prepared(self._output)


def _dtype(tokenizer: Tokenizer) -> str:
  return "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"


# -------------------------------------------------------------- a process

_worker: "_Worker | None" = None  # of this process


def _start_worker(settings, output, read, broken, parent: int) -> None:
  global _worker
  from intellect_jax import command

  command.end_with(parent)
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  tokenizer = make_tokenizer(settings.tokenizer)
  _worker = _Worker(tokenizer, settings, output, read, broken)


def _part(number: int, pieces: list[Piece]) -> Done:
  assert _worker is not None
  return _worker.part(number, pieces)


class _Worker:
  """Tokenizes parts, one after the other."""

  def __init__(self, tokenizer, settings, output, read, broken):
    self._tokenizer: Tokenizer = tokenizer
    self._settings: Settings = settings
    self._output: pathlib.Path = output
    self._read, self._broken = read, broken
    self._template = ChatTemplate(tokenizer, settings.chat_template)

  def part(self, number: int, pieces: list[Piece]) -> Done:
    """Makes the shards of a part and leaves its note."""
    began = time.process_time()
    done = Done.nothing()
    writers = {
      split: ShardWriter(
        self._output,
        f"{split}-{number:05d}",
        _dtype(self._tokenizer),
        masked=self._settings.fields.form != "text",
      )
      for split in manifest.SPLITS
    }
    for piece in pieces:
      self._piece(piece, done, writers)
    for split, writer in writers.items():
      done.shards[split] += writer.close()
    done.seconds = time.process_time() - began
    note = self._output / f"part-{number:05d}.json"
    partial = note.with_suffix(".partial")
    partial.write_text(json.dumps(dataclasses.asdict(done)))
    partial.rename(note)
    return done

  def _piece(self, piece: Piece, done: Done, writers: dict) -> None:
    told = 0
    records = readers.read(piece, self._settings.fields)
    for count, record in enumerate(records, 1):
      if count % _TOLD == 0:
        told = self._tell(min(record.done, piece.size), told)
      try:
        self._record(record, done, writers)
      except UserError as error:  # of somebody else's, in the input
        done.broken += 1
        self._skip(piece, record.position, str(error))
    self._tell(piece.size, told)

  def _record(self, record: Record, done: Done, writers: dict) -> None:
    """Writes a record to the split that it belongs to.

    Raises:
      UserError: that says how it is broken.
    """
    document, fields = record.document, self._settings.fields
    if document is None:
      raise UserError(record.problem)
    if len(document) == 0:
      done.empty += 1
      return
    if isinstance(document, dict):
      made = conversations.documents(
        fields.form, document, fields.text, self._template
      )
      content = conversations.key(fields.form, document, fields.text)
      text_bytes = sum(masked.ids.nbytes for masked in made)
    else:
      content, ids = self._encode(document, done)
      text_bytes = len(content)
    is_held_out = sources.is_held_out(content, self._settings.held_out)
    writer = writers["held_out" if is_held_out else "train"]
    if isinstance(document, dict):
      for masked in made:
        writer.add_masked(*masked)
    else:
      writer.add(ids, self._tokenizer.eos)
    done.documents += 1
    done.text_bytes += text_bytes

  def _encode(
    self, document: str | np.ndarray, done: Done
  ) -> tuple[bytes, np.ndarray]:
    """The bytes that decide the split, and the ids."""
    if not isinstance(document, str):
      return document.tobytes(), document
    content = document.encode()
    if done.documents % _TIMED:
      return content, self._tokenizer.encode(document)
    began = time.thread_time()
    ids = self._tokenizer.encode(document)
    done.timed_seconds += time.thread_time() - began
    done.timed_bytes += len(content)
    return content, ids

  def _tell(self, done: int, told: int) -> int:
    with self._read.get_lock():
      self._read.value += done - told
    return done

  def _skip(self, piece: Piece, position: str, problem: str) -> None:
    where = f"{piece.url}, {position}"
    logging.warning("Skipping %s: %s", where, problem)
    with self._broken.get_lock():
      self._broken.value += 1
      broken = self._broken.value
    if broken > self._settings.max_broken:
      raise UserError(
        f"{broken} records are broken, the last of them in {where}:"
        f" {problem.rstrip('.')}. Mend the input, or let more be skipped with"
        f" --max_broken, which is {self._settings.max_broken}; parts that are"
        " done are kept."
      )
