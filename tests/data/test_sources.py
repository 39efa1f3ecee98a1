import pytest

from intellect_jax.data import sources
from intellect_jax.errors import UserError


def test_the_shipped_text_is_about_two_megabytes_of_distinct_prose():
  documents = sources.documents()
  assert 1.9e6 < sum(len(d.encode()) for d in documents) < 2.1e6
  assert len(set(documents)) == len(documents) > 500
  assert all(d == d.strip("\n") and d for d in documents)
  paragraphs = [p for d in documents for p in d.split("\n\n") if len(p) > 200]
  assert len(set(paragraphs)) == len(paragraphs)


def test_the_split_looks_at_a_document_and_nothing_else():
  documents = [f"document {i}" for i in range(4000)]
  held_out = {d for d in documents if sources.is_held_out(d.encode(), 0.05)}
  assert {d for d in reversed(documents) if d in held_out} == held_out
  assert 0.035 < len(held_out) / len(documents) < 0.065
  larger = {d for d in documents if sources.is_held_out(d.encode(), 0.2)}
  assert held_out < larger
  assert not any(sources.is_held_out(d.encode(), 0.0) for d in documents)


def test_about_a_twentieth_of_the_shipped_text_is_held_out():
  documents = sources.documents()
  held_out = [d for d in documents if sources.is_held_out(d.encode(), 0.05)]
  assert 0.03 < sum(map(len, held_out)) / sum(map(len, documents)) < 0.08


@pytest.mark.parametrize("name", sources.SHA256)
def test_a_damaged_file_is_refused(name, tmp_path, monkeypatch):
  content = bytearray((sources.SHIPPED / name).read_bytes())
  content[len(content) // 2] ^= 1
  (tmp_path / name).write_bytes(content)
  monkeypatch.setattr(sources, "SHIPPED", tmp_path)
  with pytest.raises(UserError, match="damaged"):
    sources.read_shipped(name)
