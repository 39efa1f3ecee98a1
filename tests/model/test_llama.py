"""What a causal model of packed documents must do, however it is run."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.model import llama, sharding

C = llama.LlamaConfig(
  layers=2,
  width=16,
  heads=4,
  kv_heads=2,
  head_dim=8,
  ffn=32,
  vocab_size=64,
  rope_theta=1e4,
  norm_epsilon=1e-5,
  tied_embeddings=False,
  dtype="float32",
  scan_layers=True,
  remat="none",
  attention="xla",
)
L = 16
apply = jax.jit(llama.apply, static_argnums=0)


@pytest.fixture(scope="module")
def params():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return llama.init_params(C, jax.random.key(0), mesh)


def some_tokens(batch=2):
  shape = (batch, L)
  return jax.random.randint(jax.random.key(1), shape, 0, C.vocab_size)


def one_document(tokens):
  """Positions and segment ids of sequences that are one document each."""
  positions = jnp.broadcast_to(jnp.arange(L), tokens.shape)
  return positions, jnp.ones_like(tokens)


def test_no_logit_depends_on_a_later_token(params):
  """Through the embedding, whose rows are one for each token here."""
  tokens = jnp.arange(L)[None]

  def logits_of(embed):
    logits = apply(C, params | {"embed": embed}, tokens, *one_document(tokens))
    return jnp.sum(logits[0] ** 2, axis=-1)

  gradient_LxVxD = jax.jit(jax.jacrev(logits_of))(params["embed"])
  reaches_LxL = np.any(gradient_LxVxD[:, :L] != 0, axis=-1)
  np.testing.assert_array_equal(reaches_LxL, np.tril(np.ones((L, L), bool)))


def test_a_document_does_not_know_where_it_was_packed(params):
  tokens = some_tokens(1)
  segment_ids = jnp.array([[1] * 6 + [2] * (L - 6)])
  positions = jnp.array([[*range(6), *range(L - 6)]])
  packed = apply(C, params, tokens, positions, segment_ids)
  alone = apply(C, params, tokens[:, 6:], positions[:, 6:], segment_ids[:, 6:])
  chex.assert_trees_all_close(packed[:, 6:], alone, atol=1e-5)


def value_and_grad(c, params):
  tokens = some_tokens()

  def f(params):
    return jnp.mean(apply(c, params, tokens, *one_document(tokens)) ** 2)

  return jax.jit(jax.value_and_grad(f))(params)


@pytest.fixture(scope="module")
def scanned(params):
  return value_and_grad(C, params)


@pytest.mark.parametrize(
  "change",
  [
    dict(scan_layers=False),
    dict(remat="dots"),
    dict(remat="full"),
    dict(scan_layers=False, remat="dots"),
  ],
)
def test_unrolling_and_remat_change_no_gradient(params, scanned, change):
  changed = value_and_grad(dataclasses.replace(C, **change), params)
  chex.assert_trees_all_close(changed, scanned, rtol=1e-5, atol=1e-6)


def test_each_layer_has_its_own_parameters(params, scanned):
  _, gradient = scanned
  for name, gradient_NxX in gradient["blocks"].items():
    first, second = gradient_NxX
    assert np.any(first != 0) and np.any(second != 0), name
    assert np.any(first != second), name


def test_grouped_queries_share_a_key_head(params):
  """Equal to full attention with each key and value head repeated."""
  tokens = some_tokens()
  repeated = {
    name: jnp.repeat(leaf, 2, axis=2) if name in ("key", "value") else leaf
    for name, leaf in params["blocks"].items()
  }
  full = dataclasses.replace(C, kv_heads=C.heads)
  chex.assert_trees_all_close(
    apply(full, params | {"blocks": repeated}, tokens, *one_document(tokens)),
    apply(C, params, tokens, *one_document(tokens)),
    atol=1e-5,
  )


def test_tied_embeddings_are_one_array():
  c = dataclasses.replace(C, tied_embeddings=True)
  assert "unembed" not in llama.abstract_params(c)
  saved = C.vocab_size * C.width
  assert llama.parameter_count(c) == llama.parameter_count(C) - saved


def test_bfloat16_computes_close_to_float32(params):
  tokens = some_tokens()
  c = dataclasses.replace(C, dtype="bfloat16")
  logits = apply(c, params, tokens, *one_document(tokens))
  assert logits.dtype == jnp.float32
  exact = apply(C, params, tokens, *one_document(tokens))
  error = jnp.linalg.norm(logits - exact) / jnp.linalg.norm(exact)
  assert 1e-5 < error < 0.02


def test_first_logits_have_unit_scale(params):
  """So the first loss is about log V + 1/2, at any width."""
  tokens = some_tokens(8)
  logits = apply(C, params, tokens, *one_document(tokens))
  assert 0.8 < jnp.std(logits) < 1.2
