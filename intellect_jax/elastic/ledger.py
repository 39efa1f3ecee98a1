"""The coordinator's memory: terms, records, leases, losses. SQLite on disk.

Samples that were leased and not consumed are noted when they come back, for
audits alone: `python -m intellect_jax.audit`.

What is written here is durable when the call returns (WAL, synchronous=FULL):
a record is written first and announced after.
"""

from collections.abc import Iterator, Sequence
import contextlib
import json
import pathlib
import shutil
import sqlite3
import tempfile
import uuid

from intellect_jax.elastic import chain
from intellect_jax.elastic.books import History
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.samples import Holder, Interval, subtract
from intellect_jax.errors import UserError

FILE = "ledger.sqlite"  # in the workdir of a coordinator

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
  id TEXT NOT NULL, digest TEXT NOT NULL, config TEXT NOT NULL,
  term INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS records (
  number INTEGER PRIMARY KEY, body BLOB NOT NULL, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS leases (
  island TEXT, incarnation INTEGER, window INTEGER, samples TEXT NOT NULL,
  PRIMARY KEY (island, incarnation, window));
CREATE TABLE IF NOT EXISTS processes (
  island TEXT PRIMARY KEY, incarnation INTEGER, process BLOB);
CREATE TABLE IF NOT EXISTS returned (
  island TEXT, incarnation INTEGER, window INTEGER, samples TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS losses (
  island TEXT, incarnation INTEGER, tokens INTEGER, cause TEXT);
CREATE TABLE IF NOT EXISTS evaluations (
  record INTEGER PRIMARY KEY, loss REAL NOT NULL);
"""


class Ledger:
  """One run's ledger in one file; used by one thread of one process."""

  def __init__(self, path: pathlib.Path):
    """Opens or makes the file.

    Raises:
      UserError: if another coordinator has it open.
    """
    self._path = path
    path.parent.mkdir(parents=True, exist_ok=True)
    self._db = sqlite3.connect(
      path, isolation_level=None, timeout=1, check_same_thread=False
    )
    try:
      # Held until close: two coordinators cannot write one ledger.
      self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
      self._db.execute("PRAGMA journal_mode=WAL")
      self._db.execute("PRAGMA synchronous=FULL")
      self._db.executescript(_SCHEMA)
      self._db.execute("BEGIN IMMEDIATE")
      self._db.execute("COMMIT")
    except sqlite3.DatabaseError as error:
      self._db.close()
      raise UserError(
        f"The ledger {path} cannot be opened ({error}). If a coordinator"
        " with this workdir is running, end it first or use another"
        " --workdir."
      ) from error

  def open_run(self, digest: str, config_json: str) -> History:
    """Starts the next term of the run, or the run itself.

    Raises:
      UserError: if the ledger belongs to a run with another config.
    """
    row = self._db.execute(
      "SELECT id, digest, config, term FROM run"
    ).fetchone()
    if row is None:
      run_id, term = uuid.uuid4().hex, 1
      self._db.execute(
        "INSERT INTO run VALUES (?, ?, ?, ?)",
        (run_id, digest, config_json, term),
      )
    else:
      run_id, known, known_json, term = row[0], row[1], row[2], row[3] + 1
      if known != digest:
        raise UserError(
          f"The ledger {self._path} belongs to run {run_id}, whose config"
          f" differs in {', '.join(_differences(known_json, config_json))}."
          " Start with the config of that run, or choose another --workdir."
        )
      self._db.execute("UPDATE run SET term = ?", (term,))
    return History(
      run_id,
      term,
      log=[
        pb.SealedRecord(body=body, hash=digest)
        for body, digest in self._db.execute(
          "SELECT body, hash FROM records ORDER BY number"
        )
      ],
      leases={
        Holder(*row[:3]): [(a, b) for a, b in json.loads(row[3])]
        for row in self._db.execute("SELECT * FROM leases")
      },
      processes={
        (island, incarnation): process
        for island, incarnation, process in self._db.execute(
          "SELECT * FROM processes"
        )
      },
      losses=[
        pb.Loss(island=a, incarnation=b, tokens=c, cause=d)
        for a, b, c, d in self._db.execute("SELECT * FROM losses")
      ],
      evaluations=dict(self._db.execute("SELECT * FROM evaluations")),
    )

  def recovered(self, history: History, digest: str, config_json: str) -> None:
    """Starts with what islands had of a run, whole or not at all."""
    self._db.execute("BEGIN")
    self._db.execute(
      "INSERT INTO run VALUES (?, ?, ?, ?)",
      (history.run_id, digest, config_json, history.term),
    )
    self._db.executemany(
      "INSERT INTO records VALUES (?, ?, ?)",
      [(v, sealed.body, sealed.hash) for v, sealed in enumerate(history.log)],
    )
    self._db.execute("COMMIT")

  def check_empty(self) -> None:
    """Raises UserError if a run has begun here."""
    if self._db.execute("SELECT id FROM run").fetchone() is not None:
      raise UserError(
        f"The ledger {self._path} has a run, and --recover would leave it"
        " behind. Start without --recover; or, if it is an old copy, move it"
        " away or choose another --workdir."
      )

  def append(self, record: pb.Record, sealed: pb.SealedRecord) -> None:
    """Adds a record and ends the leases of its windows, both or neither."""
    self._db.execute("BEGIN")
    self._db.execute(
      "INSERT INTO records VALUES (?, ?, ?)",
      (record.number, sealed.body, sealed.hash),
    )
    for holder, window in chain.windows_of(record):
      self._end_lease(holder, chain.intervals(window))
    self._db.execute("COMMIT")

  def save_lease(self, holder: Holder, samples: list[Interval]) -> None:
    self._db.execute(
      "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)",
      (*holder, json.dumps(samples)),
    )

  def save_process(self, island: str, incarnation: int, process: bytes) -> None:
    self._db.execute(
      "INSERT OR REPLACE INTO processes VALUES (?, ?, ?)",
      (island, incarnation, process),
    )

  def end_leases(self, holders: list[Holder], loss: pb.Loss | None) -> None:
    """Ends leases and notes what was lost with them, both or neither."""
    self._db.execute("BEGIN")
    for holder in holders:
      self._end_lease(holder)
    if loss is not None:
      self._db.execute(
        "INSERT INTO losses VALUES (?, ?, ?, ?)",
        (loss.island, loss.incarnation, loss.tokens, loss.cause),
      )
    self._db.execute("COMMIT")

  def save_losses(self, losses: list[pb.Loss]) -> None:
    """Writes all losses anew."""
    self._db.execute("BEGIN")
    self._db.execute("DELETE FROM losses")
    self._db.executemany(
      "INSERT INTO losses VALUES (?, ?, ?, ?)",
      [(x.island, x.incarnation, x.tokens, x.cause) for x in losses],
    )
    self._db.execute("COMMIT")

  def _end_lease(
    self, holder: Holder, consumed: Sequence[Interval] = ()
  ) -> None:
    where = "WHERE island = ? AND incarnation = ? AND window = ?"
    leased = self._db.execute(f"SELECT samples FROM leases {where}", holder)
    for (samples,) in leased.fetchall():
      back = subtract([(a, b) for a, b in json.loads(samples)], list(consumed))
      if back:
        self._db.execute(
          "INSERT INTO returned VALUES (?, ?, ?, ?)",
          (*holder, json.dumps(back)),
        )
    self._db.execute(f"DELETE FROM leases {where}", holder)

  def save_evaluation(self, record: int, loss: float) -> None:
    self._db.execute("INSERT INTO evaluations VALUES (?, ?)", (record, loss))

  def close(self) -> None:
    self._db.close()


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
  """A copy of a ledger to read, so that a coordinator may go on writing.

  Raises:
    UserError: if it is no ledger of this version; also of what is read from it
      meanwhile.
  """
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / path.name
    try:
      _copy(path, copy)
      with contextlib.closing(sqlite3.connect(copy)) as db:
        yield db
    except (sqlite3.DatabaseError, TypeError, ValueError) as error:
      raise UserError(
        f"{path} cannot be read as the ledger of a run ({error})."
      ) from error


def _copy(path: pathlib.Path, to: pathlib.Path) -> None:
  """Copies a database and its log; again if the one moved to the other."""
  wal = path.with_name(f"{path.name}-wal")
  while True:
    before = path.stat().st_mtime_ns
    shutil.copyfile(path, to)
    with contextlib.suppress(FileNotFoundError):
      shutil.copyfile(wal, to.with_name(wal.name))
    if path.stat().st_mtime_ns == before:
      return


def _differences(known_json: str, config_json: str) -> list[str]:
  known, given = _flat(json.loads(known_json)), _flat(json.loads(config_json))
  keys = sorted(known.keys() | given.keys())
  return [
    f"{key} ({known.get(key)} there, {given.get(key)} here)"
    for key in keys
    if known.get(key) != given.get(key)
  ]


def _flat(tree: dict, path: str = "run") -> dict[str, object]:
  flat = {}
  for key, value in tree.items():
    name = f"{path}.{key}"
    flat.update(
      _flat(value, name) if isinstance(value, dict) else {name: value}
    )
  return flat
