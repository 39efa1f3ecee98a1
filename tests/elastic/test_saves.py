"""Which of an island's checkpoints count, and which may go."""

from one_process import committed, freeze, host
import pytest

from intellect_jax.elastic import chain, join
from intellect_jax.elastic.crew import Crew
from intellect_jax.elastic.host import Host
from intellect_jax.elastic.protocol import elastic_pb2 as pb


@pytest.fixture
def made(tmp_path):
  """Checkpoints of records 0 and 1, and record 2 annuls the latter."""
  with host(tmp_path, "float32") as made:
    held = made.held
    genesis = pb.Genesis(state=held.describe().state.id)
    first = chain.seal(pb.Record(genesis=genesis, islands=1))
    held.log.keep(first)
    held.save(made.replica.state)
    record = _adopted(made, first)
    held.save(made.replica.state)
    assert held.saves.numbers() == [1, 0]
    annulment = pb.Record(number=2, previous=record.hash, islands=1)
    annulment.annulment.to = 0
    held.log.keep(chain.seal(annulment))
    yield made


def _adopted(made: Host, before: pb.SealedRecord) -> pb.SealedRecord:
  """Record 1."""
  freeze(made)
  record = committed(made)
  record.previous = before.hash
  sealed = chain.seal(record)
  made.held.shelf.adopt(sealed)
  made.held.apply(record)
  return sealed


def test_what_was_annulled_goes_once_there_is_a_way_back(made):
  saves = made.held.saves
  assert saves.newest(None) == 0
  assert saves.numbers() == [0]


def test_the_last_of_a_run_is_kept_whether_it_counts_or_not(made):
  """An operator may roll back too far, and then think again."""
  saves = made.held.saves
  saves._here.drop(0)
  assert saves.newest(None) is None
  assert saves.newest(0) is None
  saves.forget_annulled()
  assert saves.numbers() == [1]


# Orbax's reader threads outlive the event loop of a restore that failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_set_aside_and_an_older_one_restored(tmp_path):
  """Its files have the right sizes: who restores it is the first to see."""
  with host(tmp_path, "float32") as made:
    held, crew = made.held, Crew(made.part, made.replica)
    genesis = pb.Genesis(state=held.describe().state.id)
    held.log.keep(first := chain.seal(pb.Record(genesis=genesis, islands=1)))
    held.save(made.replica.state)
    before = held.describe().state.id
    _adopted(made, first)
    held.save(made.replica.state)
    assert held.saves.numbers() == [1, 0]
    damaged = tmp_path / "checkpoints" / "1" / "outer" / "manifest.ocdbt"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    with pytest.warns(UserWarning, match=r"checkpoints/1 to .*/1\.torn"):
      assert join.resume(crew, held, replay=False)
    assert held.record.number == 0
    assert held.describe().state.id == before
    damaged = tmp_path / "checkpoints" / "0" / "outer" / "manifest.ocdbt"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    with pytest.warns(UserWarning, match=r"checkpoints/0 to .*/0\.torn"):
      assert not join.resume(crew, held)


def test_a_save_that_failed_does_not_cost_the_next_one(made, monkeypatch):
  held = made.held
  with monkeypatch.context() as broken:
    broken.setattr(held.saves, "_chain", lambda number: "cannot be written")
    held.save(made.replica.state)
  held.saves._here.drop(1)
  held.save(made.replica.state)
  assert held.saves.numbers() == [1, 0]


def test_a_damaged_chain_damages_no_log(made):
  """A checkpoint has the records up to its own; so has the log, mostly."""
  held = made.held
  path = held.saves._here._directory / "1" / "chain"
  data = pb.Records.FromString(path.read_bytes())
  data.records[0].body = b"damaged"
  path.write_bytes(data.SerializeToString())
  before = held.log.record(0)
  assert held.saves._record(1, "another") is None
  assert held.log.record(0) == before
