"""What every implementation of attention must do with packed documents."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax import config
from intellect_jax.model import attention, llama, sharding

# Those that can run on this machine; `make gpu-smoke` runs both.
HERE = ("xla",) + (("cudnn",) if jax.default_backend() == "gpu" else ())
# Three documents and padding, in a length that cuDNN takes.
DOCUMENTS = {1: 24, 2: 13, 3: 20, 0: 7}
SEGMENT_IDS = jnp.array([[i for i, n in DOCUMENTS.items() for _ in range(n)]])
POSITIONS = jnp.array([[k for n in DOCUMENTS.values() for k in range(n)]])


def model_with(implementation):
  tiny = config.load(config.base_path().parent / "tiny.py")
  tiny.run.model.update(dtype="bfloat16", head_dim=64)  # cuDNN's types
  tiny.island.model.attention = implementation
  return llama.LlamaConfig.of(tiny.run.model, tiny.island.model)


@pytest.fixture(scope="module", params=HERE)
def logits(request):
  """Tokens to logits, by one implementation."""
  c = model_with(request.param)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  params = llama.init_params(c, jax.random.key(0), mesh)
  return jax.jit(
    lambda tokens: llama.apply(c, params, tokens, POSITIONS, SEGMENT_IDS)
  )


@pytest.mark.parametrize("edited", DOCUMENTS)
def test_a_packed_document_sees_only_itself(logits, edited):
  tokens = jax.random.randint(jax.random.key(1), SEGMENT_IDS.shape, 0, 512)
  in_edited = jnp.equal(SEGMENT_IDS, edited)
  other_tokens = jnp.where(in_edited, 511 - tokens, tokens)
  moved = np.any(logits(tokens) != logits(other_tokens), axis=-1)
  np.testing.assert_array_equal(moved, in_edited)


def some_heads(dtype=jnp.float32):
  """Queries with 4 heads, keys and values with 2, and a mask."""
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (
    jax.random.normal(key, (1, 64, heads, 64), dtype)
    for key, heads in zip(keys, (4, 2, 2), strict=True)
  )
  return q, k, v, attention.document_mask(SEGMENT_IDS)


def test_a_mask_is_causal_and_of_one_document():
  mask = np.asarray(attention.document_mask(SEGMENT_IDS)[0])
  ids = np.asarray(SEGMENT_IDS[0])
  for query, row in enumerate(mask):
    seen = [k for k in range(query + 1) if ids[k] == ids[query]]
    np.testing.assert_array_equal(np.flatnonzero(row), seen)


def test_jax_and_this_project_mean_the_same_by_the_arguments():
  """The call that goes to cuDNN, but to JAX's portable implementation."""
  q, k, v, mask = some_heads()

  def by(attend):
    def total(q, k, v):
      return jnp.sum(jnp.sin(attend(q, k, v, mask, "xla")))

    return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(q, k, v)

  ours, jaxs = by(attention.attend), by(attention.attend_fused)
  chex.assert_trees_all_close(ours, jaxs, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif("cudnn" in HERE, reason="cuDNN is here and runs above")
def test_cudnn_is_asked_for_and_says_that_it_is_not_here():
  """So no other implementation takes its place in silence."""
  with pytest.raises(RuntimeError, match="cuDNN"):
    attention.attend(*some_heads(jnp.bfloat16), "cudnn")


@pytest.mark.parametrize("name", ["intellect_1_10b"])
def test_cudnn_can_take_the_shapes_of_configs_that_ask_for_it(name):
  """As its guide has them: 16 bits, head_dim a multiple of 8, at most 128 (256
  on Hopper), an even length where there is a mask."""
  c = config.load(config.base_path().parent / f"{name}.py")
  assert c.island.model.attention == "cudnn"
  assert c.run.model.dtype == "bfloat16"
  assert c.run.model.head_dim % 8 == 0 and c.run.model.head_dim <= 128
  assert c.run.data.sequence_length % 2 == 0
