"""A tiny random model, and what it says by the plain forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.data.chat import ChatTemplate
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.inference.loading import Model
from intellect_jax.model import llama, sharding

CONTEXT = 64


def tiny_model(fsdp=1, tensor=1, **fields):
  tiny = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  tiny.run.model.update(**fields)
  c = llama.LlamaConfig.of(tiny.run.model, tiny.island.model)
  mesh = sharding.make_mesh(fsdp, tensor, jax.devices()[: fsdp * tensor])
  tokenizer = make_tokenizer("byte")
  return Model(
    c,
    llama.init_params(c, jax.random.key(0), mesh),
    mesh,
    tokenizer,
    ChatTemplate(tokenizer),
    CONTEXT,
    frozenset({tokenizer.eos}),
    (),
    "tiny",
  )


@pytest.fixture(scope="session")
def model():
  return tiny_model()


@pytest.fixture(scope="session")
def sharded():
  """The same on a mesh of 2 x 2 devices."""
  return tiny_model(fsdp=2, tensor=2)


@pytest.fixture(scope="session")
def log_probabilities(model):
  """Of the token after each of a text: numpy [tokens, V]."""
  params = jax.device_put(jax.device_get(model.params), jax.devices()[0])

  @jax.jit
  def run(tokens_1xL):
    positions_1xL = jnp.arange(tokens_1xL.shape[1])[None]
    ones_1xL = jnp.ones_like(tokens_1xL)
    return jax.nn.log_softmax(
      llama.apply(model.c, params, tokens_1xL, positions_1xL, ones_1xL)
    )

  def of(tokens):
    padded = np.zeros((1, 2 * CONTEXT), np.int32)  # causality hides the rest
    padded[0, : len(tokens)] = tokens
    return np.asarray(run(padded))[0, : len(tokens)]

  return of
