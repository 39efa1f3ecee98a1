"""A swarm's history once more, by one process that plays every island.

  python single_process.py ledger.sqlite compilation_cache data_folder

From the records it takes only who trained on which samples; the rest is the
inner step and the outer kernels, for the islands in turn. Prints, as JSON, the
hash of theta and b at each record.
"""

import itertools
import json
import pathlib
import sys

import jax
from ml_collections import ConfigDict
import numpy as np
from processes import read_ledger

from intellect_jax import command
from intellect_jax import config as config_lib
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.tokenizer import tokenizer_of
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.state import OuterState
from intellect_jax.inner.step import TrainState, TrainStep
from intellect_jax.model import sharding
from intellect_jax.model.huggingface import tensor_names
from intellect_jax.outer.codec import make_codec
from intellect_jax.outer.layout import Layout
from intellect_jax.outer.schedule import position


def simulate(
  run: ConfigDict, island: ConfigDict, records: list[pb.Record]
) -> list[str]:
  index = GlobalIndex(run.data, tokenizer_of(run), island.data)
  step = TrainStep(run, island, sharding.make_mesh())
  codec = make_codec(run.outer.codec)
  state = step.init(jax.random.key(run.seed))
  layout = Layout.of(state.params, tensor_names(state.params), codec.block)
  theta = layout.flatten(state.params)
  outer = OuterState(layout.size)
  outer.replace(np.concatenate([theta, np.zeros_like(theta)]), 0)
  moments, left = {}, {}  # by island
  codes = np.empty(layout.blocks * codec.block_bytes, np.uint8)
  hashes = [outer.manifest()[1].id.hex()]
  for base, record in itertools.pairwise(records):
    total, weights = np.zeros(layout.size, np.float32), []
    every = []  # member's codes
    for member in record.step.members:
      state = step.from_params(layout.unflatten(outer.theta))
      if member.island in moments:
        state = TrainState(state.params, moments[member.island])
      tokens = 0
      samples = [(s.start, s.stop) for w in member.windows for s in w.samples]
      for batch in index.batches(samples, run.inner.batch_size):
        at = position(base.total_tokens, tokens, base.islands)
        state, _ = step(state, batch, at)
        tokens += batch["tokens"].size
      moments[member.island] = state.opt_state
      values = outer.theta - layout.flatten(state.params)
      if codec.sparse:
        beta = np.float32(run.outer.feedback)
        values += beta * left.get(member.island, np.float32(0))
      codec.encode(values, codes)
      if codec.sparse:
        decoded = np.empty_like(values)
        codec.decode(codes, decoded)
        left[member.island] = values - decoded
      codec.accumulate(total, codes, tokens)
      weights.append(tokens)
      every.append(codes.copy())
    codec.encode(total / np.float32(sum(weights)), codes)
    outer.apply(record, np.concatenate(every) if codec.sparse else codes, codec)
    hashes.append(outer.manifest()[1].id.hex())
  return hashes


if __name__ == "__main__":
  ledger, cache, folder = sys.argv[1:]
  run_json, records = read_ledger(pathlib.Path(ledger))
  island = config_lib.base().island
  island.compilation_cache, island.model.remat = cache, "none"
  island.data.folder = folder
  command.set_up_jax(island)
  print(json.dumps(simulate(config_lib.from_json(run_json), island, records)))
