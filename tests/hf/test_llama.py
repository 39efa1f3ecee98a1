"""Our Llama and that of transformers are one function of one folder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.checkpoint import pretrained, tensors
from intellect_jax.model import huggingface, llama
from intellect_jax.outer.layout import Layout

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

HEADS, LENGTH, EOS = 4, 48, 511
SHAPES = pytest.mark.parametrize(
  "head_dim, kv_heads, tied, theta",
  [
    (32, 1, False, 1e4),
    (32, HEADS, True, 5e5),
    (64, 1, True, 5e5),
    (64, HEADS // 2, False, 1e4),
    (128, HEADS // 2, True, 1e4),
    (128, HEADS, False, 5e5),
  ],
)


def tiny(head_dim, kv_heads, tied, theta):
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  config.run.model.update(
    width=96,
    heads=HEADS,
    kv_heads=kv_heads,
    head_dim=head_dim,
    ffn=160,
    rope_theta=theta,
    tied_embeddings=tied,
  )
  model = config.run.model
  return model, llama.LlamaConfig.of(model, config.island.model)


def random_params(c):
  """Every tensor, norms too, far from what it is initialised to."""
  random = np.random.default_rng(0)

  def values(path, leaf):
    mean, std = (1.0, 0.2) if path[-1].key.endswith("norm") else (0.0, 0.15)
    return random.normal(mean, std, leaf.shape).astype(np.float32)

  return jax.tree.map_with_path(values, llama.abstract_params(c))


def write(folder, model, params, dtype="float32", part_bytes=10**9):
  layout = Layout.of(params, huggingface.tensor_names(params))
  config = huggingface.config_json(model, dtype, LENGTH, EOS)
  pretrained.write(folder, layout.flatten(params), layout, config, part_bytes)


def tokens():
  random = np.random.default_rng(1)
  return random.integers(0, EOS, (2, LENGTH), np.int32)


def our_logits(c, params):
  positions = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
  ones = jnp.ones((2, LENGTH), jnp.int32)
  ids = jnp.asarray(tokens())
  run = jax.jit(lambda params: llama.apply(c, params, ids, positions, ones))
  return np.asarray(run(params))


def their_logits(model):
  assert isinstance(model, transformers.LlamaForCausalLM)
  with torch.no_grad():
    model.eval()
    return model(torch.tensor(tokens()).long()).logits.float().numpy()


def assert_close(actual, expected):
  assert expected.std() > 0.3
  np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)


@SHAPES
def test_transformers_reads_what_we_write(
  tmp_path, head_dim, kv_heads, tied, theta
):
  model, c = tiny(head_dim, kv_heads, tied, theta)
  params = random_params(c)
  write(tmp_path, model, params, part_bytes=200_000)
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  assert theirs.dtype == torch.float32
  assert_close(their_logits(theirs), our_logits(c, params))


@SHAPES
def test_we_read_what_transformers_writes(
  tmp_path, head_dim, kv_heads, tied, theta
):
  model, c = tiny(head_dim, kv_heads, tied, theta)
  torch.manual_seed(0)
  theirs = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      num_hidden_layers=model.layers,
      hidden_size=model.width,
      num_attention_heads=model.heads,
      num_key_value_heads=kv_heads,
      head_dim=head_dim,
      intermediate_size=model.ffn,
      vocab_size=model.vocab_size,
      rms_norm_eps=model.norm_epsilon,
      rope_parameters=dict(rope_theta=theta, rope_type="default"),
      tie_word_embeddings=tied,
      initializer_range=0.1,
    )
  )
  for name, tensor in theirs.named_parameters():
    if "norm" in name:
      torch.nn.init.normal_(tensor, 1.0, 0.2)
  theirs.save_pretrained(tmp_path, max_shard_size="200KB")
  weights = pretrained.Weights(tmp_path)
  assert (tmp_path / tensors.INDEX).exists()
  run = config_lib.base().run
  run.update(model=model, init_from=weights.digest)
  run.data.update(tokenizer="byte")
  weights.check(run)
  params = weights.read(llama.abstract_params(c))
  assert_close(our_logits(c, params), their_logits(theirs))


def test_bfloat16_is_rounded_once(tmp_path):
  model, c = tiny(32, 2, False, 1e4)
  params = random_params(c)
  write(tmp_path, model, params, "bfloat16")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  assert theirs.dtype == torch.bfloat16
  rounded = jax.tree.map(
    lambda a: np.asarray(jnp.asarray(a, jnp.bfloat16).astype(jnp.float32)),
    params,
  )
  read = pretrained.Weights(tmp_path).read(llama.abstract_params(c))
  jax.tree.map(np.testing.assert_array_equal, read, rounded)
  assert_close(their_logits(theirs.float()), our_logits(c, rounded))
