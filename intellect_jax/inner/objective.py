"""What a step minimizes: cross-entropy of the next token, or DPO of pairs.

And of which parameters: the model's, or adapters beside frozen ones, which are
also the reference of DPO.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from intellect_jax.inner import preference
from intellect_jax.inner.loss import (
  TokenLosses,
  chunked_token_losses,
  loss_sums,
)
from intellect_jax.model import llama, lora

Batch = Mapping[str, Any]  # of BxL arrays, see TrainStep


class Sums(NamedTuple):
  """Over a part of a batch; float32 scalars."""

  total: jax.Array  # what is minimized, but for the count
  figures: dict[str, jax.Array]  # to be told, "loss" among them
  max_logit: jax.Array  # a maximum, not a sum


class Objective:
  """The loss that `run.inner.loss` names, of the parameters that are trained.

  Attributes:
    c: of the model, with its adapters.
    frozen: shapes of the parameters that are needed and stay as they were;
      None: there are none.
  """

  def __init__(self, run: ConfigDict, island: ConfigDict):
    self._inner = run.inner
    self._dpo = run.inner.loss == "dpo"
    self._loss_chunk = island.inner.loss_chunk
    self.c = llama.LlamaConfig.of(run.model, island.model)
    self._base = dataclasses.replace(self.c, lora_rank=0)
    self.frozen = None
    if self._dpo or self.c.lora_rank:
      self.frozen = llama.abstract_params(self._base)

  def count(self, batch: Batch) -> jax.Array:
    """What sums are divided by for means: trained tokens, or pairs."""
    if self._dpo:
      return preference.count_pairs(batch["weights"], batch["segment_ids"])
    return jnp.sum(batch["weights"])

  def sums(self, params: llama.Params, frozen: Any, batch: Batch) -> Sums:
    """Over a batch or a part of one: parts just add up.

    Args:
      params: that are trained.
      frozen: as in `frozen`.
      batch: tokens, targets and the rest.
    """
    joined = lora.join(frozen, params) if self.c.lora_rank else params
    losses = self._losses(self.c, joined, batch)
    if self._dpo:
      reference = self._losses(self._base, frozen, batch)
      return self._preference(losses, reference, batch)
    sums = loss_sums(losses, batch["weights"])
    total = sums.nll
    if (
      self._inner.max_z_loss
    ):  # XLA would not leave out the gradient of 0 * max
      total += self._inner.max_z_loss * sums.z
    return Sums(total, dict(loss=sums.nll), sums.max_logit)

  def _preference(
    self, losses: TokenLosses, reference: TokenLosses, batch: Batch
  ) -> Sums:
    pairs = preference.pair_sums(
      losses.nll,
      jax.lax.stop_gradient(reference.nll),
      batch["weights"],
      batch["segment_ids"],
      self._inner.dpo_beta,
    )
    figures = dict(
      loss=pairs.loss,
      preference_accuracy=pairs.correct,
      margin=pairs.margin,
      chosen_nll=pairs.chosen_nll,
    )
    total = pairs.loss
    if self._inner.dpo_nll_weight:
      total += self._inner.dpo_nll_weight * pairs.chosen_nll
    return Sums(total, figures, jnp.max(losses.max_logit))

  def _losses(
    self, c: llama.LlamaConfig, params: llama.Params, batch: Batch
  ) -> TokenLosses:
    model = llama.bind(c, params)
    x_BxLxD = model.hidden(
      batch["tokens"], batch["positions"], batch["segment_ids"]
    )
    return chunked_token_losses(
      model.logits, x_BxLxD, batch["targets"], self._loss_chunk
    )
