"""DPO of packed pairs: its values and gradients, and that a step follows them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax import config
from intellect_jax.inner.objective import Objective
from intellect_jax.inner.preference import count_pairs, pair_sums
from intellect_jax.inner.step import EvalStep, TrainStep
from intellect_jax.model import llama, sharding

BETA, NLL_WEIGHT = 0.3, 0.4
B, L = 8, 32


def tiny(nll_weight=0.0, **island_inner):
  tiny = config.load(config.base_path().parent / "tiny.py")
  tiny.run.inner.update(
    batch_size=B, loss="dpo", dpo_beta=BETA, dpo_nll_weight=nll_weight
  )
  tiny.run.data.sequence_length = L
  tiny.island.inner.update(island_inner)
  return tiny


def some_pairs(seed=0):
  """Samples of 1 to 3 pairs and padding; a prompt of some tokens, untrained."""
  rng = np.random.default_rng(seed)
  batch: dict[str, np.ndarray] = {
    name: np.zeros((B, L), np.int32)
    for name in ("targets", "segment_ids", "positions")
  }
  batch["tokens"] = rng.integers(0, 256, (B, L), np.int32)
  batch["weights"] = np.zeros((B, L), np.float32)
  for row in range(B):
    at = 0
    for segment in range(1, 2 * int(rng.integers(1, 4)) + 1):
      length = int(rng.integers(3, 6))
      here = np.s_[row, at : at + length]
      batch["segment_ids"][here] = segment
      batch["positions"][here] = np.arange(length)
      batch["weights"][here][int(rng.integers(1, length)) :] = 1
      # Letters of one half of the alphabet are preferred.
      half = 128 * (segment % 2)
      batch["targets"][here] = half + rng.integers(0, 128, length)
      at += length
  return batch


def in_float64(nll, reference, weights, segments):
  """Pair by pair, by loops: DPO's loss, its gradient for nll, correct, margin;
  the NLL of the chosen, a mean over tokens of each, and its gradient."""
  nll = np.asarray(nll, np.float64)
  reference = np.asarray(reference, np.float64)
  loss, correct, margins, gradient = 0.0, 0, 0.0, np.zeros_like(nll)
  chosen_nll, by_chosen = 0.0, np.zeros_like(nll)
  for row in range(len(nll)):
    for chosen in range(1, segments[row].max() + 1, 2):
      yes = (segments[row] == chosen) * np.float64(weights[row])
      no = (segments[row] == chosen + 1) * np.float64(weights[row])
      gained = reference[row] - nll[row]
      margin = BETA * (np.sum(yes * gained) - np.sum(no * gained))
      loss += np.log1p(np.exp(-margin))
      correct += margin > 0
      margins += margin
      gradient[row] += BETA / (1 + np.exp(margin)) * (yes - no)
      chosen_nll += np.sum(yes * nll[row]) / np.sum(yes)
      by_chosen[row] += yes / np.sum(yes)
  return loss, gradient, correct, margins, chosen_nll, by_chosen


def test_loss_and_gradient_are_those_of_float64():
  batch = some_pairs()
  rng = np.random.default_rng(1)
  nll, reference = rng.gamma(2, 2, (2, B, L)).astype(np.float32)
  args = jnp.asarray(batch["weights"]), jnp.asarray(batch["segment_ids"])

  @jax.jit
  @jax.value_and_grad
  def loss(nll):
    return pair_sums(nll, reference, *args, BETA).loss

  value, gradient = loss(nll)
  sums = pair_sums(nll, reference, *args, BETA)
  expected = in_float64(nll, reference, *args)
  np.testing.assert_allclose(value, expected[0], rtol=1e-5)
  np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=1e-7)
  assert float(sums.correct) == expected[2]
  np.testing.assert_allclose(sums.margin, expected[3], rtol=1e-4)
  np.testing.assert_allclose(sums.chosen_nll, expected[4], rtol=1e-5)
  pairs = sum(s.max() // 2 for s in batch["segment_ids"])
  assert float(count_pairs(*args)) == pairs
  assert 0 < expected[2] < pairs


@pytest.mark.parametrize("nll_weight", [0.0, NLL_WEIGHT])
def test_the_gradient_goes_through_the_model(nll_weight):
  """That of all parameters: a chain of float64's and of the model's own."""
  c, batch = tiny(nll_weight), some_pairs()
  objective = Objective(c.run, c.island)
  assert objective.frozen is not None
  rng = np.random.default_rng(0)
  params, frozen = (
    jax.tree.map(
      lambda a: np.float32(rng.normal(0, 0.2, a.shape)), objective.frozen
    )
    for _ in range(2)
  )

  @jax.jit
  def nll(params, by_nll):
    """Of all targets, and what a gradient by it is by the parameters."""

    def of_targets(params):
      logits = llama.apply(
        objective.c,
        params,
        *(jnp.array(batch[n]) for n in ("tokens", "positions", "segment_ids")),
      )
      chosen = jnp.take_along_axis(logits, batch["targets"][..., None], -1)
      return jax.nn.logsumexp(logits, -1) - chosen[..., 0]

    value, pull = jax.vjp(of_targets, params)
    return value, pull(by_nll)[0]

  nothing = np.zeros((B, L), np.float32)
  loss, by_nll, _, _, chosen_nll, by_chosen = in_float64(
    nll(params, nothing)[0],
    nll(frozen, nothing)[0],
    batch["weights"],
    batch["segment_ids"],
  )
  loss += nll_weight * chosen_nll
  by_nll += nll_weight * by_chosen
  _, expected = nll(params, np.float32(by_nll))
  total, gradient = jax.jit(
    jax.value_and_grad(lambda p: objective.sums(p, frozen, batch).total)
  )(params)
  np.testing.assert_allclose(total, loss, rtol=1e-5)
  chex.assert_trees_all_close(gradient, expected, rtol=1e-3, atol=1e-5)


def start(fsdp=1, nll_weight=0.0, **island_inner):
  """A step, and a state whose parameters are the frozen ones."""
  c = tiny(nll_weight, **island_inner)
  step = TrainStep(
    c.run, c.island, sharding.make_mesh(fsdp, 1, jax.devices()[:fsdp])
  )
  state = step.init(jax.random.key(0))
  step.freeze(jax.tree.map(np.array, state.params))
  return step, state


def train(step, state, steps):
  metrics = []
  for _ in range(steps):
    state, told = step(state, some_pairs(), 4096.0)
    metrics.append({name: float(x) for name, x in told.items()})
  return state, metrics


@pytest.fixture(scope="module")
def trained():
  step, state = start()
  return step, *train(step, state, 6)


def test_it_learns_what_is_preferred(trained):
  """From indifference, exactly; the reference stays where it is."""
  step, state, metrics = trained
  assert metrics[0]["margin"] == metrics[0]["preference_accuracy"] == 0
  assert metrics[0]["loss"] == pytest.approx(np.log(2), rel=1e-6)
  assert metrics[-1]["preference_accuracy"] > 0.95
  assert metrics[-1]["loss"] < 0.3 < 1 < metrics[-1]["margin"]
  c = tiny()
  evaluate = EvalStep(c.run, c.island, step.mesh, step.frozen)
  _, after = train(step, jax.tree.map(jnp.copy, state), 1)
  told = evaluate.figures(state.params, [some_pairs(), some_pairs()])
  for name, figure in told.items():  # the same pairs twice: the same means
    assert figure == pytest.approx(after[0][name], rel=1e-4)
  pairs = sum(s.max() // 2 for s in some_pairs()["segment_ids"])
  assert after[0]["pairs"] == pairs
  again = step.init(jax.random.key(0)).params
  chex.assert_trees_all_equal(step.frozen, again)


def test_meshes_and_microbatches_change_nothing(trained):
  step, state = start(fsdp=4, microbatch=4, loss_chunk=8)
  _, metrics = train(step, state, 3)
  for seen, expected in zip(metrics, trained[2], strict=False):
    chex.assert_trees_all_close(seen, expected, rtol=2e-3, atol=1e-5)


def test_with_their_nll_the_chosen_answers_stay_likely(trained):
  """DPO is content if the rejected grow unlikely faster than the chosen."""
  step, state = start(nll_weight=1.0)
  _, metrics = train(step, state, 6)
  assert metrics[0]["chosen_nll"] == trained[2][0]["chosen_nll"]
  assert metrics[-1]["chosen_nll"] < trained[2][-1]["chosen_nll"]
  assert metrics[-1]["preference_accuracy"] > 0.95
