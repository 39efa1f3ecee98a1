"""The all-reduce over real servers: bit for bit what numpy computes."""

import concurrent.futures
import contextlib
import threading

import numpy as np
import pytest

from intellect_jax.elastic import blobs, fetching, reduce, rpc
from intellect_jax.elastic import round as round_lib
from intellect_jax.elastic.ahead import Ahead
from intellect_jax.elastic.growing import name_of
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.codec import NotFiniteError, make_codec

BLOCKS = 300
TOKENS = {"a": 1000, "b": 300, "c": 77}  # unlike, so that order and w show
NEVER = threading.Event()


class Islands:
  """Three islands, each with a server, an encoded delta and an exchange."""

  def __init__(self, codec_name: str, patience: float = 5.0):
    self.codec = make_codec(codec_name)
    self.length = BLOCKS * self.codec.block_bytes
    self.chunk = blobs.chunk_bytes(self.length, self.codec.block_bytes)
    self.deltas, self.exchanges, self.servers = {}, {}, {}
    self.round = round_lib.CoordinatorRound(self.codec)
    for seed, (name, tokens) in enumerate(TOKENS.items()):
      rng = np.random.default_rng(seed)
      values = rng.standard_normal(BLOCKS * 256).astype(np.float32)
      codes = np.empty(self.length, np.uint8)
      self.codec.encode(values, codes)
      self.deltas[name] = codes
      store = blobs.BlobStore()
      server = rpc.server(threads=8)
      store.add_to(server)
      store.addresses = [rpc.listen(server, "127.0.0.1:0", rpc.LOOPBACK)]
      self.servers[name] = server
      fetcher = fetching.Fetcher(rpc.LOOPBACK, patience)
      self.exchanges[name] = reduce.Exchange(self.codec, store, fetcher)
      refusal = self.round.propose(
        name,
        1,
        pb.Proposal(
          windows=[pb.Window(tokens=tokens)],
          delta=store.publish(codes, self.chunk),
          norm=self.norm(name),
        ),
      )
      assert refusal == ""
    self.round.start(1, list(TOKENS), term=1, serial=1)
    assert self.round.plan is not None
    self.plan: pb.Plan = self.round.plan

  def norm(self, name: str) -> float:
    return float(np.sqrt(self.codec.squared_norm(self.deltas[name])))

  def reduce(self, name: str) -> pb.ShareReduced:
    index = list(TOKENS).index(name)
    exchange = self.exchanges[name]
    share = exchange.reduce_share(self.plan, index, NEVER)
    return pb.ShareReduced(
      attempt=self.plan.attempt,
      share=index,
      mean=exchange.store.publish_hashed(
        share.manifest(self.chunk), share.codes
      ),
      squared_norms=share.squares,
    )

  def gather(self, name: str, shares, holders=(), ahead=None) -> np.ndarray:
    into = np.zeros(self.length, np.uint8) if ahead is None else ahead.data
    action = round_lib.Gather(b"", list(shares), list(holders))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      self.exchanges[name].gather(action, into, NEVER, pool.submit, ahead=ahead)
    return into

  def ahead(self, name: str, cancelled=NEVER) -> Ahead:
    """Begins to read the others' shares of the plan."""
    return Ahead(
      self.exchanges[name].fetcher,
      self.plan,
      list(TOKENS).index(name),
      self.codec.block_bytes,
      np.zeros(self.length, np.uint8),
      cancelled,
    )

  def stop(self, name: str) -> None:
    self.servers[name].stop(grace=None).wait()

  def close(self) -> None:
    for name in TOKENS:
      self.stop(name)
      self.exchanges[name].fetcher.close()


def expected_mean(islands: Islands) -> np.ndarray:
  """In member order: sum += w * decoded, then / sum(w), then encoded."""
  codec = islands.codec
  total = np.zeros(BLOCKS * 256, np.float32)
  decoded = np.empty_like(total)
  for name, tokens in TOKENS.items():
    codec.decode(islands.deltas[name], decoded)
    total += np.float32(tokens) * decoded
  total /= np.float32(sum(TOKENS.values()))
  codes = np.empty(islands.length, np.uint8)
  codec.encode(total, codes)
  return codes


