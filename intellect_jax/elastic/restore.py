"""A newcomer fetches theta and b: different ranges from several islands at once.

What is served is canonical, the same bytes on every island that stands at that
record, so any of them can serve any range (docs/protocol.md, 5). A donor that
fails leaves its pieces to the others; when nobody is left, what has come is
kept, and the next offer of the same state goes on from there.
"""

from collections.abc import Sequence
import queue
import threading

import numpy as np

from intellect_jax.elastic import blobs, fetching

_PIECE = 8 << 20  # bytes fetched from one donor at a time


class StateFetch:
  """Theta and b on their way, as bytes."""

  def __init__(
    self,
    fetcher: fetching.Fetcher,
    length: int,
    part: tuple[int, int] | None = None,
  ):
    """Of `length` bytes; `part` is what is fetched, if that is not all."""
    self._fetcher = fetcher
    self._data = np.empty(length, np.uint8)
    self._start, self._stop = part or (0, length)
    self._id = b""
    self._missing: set[int] = set()  # starts of pieces

  def fetch(
    self,
    blob_id: bytes,
    addresses: Sequence[str],
    cancelled: threading.Event,
  ) -> np.ndarray:
    """Returns the verified blob, uint8 [length]; of it only the part is filled.

    Args:
      blob_id: the state hash, which the chain of records confirms.
      addresses: of the islands that serve it; each is read by a thread, those
        behind relays only when no direct one is left.
      cancelled: ends the work when it is set.

    Raises:
      fetching.FetchError: no donor is left.
      fetching.Cancelled: once `cancelled` is set.
    """
    if blob_id != self._id:
      self._id = blob_id
      self._missing = set(range(self._start, self._stop, _PIECE))
    failures: dict[str, Exception] = {}
    while self._missing:
      ways = [a for a in dict.fromkeys(addresses) if a not in failures]
      if not ways:
        raise next(
          iter(failures.values()), fetching.FetchError("nobody", "no donor")
        )
      # A relay is a second way to a donor, and not a second donor.
      direct = [way for way in ways if not blobs.is_relayed(way)]
      self._share_out(direct or ways, cancelled, failures)
    return self._data

  def _check(self, manifest: blobs.Manifest) -> None:
    manifest.check_length(len(self._data))

  def _share_out(
    self,
    donors: list[str],
    cancelled: threading.Event,
    failures: dict[str, Exception],
  ) -> None:
    """Lets every donor read pieces until none is left to begin."""
    pieces: queue.SimpleQueue[int] = queue.SimpleQueue()
    for start in sorted(self._missing):
      pieces.put(start)
    readers = [
      threading.Thread(
        target=self._read, args=(donor, pieces, cancelled, failures)
      )
      for donor in donors
    ]
    for reader in readers:
      reader.start()
    for reader in readers:
      reader.join()

  def _read(
    self,
    address: str,
    pieces: queue.SimpleQueue[int],
    cancelled: threading.Event,
    failures: dict[str, Exception],
  ) -> None:
    """Reads piece after piece from one donor, until none is left or it fails."""
    while True:
      try:
        start = pieces.get_nowait()
      except queue.Empty:
        return
      stop = min(start + _PIECE, self._stop)
      try:
        for offset, chunk in self._fetcher.fetch(
          [address], self._id, start, stop, cancelled, self._check
        ):
          values = np.frombuffer(chunk, np.uint8)
          self._data[offset : offset + len(values)] = values
      except (fetching.FetchError, fetching.Cancelled) as error:
        failures[address] = error
        pieces.put(start)
        return
      self._missing.discard(start)
