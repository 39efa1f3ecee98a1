"""Means that are served from the log: all of them, and nothing that is left."""

import os
import pathlib
import threading

import numpy as np
import pytest

from intellect_jax.elastic import blobs, chain
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.shelf import MeanShelf
from intellect_jax.outer.codec import make_codec

BLOCK_BYTES = make_codec("int8").block_bytes
BLOCKS = 8
LENGTH = BLOCKS * BLOCK_BYTES
CHUNK = blobs.chunk_bytes(LENGTH, BLOCK_BYTES)


class Shelf:
  """A shelf with its log and its store; records follow each other."""

  def __init__(self, folder: pathlib.Path):
    self.log = RecordLog(folder)
    self.log.open()
    self.store = blobs.BlobStore()
    self.shelf = MeanShelf(self.store, self.log, BLOCK_BYTES, [LENGTH])

  def commit(self, number: int, seed: int) -> list[bytes]:
    """A record whose mean of two shares follows from the seed; their ids."""
    attempt = seed.to_bytes(32)
    mean = self.shelf.open(attempt, LENGTH)
    mean[:] = mean_of(seed)
    shares, manifests = [], {}
    for start, stop in ((0, 3), (3, BLOCKS)):
      part = mean[start * BLOCK_BYTES : stop * BLOCK_BYTES]
      manifest = blobs.Manifest.of(part, CHUNK)
      blob = pb.Blob(id=manifest.id, length=len(part))
      shares.append(pb.Share(start=start, stop=stop, mean=blob))
      manifests[manifest.id] = manifest
    self.shelf.put(attempt, shares, mean, manifests)
    step = pb.OuterStep(attempt=attempt, shares=shares, codec="int8")
    before = self.log.record(number - 1) if number else None
    previous = before.hash if before is not None else b""
    record = pb.Record(number=number, previous=previous, step=step)
    self.shelf.adopt(chain.seal(record))
    return list(manifests)

  def serves(self, ids: list[bytes]) -> bytes:
    """What readers of these blobs are sent."""
    return b"".join(
      frame
      for blob_id in ids
      for frame in list(
        self.store.frames(pb.FetchRequest(id=blob_id, stop=1 << 40))
      )[1:]
    )


def mean_of(seed: int) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, LENGTH, np.uint8)


def open_files() -> int:
  return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
def test_no_mean_of_the_log_keeps_a_file_open(tmp_path):
  """Else a small model's island has as many as it may after 1,000 rounds."""
  made, before = Shelf(tmp_path), open_files()
  ids = [made.commit(number, number) for number in range(50)]
  assert open_files() == before
  again = Shelf(tmp_path)
  again.shelf.load(threading.Event())
  assert open_files() == before
  for shelf in (made, again):
    for seed, blob_ids in enumerate(ids):
      assert shelf.serves(blob_ids) == mean_of(seed).tobytes()
      for blob_id in blob_ids:
        assert shelf.store.get(blob_id, 0, BLOCK_BYTES) is not None


def test_what_a_chain_that_lost_had_is_served_no_more(tmp_path):
  made = Shelf(tmp_path)
  made.commit(0, seed=0)
  lost, won = made.commit(1, seed=1), made.commit(1, seed=2)
  assert made.serves(won) == mean_of(2).tobytes()
  assert made.serves(lost) == b""
  made.shelf.trim(before=2, bound=0)
  assert made.serves(won) == b""


def test_a_mean_that_is_trimmed_while_it_is_served_ends_there(tmp_path):
  made = Shelf(tmp_path)
  (first, *_) = made.commit(0, seed=0)
  frames = made.store.frames(pb.FetchRequest(id=first, stop=1 << 40))
  next(frames)  # its manifest
  made.shelf.trim(before=1, bound=0)
  assert list(frames) == []
  assert made.store.get(first, 0, BLOCK_BYTES) is None