@pytest.mark.parametrize("codec", ["int8", "int4", "e3m0", "float32"])
def test_every_member_ends_with_the_same_bits_as_numpy(codec):
  with contextlib.closing(Islands(codec)) as islands:
    for name in TOKENS:
      sent = islands.round.share_reduced(name, islands.reduce(name))
    assert sent[0][1].HasField("fix")
    assert islands.round.liars() == []  # the norms add up to what was claimed
    expected = expected_mean(islands)
    for name in TOKENS:
      gathered = islands.gather(name, islands.plan.shares)
      np.testing.assert_array_equal(gathered, expected)


def test_a_mean_may_come_while_it_is_reduced():
  with contextlib.closing(Islands("int8")) as islands:
    ahead = islands.ahead("a")  # before anybody has begun
    for name in TOKENS:
      islands.round.share_reduced(name, islands.reduce(name))
    mean = islands.gather("a", islands.plan.shares, ahead=ahead)
    np.testing.assert_array_equal(mean, expected_mean(islands))
    # Everything came once: a's share of the others' deltas, with the manifests
    # of these, and the others' shares.
    own = islands.plan.shares[0].stop * islands.codec.block_bytes
    manifest = blobs.Manifest.of(islands.deltas["b"], islands.chunk).pack()
    came = islands.exchanges["a"].fetcher.bytes_received
    assert came == 2 * (own + len(manifest)) + islands.length - own


def test_a_share_that_is_not_what_was_fixed_is_fetched():
  with contextlib.closing(Islands("int8")) as islands:
    ahead = islands.ahead("a")
    for name in TOKENS:
      islands.round.share_reduced(name, islands.reduce(name))
    for index in 1, 2:
      assert ahead.take(index) is not None
      wrong = islands.plan.shares[index].start * 260 + 5
      ahead.data[wrong] ^= 1
      codes = ahead.data[wrong - 5 : islands.plan.shares[index].stop * 260]
      ahead._came[index] = blobs.Manifest.of(codes, islands.chunk)
    mean = islands.gather("a", islands.plan.shares, ahead=ahead)
    np.testing.assert_array_equal(mean, expected_mean(islands))


def test_a_share_that_is_longer_than_it_was_said_stays_out_of_the_others():
  """Its last chunk would lie in the next share, which was verified."""
  with contextlib.closing(Islands("int8", patience=0.2)) as islands:
    for name in TOKENS:
      islands.round.share_reduced(name, islands.reduce(name))
    store, mean = islands.exchanges["a"].store, islands.plan.shares[0].mean
    own = store.get(mean.id, 0, mean.length)
    assert own is not None
    longer = np.concatenate([own, np.full(len(own), 7, np.uint8)])
    mean.id = store.publish(longer, len(longer)).id
    with pytest.raises(reduce.MemberError, match="a: the blob has"):
      islands.gather("c", islands.plan.shares)


def test_a_share_that_comes_here_meanwhile_is_taken(monkeypatch):
  """It was not here when its manifest was looked for."""
  with contextlib.closing(Islands("int8")) as islands:
    for name in TOKENS:
      islands.round.share_reduced(name, islands.reduce(name))
    store, asked = islands.exchanges["a"].store, set()
    manifest = store.manifest

    def late(blob_id: bytes):
      before = blob_id in asked
      asked.add(blob_id)
      return manifest(blob_id) if before else None

    monkeypatch.setattr(store, "manifest", late)
    mean = islands.gather("a", islands.plan.shares)
    np.testing.assert_array_equal(mean, expected_mean(islands))


def test_nobody_waits_for_more_of_a_share_once_it_is_fixed():
  """Its owner died in between; others have it."""
  with contextlib.closing(Islands("int8", patience=0.3)) as islands:
    cancelled = threading.Event()
    ahead, other = islands.ahead("a"), islands.ahead("b", cancelled)
    islands.stop("c")
    assert ahead.take(2) is None
    cancelled.set()
    assert other.take(0) is None and other.take(2) is None


