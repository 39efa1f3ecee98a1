"""An island's log: what was adopted is replayed, what is torn is not."""

from blake3 import blake3
import numpy as np
import pytest

from intellect_jax.elastic import blobs
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.codec import make_codec

BLOCK_BYTES = make_codec("int8").block_bytes
BLOCKS = 8


def mean_of(number: int) -> np.ndarray:
  rng = np.random.default_rng(number)
  return rng.integers(0, 256, BLOCKS * BLOCK_BYTES, np.uint8)


def sealed(record: pb.Record) -> pb.SealedRecord:
  body = record.SerializeToString(deterministic=True)
  return pb.SealedRecord(body=body, hash=blake3(body).digest(), holders=["x"])


def step(number: int) -> pb.Record:
  """A record of two shares whose mean is `mean_of(number)`."""
  attempt = blake3(b"attempt %d" % number).digest()
  record = pb.Record(number=number, step=pb.OuterStep(attempt=attempt))
  record.step.codec = "int8"
  mean = mean_of(number)
  chunk = blobs.chunk_bytes(len(mean), BLOCK_BYTES)
  for start, stop in ((0, 3), (3, BLOCKS)):
    part = mean[start * BLOCK_BYTES : stop * BLOCK_BYTES]
    blob = pb.Blob(id=blobs.Manifest.of(part, chunk).id, length=len(part))
    record.step.shares.add(start=start, stop=stop, mean=blob)
  return record


def adopt(log: RecordLog, number: int) -> None:
  record = step(number)
  log.open_mean(record.step.attempt, BLOCKS * BLOCK_BYTES)[:] = mean_of(number)
  log.adopt(sealed(record))
  log.sync(number)


@pytest.fixture
def folder(tmp_path):
  log = RecordLog(tmp_path)
  log.open()
  log.adopt(sealed(pb.Record(number=0, genesis=pb.Genesis(state=b"s"))))
  for number in (1, 2, 3):
    adopt(log, number)
  return tmp_path


def replayed(folder, after: int) -> list[int]:
  return [record.number for record in RecordLog(folder).after(after)]


def test_adopted_records_and_means_survive_reopening(folder):
  log = RecordLog(folder)
  log.open()
  assert replayed(folder, 0) == [1, 2, 3]
  assert replayed(folder, 2) == [3]
  np.testing.assert_array_equal(log.mean(2), mean_of(2))
  found = log.record(2)
  assert found is not None
  assert found.body == sealed(step(2)).body
  assert not found.holders  # of no use to anyone later
  assert log.record(4) is None
  assert log.mean(4) is None


def test_replay_goes_on_past_changed_settings(folder):
  log = RecordLog(folder)
  log.open()
  log.adopt(sealed(pb.Record(number=4, settings=pb.Settings(finish=True))))
  adopt(log, 5)
  assert replayed(folder, 2) == [3, 4, 5]


def test_a_mean_without_its_record_is_not_kept(folder):
  log = RecordLog(folder)
  log.open()
  log.open_mean(b"\x01" * 32, BLOCKS * BLOCK_BYTES)[:] = 7
  assert list(folder.glob("attempt-*"))
  log = RecordLog(folder)
  log.open()  # after a crash
  assert not list(folder.glob("attempt-*"))
  log.open_mean(b"\x02" * 32, BLOCKS * BLOCK_BYTES)  # came to nothing
  adopt(log, 4)
  assert not list(folder.glob("attempt-*"))
  assert replayed(folder, 3) == [4]


@pytest.mark.parametrize("kind", ["record", "mean"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_replay_stops_before_what_a_power_loss_tore(folder, kind, damage):
  path = folder / f"000000002.{kind}"
  data = bytearray(path.read_bytes())
  match damage:
    case "flip":
      data[len(data) // 2] ^= 1
      path.write_bytes(data)
    case "cut":
      path.write_bytes(data[: len(data) // 2])
    case "empty":
      path.write_bytes(b"")
    case "gone":
      path.unlink()
  assert replayed(folder, 0) == [1]


def test_annulled_records_are_not_replayed(folder):
  log = RecordLog(folder)
  log.open()
  annulment = pb.Annulment(to=1, reason="went back")
  log.adopt(sealed(pb.Record(number=4, annulment=annulment)))
  assert replayed(folder, 0) == [1]


def test_trimming_deletes_means_and_keeps_records(folder):
  log = RecordLog(folder)
  log.open()
  log.trim(before=3)
  assert log.mean(2) is None
  assert log.record(2) is not None
  assert replayed(folder, 2) == [3]
