"""One table decides where each parameter lives."""

import jax
from jax.sharding import PartitionSpec as P
import pytest

from intellect_jax import config
from intellect_jax.errors import UserError
from intellect_jax.model import llama, sharding


@pytest.fixture
def c():
  tiny = config.load(config.base_path().parent / "tiny.py")
  return llama.LlamaConfig.of(tiny.run.model, tiny.island.model)


SPECS = {
  "blocks/attention_norm": P(None, "fsdp"),
  "blocks/down": P(None, "tensor", "fsdp"),
  "blocks/gate": P(None, "fsdp", "tensor"),
  "blocks/key": P(None, "fsdp", "tensor", None),
  "blocks/mlp_norm": P(None, "fsdp"),
  "blocks/output": P(None, "tensor", None, "fsdp"),
  "blocks/query": P(None, "fsdp", "tensor", None),
  "blocks/up": P(None, "fsdp", "tensor"),
  "blocks/value": P(None, "fsdp", "tensor", None),
  "embed": P("tensor", "fsdp"),
  "final_norm": P("fsdp"),
  "unembed": P("fsdp", "tensor"),
}


def test_every_parameter_has_its_place(c):
  shardings = sharding.param_shardings(c, sharding.make_mesh(2, 2))
  specs = {
    "/".join(key.key for key in path): leaf.spec
    for path, leaf in jax.tree.leaves_with_path(shardings)
  }
  assert specs == SPECS


def test_parameters_are_born_in_their_place(c):
  mesh = sharding.make_mesh(2, 2)
  params = llama.init_params(c, jax.random.key(0), mesh)
  shardings = sharding.param_shardings(c, mesh)
  assert jax.tree.map(lambda a: a.sharding, params) == shardings
  up = params["blocks"]["up"]
  assert up.addressable_shards[0].data.size == up.size // 4


def test_fsdp_takes_the_devices_that_tensor_leaves():
  assert dict(sharding.make_mesh().shape) == {"fsdp": 4, "tensor": 1}
  assert dict(sharding.make_mesh(tensor=2).shape) == {"fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("fsdp, tensor", [(3, 1), (2, 1), (-1, 3), (4, 2)])
def test_a_mesh_that_is_not_all_devices_is_refused(fsdp, tensor):
  with pytest.raises(UserError, match=r"this island has 4"):
    sharding.make_mesh(fsdp, tensor)


def test_a_dimension_that_the_mesh_cannot_split_is_named(c):
  with pytest.raises(UserError, match=r"run\.model\.kv_heads is 2.*tensor"):
    sharding.param_shardings(c, sharding.make_mesh(1, 4))
