"""Documents out of files of any format, a piece of a file at a time.

Large files are cut where a reader can begin in the middle, so that many
processes read one file. A document belongs to the piece in which it begins.
"""

from collections.abc import Callable, Iterator
import dataclasses
import gzip
import io
import itertools
import json
from typing import Any, NamedTuple
import zlib

import numpy as np
import orjson

from intellect_jax.data.files import File, is_remote, open_file
from intellect_jax.errors import UserError, not_installed

# Text, ids without an eos, or the JSON of a conversation.
Document = str | np.ndarray | dict[str, Any]

_AT_ONCE = 256  # records or rows that are read together
_SCANNED = 2**20  # tokens that are looked through together


class Record(NamedTuple):
  """A document, or why there is none.

  Attributes:
    document: text, ids or JSON; None if the record is broken.
    position: where in the file it is, for people.
    done: bytes of the piece that were read up to here, more or less.
    problem: what is wrong with it.
  """

  document: Document | None
  position: str
  done: int
  problem: str = ""


@dataclasses.dataclass(frozen=True)
class Piece:
  """What one process reads of one file.

  Attributes:
    url, name: of the file.
    format: a key of FORMATS.
    start, stop: in bytes, row groups, records or tokens, as the format has it.
    size: bytes, for the progress bar.
  """

  url: str
  name: str
  format: str
  start: int
  stop: int
  size: int


@dataclasses.dataclass(frozen=True)
class Fields:
  """How records are read.

  Attributes:
    text: the field of JSON or the column of Parquet that has the text; empty:
      "text", and an ArrayRecord's record is the text itself.
    form: of the source; of all but "text" records are whole objects of JSON.
    eos: id that ends a document in flat files of tokens.
    dtype: of flat files of tokens without a header.
    vocab_size: no id may be as large.
  """

  text: str = ""
  form: str = "text"
  eos: int = 0
  dtype: str = "uint16"
  vocab_size: int = 2**31


def format_of(name: str) -> str:
  """The format that a file's name tells; plain text if it tells none."""
  for ending, kind in _ENDINGS.items():
    if name.endswith(ending):
      return kind
  return "text"


