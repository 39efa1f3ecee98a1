"""A source in object storage: a real S3 endpoint, on loopback."""

import gzip
import json
import pathlib

import pytest

from intellect_jax.data import sources
from intellect_jax.data.files import find
from intellect_jax.data.preparation import Preparation, Settings
from intellect_jax.errors import UserError

boto3 = pytest.importorskip("boto3")
s3fs = pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")
parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")

DOCUMENTS = sources.documents()[:90]


@pytest.fixture(scope="module")
def bucket():
  """An empty bucket, and the environment that leads there."""
  moto = server.ThreadedMotoServer("127.0.0.1", port=0)
  moto.start()
  host, port = moto.get_host_and_port()
  with pytest.MonkeyPatch.context() as patch:
    for name, value in dict(
      AWS_ENDPOINT_URL=f"http://{host}:{port}",
      AWS_ACCESS_KEY_ID="nobody",
      AWS_SECRET_ACCESS_KEY="nothing",
      AWS_DEFAULT_REGION="us-east-1",
    ).items():
      patch.setenv(name, value)
    # File systems of other tests know other endpoints.
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = boto3.resource("s3").Bucket("texts")
    bucket.create()
    yield bucket
    s3fs.S3FileSystem.clear_instance_cache()
  moto.stop()


def prepare(given, output):
  settings = Settings("bpe:2048", held_out=0.1, part_bytes=40_000)
  preparation = Preparation([given], settings, output)
  preparation.run(0, lambda read: None)
  return preparation.finish()


def test_the_same_text_from_s3_and_from_a_folder(bucket, tmp_path):
  folder = tmp_path / "here"
  folder.mkdir()
  (folder / "a.txt").write_text(DOCUMENTS[0])
  lines = [json.dumps(dict(text=text)) for text in DOCUMENTS[1:50]]
  (folder / "b.jsonl").write_text("\n".join(lines))
  packed = "\n".join(json.dumps(dict(text=t)) for t in DOCUMENTS[50:70])
  (folder / "c.jsonl.gz").write_bytes(gzip.compress(packed.encode(), mtime=0))
  table = pyarrow.table(dict(text=DOCUMENTS[70:]))
  parquet.write_table(table, folder / "d.parquet", row_group_size=5)
  for path in folder.iterdir():
    bucket.upload_file(str(path), f"some/{path.name}")
  here = prepare(str(folder), tmp_path / "output")
  there = prepare("s3://texts/some", tmp_path / "remote")
  assert there.digest == here.digest
  assert there.about == here.about and here.about["documents"] == 90
  assert len(here.contents.splits["train"]) > 3, "lines were read by ranges"


def test_one_file_and_what_is_not_there(bucket):
  bucket.put_object(Key="deep/one.txt", Body=b"text")
  (file,) = find(["s3://texts/deep/one.txt"])
  assert (file.name, file.size) == ("one.txt", 4)
  with pytest.raises(UserError, match="s3://texts/nowhere"):
    find(["s3://texts/nowhere"])


def test_a_scheme_that_nobody_knows():
  with pytest.raises(UserError, match=r"extra `remote`"):
    find(["no-such-store://bucket/key"])


def test_nothing_is_asked_of_it_for_local_files(tmp_path):
  path = pathlib.Path(tmp_path / "a.txt")
  path.write_text("text")
  assert find([str(path)])[0].url == str(path)
