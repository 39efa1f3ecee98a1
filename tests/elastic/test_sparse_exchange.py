"""With a sparse codec all have all codes, and the same mean of them."""

import concurrent.futures
import contextlib
import threading

import numpy as np
import pytest
from test_crew import BLOCKS, Island

from intellect_jax.elastic import chain, reduce
from intellect_jax.elastic.actions import Gather
from intellect_jax.elastic.log import RecordLog
from intellect_jax.elastic.meter import Meter
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.round import CoordinatorRound
from intellect_jax.elastic.state import OuterState
from intellect_jax.outer.codec import make_codec

CODEC = make_codec("sparse2")
TOKENS = (1000, 300, 77)  # unlike, so that order and weights show
NEVER = threading.Event()


class Round:
  """A coordinator's round of three islands, and a fourth that comes late."""

  def __init__(self, folder):
    self.islands = [Island(n, 1, folder / str(n), CODEC) for n in range(4)]
    self.round = CoordinatorRound(CODEC)
    for n, tokens in enumerate(TOKENS):
      proposal = pb.Proposal(
        windows=[pb.Window(number=1, tokens=tokens)],
        delta=self.islands[n].publish_delta(),
        norm=float(np.linalg.norm(self.decoded(n))),
      )
      assert self.round.propose(str(n), 1, proposal) == ""
    names = [str(n) for n in range(len(TOKENS))]
    self.round.start(1, names, term=1, serial=1, weights=[1, 2, 3])
    assert self.round.plan is not None
    self.plan: pb.Plan = self.round.plan

  def codes(self, n: int) -> np.ndarray:
    out = np.empty(self.islands[n].length, np.uint8)
    CODEC.encode(self.islands[n].values, out)
    return out

  def decoded(self, n: int) -> np.ndarray:
    out = np.empty(BLOCKS * CODEC.block, np.float32)
    CODEC.decode(self.codes(n), out)
    return out

  def reduce(self) -> None:
    members = range(len(TOKENS))
    with concurrent.futures.ThreadPoolExecutor(len(TOKENS)) as pool:
      reports = pool.map(
        lambda n: self.islands[n].crew.reduce(self.plan, n, NEVER), members
      )
      for n, report in zip(members, reports, strict=True):
        self.round.share_reduced(str(n), report)

  def gather(self, n: int) -> None:
    wanted = Gather(self.plan.attempt, list(self.plan.shares), [])
    self.islands[n].crew.gather(wanted, NEVER)

  def record(self) -> pb.Record:
    step = pb.OuterStep(
      attempt=self.plan.attempt,
      members=self.plan.members,
      shares=self.plan.shares,
      codec="sparse2",
      learning_rate=1,
    )
    return pb.Record(number=1, step=step)

  def close(self) -> None:
    for island in self.islands:
      island.close()


@pytest.fixture
def swarm(tmp_path):
  with contextlib.closing(Round(tmp_path)) as swarm:
    yield swarm


def test_every_member_gathers_all_codes_once_and_moves_theta_alike(swarm):
  swarm.reduce()
  came = [island.crew.traffic()[2] for island in swarm.islands[:3]]
  for n in range(3):
    swarm.gather(n)
  # What came to be measured is the mean: gathering it brings nothing.
  assert [island.crew.traffic()[2] for island in swarm.islands[:3]] == came
  sent = [island.crew.traffic()[0] for island in swarm.islands[:3]]
  assert sent == [2 * island.length for island in swarm.islands[:3]]
  meter = Meter(swarm.islands[0].crew)
  meter.exchanged(swarm.record().step, "0")
  assert meter.codec_bytes == sent[0]
  swarm.gather(3)  # from whoever has it
  everyones = [swarm.codes(n) for n in range(3)]
  for island in swarm.islands:
    mean = np.frombuffer(island.mean(0, swarm.plan.attempt, 3), np.uint8)
    np.testing.assert_array_equal(mean, np.concatenate(everyones))

  total = np.zeros(BLOCKS * CODEC.block, np.float32)
  for n, tokens in enumerate(TOKENS):
    total += np.float32(tokens) * swarm.decoded(n)
  total /= np.float32(sum(TOKENS))
  state = OuterState(total.size)
  state.apply(swarm.record(), mean, CODEC)
  np.testing.assert_array_equal(state.theta, -total)
  mean_square = np.square(total, dtype=np.float64).sum()
  assert swarm.round._mean_norm() ** 2 == pytest.approx(mean_square, rel=1e-9)


def test_norms_add_up_to_what_was_claimed(swarm):
  swarm.reduce()
  assert swarm.round.liars() == []
  swarm.round._claims["1"] *= 1.01
  assert swarm.round.liars() == ["1"]


def test_the_log_replays_it_and_an_attempt_may_be_tried_again(swarm, tmp_path):
  genesis = chain.seal(pb.Record(number=0, genesis=pb.Genesis(state=b"s")))
  swarm.islands[0].crew.adopt(genesis)
  swarm.reduce()
  swarm.reduce()  # it was planned anew: the same codes, still served
  swarm.gather(0)
  record = swarm.record()
  record.previous = genesis.hash
  swarm.islands[0].crew.adopt(chain.seal(record))
  (replayed,) = RecordLog(tmp_path / "0" / "0-0").after(0)
  assert replayed == record
  path = tmp_path / "0" / "0-0" / "000000001.mean"
  data = bytearray(path.read_bytes())
  data[5] ^= 1
  path.write_bytes(data)
  assert not list(RecordLog(tmp_path / "0" / "0-0").after(0))


def test_a_member_that_does_not_deliver_is_named(swarm):
  swarm.islands[1].stores[0].withdraw(swarm.plan.members[1].delta.id)
  swarm.islands[0].fetchers[0].patience = 0.3
  with pytest.raises(reduce.MemberError) as caught:
    swarm.islands[0].crew.reduce(swarm.plan, 0, NEVER)
  assert caught.value.island == "1"


def test_an_attempt_has_whole_vectors_whatever_the_links_carry(swarm):
  bounds = [(share.start, share.stop) for share in swarm.plan.shares]
  assert bounds == [(n * BLOCKS, (n + 1) * BLOCKS) for n in range(3)]