def cut(file: File, kind: str, fields: Fields, target: int) -> list[Piece]:
  """Cuts a file into pieces of about `target` bytes, if it can be cut.

  Raises:
    UserError: if it is not of this format, or has no conversations.
  """
  if fields.form != "text" and kind not in _OF_JSON:
    raise UserError(
      f"{file.url} is read as {kind}, but a source of the form {fields.form!r}"
      f" is made of JSON. Name its format with --format: one of"
      f" {', '.join(_OF_JSON)}."
    )
  try:
    units = FORMATS[kind].units(file, fields)
  except ImportError as error:
    what = f"To read {file.url}"
    raise not_installed(what, error.name, "data") from error
  except UserError:
    raise
  except Exception as error:  # each library has its own
    raise UserError(
      f"{file.url} cannot be read as {kind} ({error}). Name its format with"
      f" --format: one of {', '.join(FORMATS)}."
    ) from error
  pieces = max(1, min(units, round(file.size / target)))
  bounds = [units * i // pieces for i in range(pieces + 1)]
  return [
    Piece(
      *(file.url, file.name, kind, start, stop),
      file.size * (stop - start) // max(1, units),
    )
    for start, stop in itertools.pairwise(bounds)
  ]


def read(piece: Piece, fields: Fields) -> Iterator[Record]:
  """Yields the records of a piece in order; broken ones too."""
  return FORMATS[piece.format].read(piece, fields)


# ------------------------------------------------------------------- text


def _read_text(piece: Piece, fields: Fields) -> Iterator[Record]:
  """The file is one document."""
  with open_file(piece.url) as file:
    yield _decoded(file.read(), "byte 0", piece.size)


def _decoded(content: bytes, position: str, done: int) -> Record:
  try:
    return Record(content.decode(), position, done)
  except UnicodeDecodeError as error:
    return Record(None, position, done, f"it is not UTF-8: {error}")


# ------------------------------------------------------------------ JSONL


def _read_jsonl(piece: Piece, fields: Fields) -> Iterator[Record]:
  """The lines that begin in these bytes."""
  with open_file(piece.url) as file:
    if piece.start:
      file.seek(piece.start - 1)
      file.readline()
    at = file.tell()
    while at < piece.stop and (line := file.readline()):
      position, at = f"byte {at}", at + len(line)
      yield from _of_json(line, position, at - piece.start, fields)


def _read_packed_jsonl(piece: Piece, fields: Fields) -> Iterator[Record]:
  """All lines: who wants one has to unpack those before it."""
  with open_file(piece.url) as packed:
    number, file = 0, _unpacked(piece.url, packed)
    while True:
      number += 1
      try:
        line = file.readline()
      except (EOFError, OSError, zlib.error, _zstd_error()) as error:
        problem = f"it cannot be unpacked, nor what follows it: {error}"
        yield Record(None, f"line {number}", piece.size, problem)
        return
      if not line:
        return
      yield from _of_json(line, f"line {number}", packed.tell(), fields)


def _unpacked(url: str, packed: Any) -> Any:
  if url.endswith(".gz"):
    return gzip.open(packed)
  import zstandard  # pyright: ignore[reportMissingImports]

  decompressor = zstandard.ZstdDecompressor()
  return io.BufferedReader(
    decompressor.stream_reader(packed, read_across_frames=True)
  )


def _zstd_error() -> type[Exception]:
  try:
    import zstandard  # pyright: ignore[reportMissingImports]
  except ImportError:
    return EOFError
  return zstandard.ZstdError


def _of_json(
  line: bytes, position: str, done: int, fields: Fields
) -> Iterator[Record]:
  if line.isspace():
    return
  name, record = fields.text or "text", Record
  try:
    value = orjson.loads(line)
  except ValueError:
    try:
      value = json.loads(line)  # slower, but takes NaN …
      record = _storable  # … and escaped halves of characters
    except ValueError as error:
      yield Record(None, position, done, f"it is not JSON: {error}")
      return
  if fields.form != "text":
    yield _conversation(value, position, done)
    return
  text = value.get(name) if isinstance(value, dict) else None
  if isinstance(text, str):
    yield record(text, position, done)
  else:
    problem = f"it has no field {name!r} with text; --field names another"
    yield Record(None, position, done, problem)


def _conversation(value: Any, position: str, done: int) -> Record:
  if isinstance(value, dict):
    return Record(value, position, done)
  return Record(None, position, done, "it is no object of JSON")


def _storable(text: str, position: str, done: int) -> Record:
  try:
    text.encode()
  except UnicodeEncodeError as error:
    return Record(None, position, done, f"it is no Unicode text: {error}")
  return Record(text, position, done)


# ---------------------------------------------------------------- Parquet


def _parquet(url: str, fields: Fields) -> Any:
  """The open file; it must have the column."""
  from pyarrow import parquet, types  # pyright: ignore[reportMissingImports]

  file, name = parquet.ParquetFile(open_file(url)), fields.text or "text"
  schema = file.schema_arrow
  if name not in schema.names or not (
    types.is_string(schema.field(name).type)
    or types.is_large_string(schema.field(name).type)
  ):
    raise UserError(
      f"{url} has no column {name!r} with text. Name one of its columns with"
      f" --field: {', '.join(schema.names)}."
    )
  return file


def _read_parquet(piece: Piece, fields: Fields) -> Iterator[Record]:
  """The rows of these row groups."""
  import pyarrow  # pyright: ignore[reportMissingImports]

  file = _parquet(piece.url, fields)
  for group in range(piece.start, piece.stop):
    row = 0
    done = piece.size * (group - piece.start) // (piece.stop - piece.start)
    try:
      for batch in file.iter_batches(
        _AT_ONCE, row_groups=[group], columns=[fields.text or "text"]
      ):
        for value in batch.column(0):
          position, row = f"row {row} of row group {group}", row + 1
          buffer = value.as_buffer()
          if buffer is None:
            yield Record(None, position, done, "the column is null there")
          else:
            yield _decoded(buffer.to_pybytes(), position, done)
    except (pyarrow.ArrowException, OSError) as error:
      problem = f"it cannot be read, nor what follows it in the group: {error}"
      yield Record(None, f"row {row} of row group {group}", done, problem)


# ------------------------------------------------------------ ArrayRecord


def _array_records(file: File, fields: Fields) -> int:
  from array_record.python.array_record_module import ArrayRecordReader

  if is_remote(file.url):
    raise UserError(f"An ArrayRecord is read from local disks: copy {file.url}")
  reader = ArrayRecordReader(file.url)
  try:
    return reader.num_records()
  finally:
    reader.close()


def _read_array_record(piece: Piece, fields: Fields) -> Iterator[Record]:
  """These records: text in UTF-8, or JSON if a field is named."""
  from array_record.python.array_record_module import ArrayRecordReader

  reader = ArrayRecordReader(piece.url)
  try:
    for start in range(piece.start, piece.stop, _AT_ONCE):
      stop = min(piece.stop, start + _AT_ONCE)
      share = (stop - piece.start) / (piece.stop - piece.start)
      done = int(piece.size * share)
      for number, content in enumerate(reader.read(start, stop), start):
        position = f"record {number}"
        if fields.text or fields.form != "text":
          yield from _of_json(content, position, done, fields)
        else:
          yield _decoded(content, position, done)
  finally:
    reader.close()


# ----------------------------------------------------------------- tokens


def _ids(url: str, fields: Fields) -> np.ndarray:
  """The flat file as one array, mapped if it is on this machine."""
  if url.endswith(".npy"):
    if is_remote(url):
      with open_file(url) as file:
        ids = np.load(io.BytesIO(file.read()), allow_pickle=False)
    else:
      ids = np.load(url, mmap_mode="r", allow_pickle=False)
  elif is_remote(url):
    with open_file(url) as file:
      ids = np.frombuffer(file.read(), fields.dtype)
  else:
    ids = np.memmap(url, fields.dtype, "r")
  if ids.ndim != 1 or ids.dtype.kind not in "iu":
    raise UserError(
      f"{url} has the shape {ids.shape} and the type {ids.dtype}, but a flat"
      " file of tokens is one row of integers."
    )
  return ids


def _read_ids(piece: Piece, fields: Fields) -> Iterator[Record]:
  """The documents that begin among these tokens; eos is after each."""
  ids = _ids(piece.url, fields)
  at = piece.start and _end(ids, piece.start - 1, fields.eos) + 1
  width = ids.dtype.itemsize
  while at < min(piece.stop, len(ids)):
    end = _end(ids, at, fields.eos)
    document = np.asarray(ids[at:end])
    done = min(piece.size, (end - piece.start) * width)
    position = f"token {at}"
    if len(document) and not (
      0 <= document.min() <= document.max() < fields.vocab_size
    ):
      problem = f"an id is not below {fields.vocab_size}, the tokenizer's size"
      yield Record(None, position, done, problem)
    else:
      yield Record(document.astype(np.int32), position, done)
    at = end + 1


def _end(ids: np.ndarray, start: int, eos: int) -> int:
  """Where the first eos from `start` on is, or the end."""
  for at in range(start, len(ids), _SCANNED):
    found = np.flatnonzero(ids[at : at + _SCANNED] == eos)
    if len(found):
      return at + int(found[0])
  return len(ids)


# ---------------------------------------------------------------- formats


class _Format(NamedTuple):
  """How much there is to cut in a file, and how a piece is read."""

  units: Callable[[File, Fields], int]
  read: Callable[[Piece, Fields], Iterator[Record]]


FORMATS = {
  "text": _Format(lambda file, fields: 1, _read_text),
  "jsonl": _Format(lambda file, fields: file.size, _read_jsonl),
  "packed-jsonl": _Format(lambda file, fields: 1, _read_packed_jsonl),
  "parquet": _Format(
    lambda file, fields: _parquet(file.url, fields).num_row_groups,
    _read_parquet,
  ),
  "arrayrecord": _Format(_array_records, _read_array_record),
  "tokens": _Format(
    lambda file, fields: len(_ids(file.url, fields)), _read_ids
  ),
}

_OF_JSON = ("jsonl", "packed-jsonl", "arrayrecord")

_ENDINGS = {
  ".jsonl": "jsonl",
  ".ndjson": "jsonl",
  ".jsonl.gz": "packed-jsonl",
  ".json.gz": "packed-jsonl",
  ".jsonl.zst": "packed-jsonl",
  ".json.zst": "packed-jsonl",
  ".parquet": "parquet",
  ".arrayrecord": "arrayrecord",
  ".array_record": "arrayrecord",
  ".bin": "tokens",
  ".npy": "tokens",
}
