"""An island's log: what was adopted is replayed, what is torn is not."""

from blake3 import blake3
import numpy as np
import pytest

from intellect_jax.elastic import blobs, chain
from intellect_jax.elastic import log as log_lib
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.codec import make_codec

BLOCK_BYTES = make_codec("int8").block_bytes
BLOCKS = 8


def mean_of(number: int) -> np.ndarray:
  rng = np.random.default_rng(number)
  return rng.integers(0, 256, BLOCKS * BLOCK_BYTES, np.uint8)


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


def adopt(log: RecordLog, record: pb.Record) -> pb.SealedRecord:
  """Adds a record, and its mean if it is a step, after the one before it."""
  before = log.record(record.number - 1) if record.number else None
  record.previous = before.hash if before is not None else b""
  if record.HasField("step"):
    mean = log.open_mean(record.step.attempt, BLOCKS * BLOCK_BYTES)
    mean[:] = mean_of(record.number)
  sealed = chain.seal(record)
  sealed.holders.append("x")
  log.adopt(sealed)
  return sealed


def annulment(number: int, to: int) -> pb.Record:
  return pb.Record(number=number, annulment=pb.Annulment(to=to))


@pytest.fixture
def folder(tmp_path):
  log = RecordLog(tmp_path)
  log.open()
  adopt(log, pb.Record(number=0, genesis=pb.Genesis(state=b"s")))
  for number in (1, 2, 3):
    adopt(log, step(number))
  log.sync(3)
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
  assert pb.Record.FromString(found.body).step == step(2).step
  assert not found.holders  # of no use to anyone later
  assert log.record(4) is None
  assert log.mean(4) is None


def test_replay_goes_on_past_changed_settings(folder):
  log = RecordLog(folder)
  log.open()
  adopt(log, pb.Record(number=4, settings=pb.Settings(finish=True)))
  adopt(log, step(5))
  assert replayed(folder, 2) == [3, 4, 5]


def test_a_mean_without_its_record_is_kept_until_the_next_one(folder):
  left, new = b"\x01" * 32, b"\x02" * 32
  log = RecordLog(folder)
  log.open()
  log.open_mean(left, BLOCKS * BLOCK_BYTES)[:] = 7
  assert not log.was_left(left)
  log = RecordLog(folder)
  log.open()  # after a crash: it may have been committed
  log.open_mean(new, BLOCKS * BLOCK_BYTES)  # came to nothing
  assert log.was_left(left) and not log.was_left(new)
  assert log.open_mean(left, BLOCKS * BLOCK_BYTES)[0] == 7
  adopt(log, step(4))
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


def test_replay_passes_a_rollback(folder):
  log = RecordLog(folder)
  log.open()
  adopt(log, annulment(4, to=1))
  adopt(log, step(5))
  assert replayed(folder, 0) == [1, 4, 5]
  assert replayed(folder, 1) == [4, 5]
  assert replayed(folder, 3) == []  # a state that does not count
  adopt(log, annulment(6, to=4))  # from before the first one's successors
  adopt(log, step(7))
  assert replayed(folder, 0) == [1, 4, 6, 7]
  assert [record.number for record in log.records()] == [*range(8)]


def test_an_annulled_record_needs_no_mean_to_be_passed(folder):
  """It may never have come here, for it was annulled before."""
  log = RecordLog(folder)
  log.open()
  for number in (2, 3):
    (folder / f"{number:09d}.mean").unlink()
  adopt(log, annulment(4, to=1))
  adopt(log, step(5))
  assert replayed(folder, 0) == [1, 4, 5]


def test_what_is_left_of_another_chain_is_no_part_of_this_one(folder):
  log = RecordLog(folder)
  log.open()
  log.keep(chain.seal(pb.Record(number=2, term=2)))
  assert [record.number for record in log.records()] == [0, 1]
  assert replayed(folder, 0) == [1]


def test_its_size_is_known_while_a_record_is_written(folder):
  """Between two looks a partial file gets its name, and is there no more."""
  log = RecordLog(folder)
  size = log.size()
  (folder / "000000004.partial").symlink_to(folder / "gone")
  assert log.size() == size


def test_what_could_not_be_synced_is_synced_the_next_time(folder, monkeypatch):
  """Else a checkpoint would count that stands on what is not on the disk."""
  log, flushed = RecordLog(folder), []
  log.open()

  def fails(path):
    raise OSError("input/output error")

  with monkeypatch.context() as broken:
    broken.setattr(log_lib, "_flush", fails)
    with pytest.raises(OSError, match="input/output"):
      log.sync(2)
  monkeypatch.setattr(log_lib, "_flush", lambda path: flushed.append(path.name))
  log.sync(2)
  assert {"000000002.mean", "000000002.record", folder.name} <= {*flushed}
  assert "000000003.record" not in flushed


def test_trimming_deletes_means_and_keeps_records(folder):
  log = RecordLog(folder)
  log.open()
  assert log.trim(before=3) == [1, 2]
  assert log.mean(2) is None
  assert log.record(2) is not None
  assert replayed(folder, 2) == [3]


def test_the_oldest_means_beyond_a_bound_go(folder):
  """As many as must, but never those that a checkpoint still needs."""
  log = RecordLog(folder)
  log.open()
  size = BLOCKS * BLOCK_BYTES
  assert log.trim(before=3, bound=3 * size) == []
  assert log.trim(before=3, bound=2 * size) == [1]
  assert log.trim(before=3, bound=2 * size - 1) == [2]
  assert log.trim(before=3, bound=0) == []
  assert log.size(3) >= size > log.size() - log.size(3)
