"""Parquet and zstd: the documents that were put in, however cut."""

import json

import pytest

from intellect_jax.data import readers
from intellect_jax.data.files import File
from intellect_jax.data.readers import Fields
from intellect_jax.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")

TEXTS = [f"{i} naïve “text”\n" * (1 + i % 5) for i in range(80)]


def read(path, target=10**9, text=""):
  fields = Fields(text=text)
  file = File(str(path), path.name, path.stat().st_size)
  pieces = readers.cut(file, readers.format_of(path.name), fields, target)
  return len(pieces), [r for p in pieces for r in readers.read(p, fields)]


def write_parquet(path, texts, column="text", rows=16):
  table = pyarrow.table({"id": list(range(len(texts))), column: texts})
  parquet.write_table(table, path, row_group_size=rows)


@pytest.mark.parametrize("target", [10**9, 400, 1])
def test_parquet_to_its_last_row_group(tmp_path, target):
  path = tmp_path / "a.parquet"
  write_parquet(path, TEXTS, "body")
  pieces, records = read(path, target, "body")
  assert [r.document for r in records] == TEXTS
  assert pieces == (1 if target == 10**9 else 5)


def test_nulls_are_broken_records_and_columns_are_named(tmp_path):
  path = tmp_path / "a.parquet"
  write_parquet(path, ["a", None, "b"], rows=2)
  _, records = read(path)
  assert [r.document for r in records] == ["a", None, "b"]
  assert records[1].position == "row 1 of row group 0"
  with pytest.raises(UserError, match=r"no column 'words'.*--field: id, text"):
    read(path, text="words")
  with pytest.raises(UserError, match="no column 'id' with text"):
    read(path, text="id")


def test_a_damaged_row_group_costs_no_other(tmp_path):
  path = tmp_path / "a.parquet"
  write_parquet(path, TEXTS)
  content = bytearray(path.read_bytes())
  content[4:200] = bytes(196)  # of the first group
  path.write_bytes(content)
  _, records = read(path)
  broken = [r for r in records if r.document is None]
  assert len(broken) == 1 and "row group 0" in broken[0].position
  assert [r.document for r in records][-64:] == TEXTS[16:]


def test_zstd_of_many_frames(tmp_path):
  lines = [json.dumps(dict(text=text)).encode() + b"\n" for text in TEXTS]
  pack = zstandard.ZstdCompressor().compress
  frames = [pack(b"".join(lines[i : i + 30])) for i in range(0, 80, 30)]
  path = tmp_path / "a.jsonl.zst"
  path.write_bytes(b"".join(frames))
  assert [r.document for r in read(path)[1]] == TEXTS
  path.write_bytes(b"".join(frames)[:-20])
  *good, last = read(path)[1]
  assert last.document is None or len(good) < len(TEXTS)


def test_what_is_no_parquet_is_named(tmp_path):
  path = tmp_path / "a.parquet"
  path.write_text("no")
  with pytest.raises(UserError, match=r"a\.parquet cannot be read as parquet"):
    read(path)
