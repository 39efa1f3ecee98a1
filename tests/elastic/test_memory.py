"""An outer step in little memory: under a tenth of a fragment's float32.

Beside what there is anyhow: theta, b, x, the encoded delta and the encoded mean,
which is a file, and error feedback.
"""

from collections.abc import Callable
import tracemalloc

import jax
from one_process import committed, freeze, host
import pytest

from intellect_jax.elastic.protocol import island_pb2 as ipb
from intellect_jax.outer.excerpt import Excerpt

PART = 0.1  # of a fragment, that may be needed for a while
# 42 MB of float32, of which the largest tensor has a thirteenth.
LARGE = dict(layers=11, width=256, ffn=1024, vocab_size=3072)


def peak(work: Callable[[], object]) -> int:
  """Bytes of host memory that numpy and Python come to need at once."""
  tracemalloc.start()
  try:
    before, _ = tracemalloc.get_traced_memory()
    work()
    return tracemalloc.get_traced_memory()[1] - before
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize("codec", ["int8", "sparse2"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_delta_is_encoded_a_piece_at_a_time(tmp_path, codec, scan_layers):
  made = host(tmp_path, codec, scan_layers, model=LARGE)
  fragment = 4 * made.held.layout.size
  with made:
    needed = peak(lambda: freeze(made))
  encoded = made.held.mean_bytes[0]
  feedback = fragment if codec == "sparse2" else 0
  assert needed >= encoded + feedback  # all of that is seen
  assert needed < encoded + feedback + PART * fragment


@pytest.mark.parametrize(
  ("anchor", "alpha"),
  [
    (ipb.Merge.ANCHOR_X, 0.0),
    (ipb.Merge.ANCHOR_X, 0.5),
    (ipb.Merge.ANCHOR_FROZEN, 0.0),
    (ipb.Merge.ANCHOR_THETA, 0.0),
  ],
)
def test_a_record_is_merged_a_tensor_at_a_time(
  tmp_path, monkeypatch, anchor, alpha
):
  """On the host, and on the devices: there jax knows what is alive."""
  made, alive = host(tmp_path, "int8", model=LARGE), []
  place = Excerpt.place

  def watched(self, vector):
    for values in place(self, vector):
      alive.append(sum(array.nbytes for array in jax.live_arrays()))
      yield values

  monkeypatch.setattr(Excerpt, "place", watched)
  with made:
    freeze(made, keep_x=anchor == ipb.Merge.ANCHOR_FROZEN)
    before = sum(array.nbytes for array in jax.live_arrays())
    record = committed(made)
    order = ipb.Merge(record=record, anchor=anchor, alpha=alpha)
    needed = peak(lambda: made.replica.do(ipb.Order(merge=order)))
    assert made.held.record.number == 1
  fragment = 4 * made.held.layout.size
  assert len(alive) >= len(made.held.layout.tensors)
  assert needed < PART * fragment
  assert max(alive) < before + PART * fragment
