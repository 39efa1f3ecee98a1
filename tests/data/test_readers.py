"""Every format gives the documents that were put in, however it is cut."""

import gzip
import json

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
import pytest

from intellect_jax.data import readers
from intellect_jax.data.files import File, find
from intellect_jax.data.readers import Fields

RANDOM = np.random.default_rng(0)
TEXTS = [
  f"{i} naïve “text”\nof {i % 7} lines {'x' * int(n)}"
  for i, n in enumerate(RANDOM.integers(0, 90, 60))
]
EOS = 9


def jsonl(texts=TEXTS, field="text"):
  return "\n".join(json.dumps({"n": 1, field: t}) for t in texts).encode()


def write_array_record(path, records):
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def read(path, target=10**9, fields=Fields(), kind=""):  # noqa: B008
  """Records of a file that is cut into pieces of `target` bytes."""
  file = File(str(path), path.name, path.stat().st_size)
  kind = kind or readers.format_of(path.name)
  pieces = readers.cut(file, kind, fields, target)
  assert sum(p.size for p in pieces) <= file.size
  return len(pieces), [r for p in pieces for r in readers.read(p, fields)]


def good(records):
  return [record.document for record in records if record.document is not None]


@pytest.mark.parametrize("target", [10**9, 3000, 700, 90, 1])
def test_lines_wherever_the_file_is_cut(tmp_path, target):
  path = tmp_path / "a.jsonl"
  path.write_bytes(jsonl())
  pieces, records = read(path, target)
  assert good(records) == TEXTS
  assert (pieces > 1) == (target < 10**9)


def test_packed_lines(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(gzip.compress(jsonl()))
  assert good(read(path, 10)[1]) == TEXTS


def test_a_packed_file_that_ends_too_early(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(gzip.compress(jsonl())[:-200])
  *records, last = read(path)[1]
  assert good(records) == TEXTS[: len(records)] and records
  assert last.document is None and "cannot be unpacked" in last.problem
  assert last.position == f"line {len(records) + 1}"


def test_fields_and_what_is_broken(tmp_path):
  path = tmp_path / "a.jsonl"
  lines = [
    b'{"body": "good"}',
    b'{"body": 7}',
    b"[1]",
    b'{"body": "\\ud800"}',
    b'"\xff"',
    b"",
    b'{"body": ""}',
    b'{"body": "beside NaN", "score": NaN}',
  ]
  path.write_bytes(b"\n".join(lines))
  _, records = read(path, fields=Fields(text="body"))
  assert good(records) == ["good", "", "beside NaN"]
  broken = [r for r in records if r.document is None]
  starts = np.cumsum([0] + [len(line) + 1 for line in lines])
  assert [r.position for r in broken] == [f"byte {s}" for s in starts[1:5]]
  assert "no Unicode" in broken[2].problem


def test_text_files(tmp_path):
  (tmp_path / "a.md").write_text(TEXTS[0])
  (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
  (tmp_path / ".hidden").write_text("no")
  assert [file.name for file in find([str(tmp_path)])] == ["a.md", "b.txt"]
  assert good(read(tmp_path / "a.md", 1)[1]) == TEXTS[:1]
  assert "not UTF-8" in read(tmp_path / "b.txt")[1][0].problem


@pytest.mark.parametrize("field", ["", "body"])
def test_array_records(tmp_path, field):
  path = tmp_path / "a.arrayrecord"
  records = [t.encode() for t in TEXTS]
  if field:
    records = [json.dumps({field: t}).encode() for t in TEXTS]
  write_array_record(path, records)
  for target in (10**9, 500):
    pieces, records = read(path, target, Fields(text=field))
    assert good(records) == TEXTS and (pieces > 1) == (target == 500)


def ids():
  """Documents of ids, and all of them as one flat row; the last has no eos."""
  documents = [RANDOM.integers(10, 500, n) for n in RANDOM.integers(0, 40, 50)]
  documents.append(np.array([11, 12]))
  flat = np.concatenate([np.append(d, EOS) for d in documents])[:-1]
  return documents, flat


@pytest.mark.parametrize("target", [10**9, 200, 3])
@pytest.mark.parametrize("kind", ["uint16", "uint32", "npy"])
def test_flat_files_of_tokens_wherever_they_are_cut(tmp_path, target, kind):
  documents, flat = ids()
  path = tmp_path / ("a.npy" if kind == "npy" else "a.bin")
  if kind == "npy":
    np.save(path, flat)
  else:
    flat.astype(kind).tofile(path)
  fields = Fields(eos=EOS, vocab_size=500, dtype=kind)
  _, records = read(path, target, fields)
  assert [np.asarray(d).tolist() for d in good(records)] == [
    d.tolist() for d in documents
  ]


def test_ids_that_the_tokenizer_has_not_are_broken(tmp_path):
  np.array([1, 2, EOS, 600, 3, EOS, 4], np.uint16).tofile(tmp_path / "a.bin")
  fields = Fields(eos=EOS, vocab_size=500)
  _, records = read(tmp_path / "a.bin", fields=fields)
  assert [r.document is None for r in records] == [False, True, False]
  assert records[1].position == "token 3" and "below 500" in records[1].problem
