"""An audit proves a run after any churn, and finds what was tampered with."""

import contextlib
import json
import sqlite3

import pytest
from simulation.run import simulate
from simulation.symbols import STEP_TOKENS

from intellect_jax.audit import Books, audit, lines, read_ledger
from intellect_jax.elastic import chain
from intellect_jax.elastic.ledger import Ledger
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder, merge
from intellect_jax.errors import UserError

RUN = dict(inner=dict(batch_size=1), data=dict(sequence_length=STEP_TOKENS))


def books_of(seed):
  """The ledger of a simulated run through faults, as SQLite would have it."""
  disk = simulate(seed).leader().disk
  return Books(RUN, disk.log, disk.leases, disk.returned)


@pytest.mark.parametrize("part", range(4))
def test_every_run_through_faults_is_proved(part):
  for seed in range(100 + part, 148, 4):
    books = books_of(seed)
    report = audit(books, {"a": books.log[:3]})
    assert not report.faults, (seed, report.faults)
    together = merge([*report.committed, *report.leased, *report.free])
    assert [start for start, _ in together] == [0]
    assert "without a hole" in list(lines(report, 1))[-1]


@pytest.fixture(scope="module")
def books():
  """Of a run where samples came back, later ones were committed, and no ledger
  was lost: its coordinators' terms count up. All records have windows."""

  def fits(books):
    report = audit(books, {})
    hole = bool(report.free) and report.free[0] < report.committed[-1]
    records = [pb.Record.FromString(sealed.body) for sealed in books.log]
    whole = not any(record.step.fragment for record in records)
    return hole and whole and records[-1].term < 10

  return next(b for b in map(books_of, range(100, 148)) if fits(b))


def sealed_again(log, number, change):
  """The log with a changed record, and a chain that fits it."""
  records = [pb.Record.FromString(sealed.body) for sealed in log]
  change(records[number])
  done = []
  for record in records:
    record.previous = done[-1].hash if done else b""
    done.append(chain.seal(record))
  return done


def steps(log):
  """Numbers of the records with windows that count."""
  records = [pb.Record.FromString(sealed.body) for sealed in log]
  return [r.number for r in chain.effective(records) if r.step.members]


def faults(books, logs=None, **changed):
  fields = dict(vars(books), **changed)
  return "; ".join(audit(Books(**fields), logs or {}).faults)


def test_a_changed_byte_is_found(books):
  number = steps(books.log)[1]
  log = list(books.log)
  body = bytearray(log[number].body)
  body[-1] ^= 1
  log[number] = pb.SealedRecord(body=bytes(body), hash=log[number].hash)
  assert f"record {number} is not the one whose hash" in faults(books, log=log)


def test_a_record_that_was_taken_out_is_found(books):
  log = [*books.log[:2], *books.log[3:]]
  assert "record 2 does not follow" in faults(books, log=log)
  short = faults(books, {"ada": books.log}, log=books.log[:-1])
  assert f"ada has record {len(books.log) - 1}" in short


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda w: w.samples[0].MergeFrom(pb.Interval(stop=10**6)), "samples for"),
    (lambda w: w.ClearField("samples"), "has 0 samples"),
    (lambda w: setattr(w, "tokens", 7), "and 7 tokens"),
  ],
)
def test_a_chain_that_was_forged_with_care_does_not_add_up(
  books, change, words
):
  number = steps(books.log)[-1]
  log = sealed_again(
    books.log, number, lambda r: change(r.step.members[0].windows[0])
  )
  found = faults(books, {"ada": books.log}, log=log)
  assert words in found
  assert f"ada has another record {number} than the ledger" in found


def test_samples_that_are_committed_twice_are_found(books):
  first, last = steps(books.log)[0], steps(books.log)[-1]
  windows = pb.Record.FromString(books.log[first].body).step.members[0].windows

  def repeat(record):
    window = record.step.members[0].windows[0]
    window.ClearField("samples")
    window.samples.extend(windows[0].samples)

  log = sealed_again(books.log, last, repeat)
  assert "are taken twice" in faults(books, log=log)


def test_a_window_in_two_records_is_found(books):
  first, last = steps(books.log)[0], steps(books.log)[-1]
  member = pb.Record.FromString(books.log[first].body).step.members[0]
  log = sealed_again(books.log, last, lambda r: r.step.members.append(member))
  assert f"is in records {first} and {last}" in faults(books, log=log)


def test_samples_that_nobody_knows_of_are_found(books):
  free = audit(books, {}).free
  assert "are nowhere" in faults(books, returned=[])
  held = {Holder("ada", 1, 1): free}
  assert not faults(books, returned=[], leases=held)
  assert "taken twice" in faults(
    books, leases={**held, Holder("bo", 1, 1): free}
  )


def test_what_a_ledger_on_disk_has_is_read_while_it_is_open(tmp_path):
  path = tmp_path / "ledger.sqlite"
  ledger = Ledger(path)
  ledger.open_run("digest", json.dumps(RUN))
  one, two = Holder("ada", 1, 0), Holder("ada", 1, 1)
  ledger.save_lease(one, [(0, 8)])
  ledger.save_lease(two, [(8, 16)])
  record = pb.Record(number=0)
  member = record.step.members.add(island="ada", incarnation=1)
  member.windows.add(number=0, samples=[pb.Interval(start=0, stop=6)])
  ledger.append(record, chain.seal(record))
  books = read_ledger(path)
  assert books.log == [chain.seal(record)] and books.run == RUN
  assert books.leases == {two: [(8, 16)]} and books.returned == [(6, 8)]
  ledger.end_leases([two], None)
  assert read_ledger(path).returned == [(6, 8), (8, 16)]
  ledger.close()
  with contextlib.closing(sqlite3.connect(path)) as db:
    db.execute("DROP TABLE records")
  with pytest.raises(UserError, match=r"ledger\.sqlite cannot be read"):
    read_ledger(path)