def test_a_reduction_that_fails_ends_what_grows():
  with contextlib.closing(Islands("int8", patience=0.3)) as islands:
    store = islands.exchanges["a"].store
    islands.stop("b")
    with pytest.raises(reduce.MemberError):
      islands.reduce("a")
    request = pb.FetchRequest(id=name_of(islands.plan.attempt, 0))
    assert list(store.frames(request)) == []


def test_a_dead_member_is_named():
  with contextlib.closing(Islands("int8", patience=0.3)) as islands:
    islands.stop("b")
    with pytest.raises(reduce.MemberError) as caught:
      islands.reduce("a")
    assert caught.value.island == "b"


def test_the_owner_of_a_share_that_nobody_delivers_is_named():
  with contextlib.closing(Islands("int8", patience=0.3)) as islands:
    for name in TOKENS:
      islands.round.share_reduced(name, islands.reduce(name))
    islands.stop("c")
    with pytest.raises(reduce.MemberError) as caught:
      islands.gather("a", islands.plan.shares)
    assert caught.value.island == "c"


def test_a_dead_owners_share_comes_from_who_has_it_already():
  with contextlib.closing(Islands("int8")) as islands:
    for name in TOKENS:
      islands.round.share_reduced(name, islands.reduce(name))
    shares = islands.plan.shares
    mean = islands.gather("b", shares)
    block_bytes = islands.codec.block_bytes
    holder = islands.exchanges["b"].store
    for share in shares:
      part = mean[share.start * block_bytes : share.stop * block_bytes]
      holder.publish(part, islands.chunk)
    islands.stop("c")
    again = islands.gather("a", shares, holder.addresses)
    np.testing.assert_array_equal(again, mean)


def test_wrong_bytes_of_a_delta_never_enter_a_mean():
  with contextlib.closing(Islands("int8", patience=0.3)) as islands:
    store = islands.exchanges["b"].store
    manifest = blobs.Manifest.of(islands.deltas["b"], islands.chunk)
    wrong = islands.deltas["b"].copy()
    wrong[5] ^= 1
    store.publish_hashed(manifest, wrong)
    with pytest.raises(reduce.MemberError, match="wrong hash") as caught:
      islands.reduce("a")
    assert caught.value.island == "b"


def test_a_cancelled_reduction_stops():
  with contextlib.closing(Islands("int8")) as islands:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(fetching.Cancelled):
      islands.exchanges["a"].reduce_share(islands.plan, 0, cancelled)


@pytest.mark.parametrize("name", ["int8", "float32"])
@pytest.mark.parametrize("cuts", [[], [1], [1, 7, 100, 299]])
def test_encoding_in_pieces_is_encoding_the_whole(name, cuts):
  codec = make_codec(name)
  values = np.random.default_rng(0).standard_normal(BLOCKS * 256, np.float32)
  whole = np.empty(BLOCKS * codec.block_bytes, np.uint8)
  codec.encode(values, whole)
  chunk = blobs.chunk_bytes(len(whole), codec.block_bytes)
  pieces = np.split(values, np.multiply(cuts, codec.block).astype(int))
  encoded = reduce.encode(codec, pieces, len(whole), chunk)
  np.testing.assert_array_equal(encoded.codes, whole)
  assert encoded.manifest(chunk) == blobs.Manifest.of(whole, chunk)
  assert np.isclose(encoded.squares[0], codec.squared_norm(whole), rtol=1e-12)


def test_a_value_without_a_code_is_named_by_its_place_in_the_vector():
  codec, values = make_codec("int8"), np.zeros(8 * 256, np.float32)
  values[1000] = np.inf
  with pytest.raises(NotFiniteError) as raised:
    reduce.encode(codec, np.split(values, 4), 8 * codec.block_bytes, 1 << 20)
  assert (raised.value.index, raised.value.value) == (1000, np.inf)


def test_pieces_that_end_early_are_refused():
  codec, pieces = make_codec("int8"), [np.zeros(256, np.float32)]
  with pytest.raises(ValueError, match="260"):
    reduce.encode(codec, pieces, 2 * codec.block_bytes, 1 << 20)
