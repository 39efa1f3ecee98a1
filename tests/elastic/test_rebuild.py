"""An island's own log says what its theta and b must be: the bytes."""

import numpy as np
from one_process import host

from intellect_jax.elastic import blobs, chain, means, rebuild, replica
from intellect_jax.elastic.host import Host
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import island_pb2 as ipb

FRAGMENT = 1


def saved(made: Host) -> pb.SealedRecord:
  """Record 0, and its checkpoint."""
  held = made.held
  genesis = held.describe()
  record = pb.Record(islands=1)
  record.genesis.state = genesis.state.id
  record.genesis.fragments.extend(genesis.fragments)
  held.log.keep(sealed := chain.seal(record))
  held.save(made.replica.state)
  return sealed


def step_after(made: Host, before: pb.SealedRecord) -> pb.Record:
  """Record 1: the fragment's own delta is the mean."""
  held = made.held
  freeze = ipb.Freeze(fragment=FRAGMENT)
  made.replica.do(ipb.Order(freeze=freeze))
  _, _, codes = made.part._kept[replica.delta_name(FRAGMENT)]
  share = pb.Share(stop=held.fragments[FRAGMENT].blocks)
  share.mean.length = len(codes)
  chunk = means.chunk_bytes([share], held.codec)
  share.mean.id = blobs.Manifest.of(codes, chunk).id
  step = pb.OuterStep(
    attempt=b"attempt",
    fragment=FRAGMENT,
    base_state=held.actual_hash(FRAGMENT),
    codec=held.codec.name,
    shares=[share],
    learning_rate=0.5,
    momentum=0.5,
  )
  for start, stop in held.fragments[FRAGMENT].runs:
    step.blocks.add(start=start, stop=stop)
  step.members.add(island="bo", weight=1.0, clip=1.0)
  record = pb.Record(number=1, step=step, previous=before.hash)
  held.shelf.open(step.attempt, len(codes), FRAGMENT)[:] = codes
  held.shelf.adopt(chain.seal(record))
  held.apply(record)
  return record


def test_a_replay_mends_its_fragment_and_leaves_the_others(tmp_path):
  with host(tmp_path, "float32", fragments=2) as made:
    held = made.held
    step_after(made, saved(made))
    right = [held.actual_hash(fragment) for fragment in (0, 1)]
    for (start, _), *_ in held.places:
      held.outer.theta.view(np.uint32)[start] ^= 1
    starts = rebuild.starts(
      held.log.records(), "ada", held.saves.numbers(), FRAGMENT
    )
    assert starts == [rebuild.Start(0, starts[0].agreed)]
    order = ipb.Rebuild(
      checkpoint=0, record=1, agreed=starts[0].agreed, fragment=FRAGMENT
    )
    report = made.replica.do(ipb.Order(rebuild=order))
    assert report.rebuilt == right[FRAGMENT] != report.state_hash
    assert held.actual_hash(FRAGMENT) == right[FRAGMENT]
    assert held.state_hash(FRAGMENT) == right[FRAGMENT]
    assert held.actual_hash(0) != right[0]
