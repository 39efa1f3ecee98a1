"""A swarm's figures, from the coordinator's status and the islands' summaries."""

from collections.abc import Iterable
from typing import Any

from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.outer.schedule import payload_reduction


def swarm_figures(status: pb.Status) -> dict[str, Any]:
  """What the coordinator knows, under the names of summary.json."""
  train = sum(i.heartbeat.train_seconds for i in status.islands)
  blocked = sum(i.heartbeat.blocked_seconds for i in status.islands)
  losses = [e.loss for e in status.evaluations]
  return dict(
    run_id=status.run_id,
    rounds=status.record,
    final=status.final,
    term=status.term,
    tokens_trained=status.tokens_trained,
    tokens_committed=status.total_tokens,
    tokens_lost=status.tokens_lost,
    losses=[
      dict(island=loss.island, tokens=loss.tokens, cause=loss.cause)
      for loss in status.losses
    ],
    initial_eval_loss=losses[0] if losses else None,
    final_eval_loss=losses[-1] if losses else None,
    islands=[i.island for i in status.islands],
    theta_hash={
      i.island: i.state_hash.hex()
      for i in status.islands
      if i.state_record == status.record and i.state_hash
    },
    bytes_sent={i.island: i.heartbeat.bytes_sent for i in status.islands},
    bytes_relayed={i.island: i.heartbeat.bytes_relayed for i in status.islands},
    compute_utilization=train / (train + blocked) if train else 0.0,
  )


def mean_payload_reduction(
  islands: Iterable[dict[str, Any]], inner_steps: int
) -> float | None:
  """DESIGN's payload reduction, the mean over islands that sent something."""
  ratios = [
    payload_reduction(
      island["members"],
      island["values"],
      inner_steps,
      island["codec_bytes_sent"] / island["rounds"],
    )
    for island in islands
    if island["rounds"] and island["codec_bytes_sent"]
  ]
  return sum(ratios) / len(ratios) if ratios else None
