"""The ledger: what it has taken is there, whatever kills the process."""

import contextlib
import pathlib
import signal
import subprocess
import sys

import pytest
from simulation.world import run_config

from intellect_jax import config as config_lib
from intellect_jax.elastic.ledger import Ledger
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder
from intellect_jax.errors import UserError


def opened(path: pathlib.Path, run=None):
  run = run or run_config()
  ledger = Ledger(path)
  return ledger, ledger.open_run(
    config_lib.digest(run), config_lib.to_json(run)
  )


def record(number: int, windows=()) -> tuple[pb.Record, pb.SealedRecord]:
  made = pb.Record(number=number)
  if windows:
    made.step.members.add(
      island="a",
      incarnation=1,
      windows=[pb.Window(number=window) for window in windows],
    )
  sealed = pb.SealedRecord(body=made.SerializeToString(), hash=b"h%d" % number)
  return made, sealed


def test_everything_survives_a_reopening(tmp_path):
  path = tmp_path / "deep" / "ledger.sqlite"
  ledger, history = opened(path)
  assert (history.term, history.log, history.leases) == (1, [], {})
  run_id = history.run_id
  taken, returned = Holder("a", 1, 0), Holder("a", 1, 1)
  ledger.save_lease(taken, [(0, 4), (9, 12)])
  ledger.save_lease(returned, [(4, 9)])
  ledger.append(*record(0))
  loss = pb.Loss(island="a", incarnation=1, tokens=7, cause="evicted")
  ledger.end_leases([returned], loss)
  ledger.save_evaluation(0, 5.5)
  ledger.close()

  ledger, history = opened(path)
  assert (history.run_id, history.term) == (run_id, 2)
  assert history.log == [record(0)[1]]
  assert history.leases == {taken: [(0, 4), (9, 12)]}
  assert history.losses == [loss]
  assert history.evaluations == {0: 5.5}
  ledger.close()


def test_a_record_ends_the_leases_of_its_windows(tmp_path):
  ledger, _ = opened(tmp_path / "l")
  for window in (1, 2, 3):
    ledger.save_lease(Holder("a", 1, window), [(window, window + 1)])
  ledger.append(*record(0, windows=(1, 3)))
  ledger.close()
  ledger, history = opened(tmp_path / "l")
  assert list(history.leases) == [Holder("a", 1, 2)]
  ledger.close()


def test_a_second_coordinator_is_refused(tmp_path):
  ledger, _ = opened(tmp_path / "l")
  with pytest.raises(UserError, match="coordinator with this workdir"):
    Ledger(tmp_path / "l")
  ledger.append(*record(0))  # and the first goes on
  ledger.close()
  opened(tmp_path / "l")[0].close()


def test_another_config_is_refused_by_the_fields_that_differ(tmp_path):
  opened(tmp_path / "l")[0].close()
  other = run_config(lease_seconds=99.0)
  other.outer.inner_steps = 7
  ledger = Ledger(tmp_path / "l")
  with pytest.raises(UserError) as caught:
    ledger.open_run(config_lib.digest(other), config_lib.to_json(other))
  ledger.close()
  text = str(caught.value)
  assert "run.elastic.lease_seconds (2.0 there, 99.0 here)" in text
  assert "run.outer.inner_steps (100 there, 7 here)" in text
  assert "codec" not in text


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path):
  path = tmp_path / "l"
  path.write_text("notes, not a database\n" * 100)
  with pytest.raises(UserError, match="cannot be opened"):
    Ledger(path)
  assert path.read_text() == "notes, not a database\n" * 100


_APPENDS = """
import pathlib, sys
from intellect_jax.elastic.ledger import Ledger
from intellect_jax.elastic.protocol import elastic_pb2 as pb

ledger = Ledger(pathlib.Path(sys.argv[1]))
ledger.open_run("digest", "{}")
number = 0
while True:
  record = pb.Record(number=number)
  body = record.SerializeToString() + b"x" * 500
  ledger.append(record, pb.SealedRecord(body=body, hash=b"h"))
  print(number, flush=True)
  number += 1
"""


def test_what_was_reported_durable_survives_kill_9(tmp_path):
  path = tmp_path / "ledger.sqlite"
  process = subprocess.Popen(
    [sys.executable, "-c", _APPENDS, str(path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None
  reported = -1
  for line in process.stdout:
    reported = int(line)
    if reported == 100:
      process.send_signal(signal.SIGKILL)  # lines in the pipe are reports too
  process.wait()
  assert reported >= 100
  with contextlib.closing(Ledger(path)) as ledger:
    log = ledger.open_run("digest", "{}").log
  assert len(log) in (reported + 1, reported + 2)
