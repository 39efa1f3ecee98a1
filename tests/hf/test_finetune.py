"""A swarm trains adapters on preferences, and PEFT and transformers use them."""

import json

import jax
import numpy as np
from processes import ENVIRONMENT, World, command
import pytest

from intellect_jax import config as config_lib
from intellect_jax.checkpoint import pretrained
from intellect_jax.data.preparation import Preparation, Settings
from intellect_jax.data.readers import Fields
from intellect_jax.model import huggingface, llama, sharding
from intellect_jax.outer.layout import Layout

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
torch.set_num_threads(1)

LENGTH = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Preferences, prepared, and weights to start from."""
  folder = tmp_path_factory.mktemp("finetune")
  pairs = [
    dict(prompt=f"{i}", chosen=f"+{i}", rejected=f"-{i}") for i in range(300)
  ]
  path = folder / "pairs.jsonl"
  path.write_text("\n".join(map(json.dumps, pairs)))
  fields = Fields(form="preference")
  settings = Settings("byte", fields, held_out=0.1)
  preparation = Preparation([str(path)], settings, folder / "sources" / "pairs")
  preparation.run(0, lambda read: None)
  preparation.finish()
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  c = llama.LlamaConfig.of(config.run.model, config.island.model)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  params = llama.init_params(c, jax.random.key(5), mesh)
  layout = Layout.of(params, huggingface.tensor_names(params))
  told = huggingface.config_json(config.run.model, "float32", LENGTH, 256)
  theta = layout.flatten(params)
  pretrained.write(folder / "weights", theta, layout, told, 10**9)
  return folder


@pytest.fixture(scope="module")
def islands(folder):
  """Two of a swarm that has ended."""
  data = [
    "--config.run.data.sources=('pairs',)",
    f"--config.island.data.folder={folder / 'sources'}",
  ]
  run = [
    *data,
    f"--init-from={folder / 'weights'}",
    "data.sequence_length=128",
    "inner.loss=dpo",
    "inner.warmup_tokens=0",
    "inner.learning_rate=0.03",
    "inner.dpo_beta=0.5",
    "model.lora_rank=4",
    "elastic.start_islands=2",
    "tokens=65536",
  ]
  world = World(folder, folder / "compiled")
  coordinator = world.coordinator(*run)
  has_none = world.island("has-none", coordinator, data[1])
  assert "Start every island with --init-from" in has_none.must_fail()
  mine = [data[1], f"--init-from={folder / 'weights'}"]
  islands = [world.island(name, coordinator, *mine) for name in ("a", "b")]
  for process in (*islands, coordinator):
    process.must_end_well()
  return islands


def export(island, folder, *more):
  status, said = command(
    "export", f"--workdir={island.workdir}", f"--output={folder}", *more
  )
  assert status == 0, said
  return folder


def logits(model):
  ids = np.random.default_rng(0).integers(0, 256, (2, LENGTH))
  with torch.no_grad():
    return model.eval()(torch.tensor(ids)).logits.numpy()


def test_both_islands_have_learned_the_same(islands):
  a, b = islands
  assert a.state_hash() == b.state_hash()
  values = a.summary()["values"]
  assert values < 10_000, "theta is adapters alone"
  losses = {
    event["round"]: event["eval_loss"]
    for island in islands
    for event in island.metrics("evaluation")
  }
  assert losses[0] == pytest.approx(np.log(2), rel=1e-5)
  assert losses[max(losses)] < 0.4
  last = a.metrics("step")[-1]
  assert last["preference_accuracy"] > 0.9 and last["margin"] > 0.5


def test_peft_and_transformers_use_it(islands, folder):
  assert ENVIRONMENT["JAX_PLATFORMS"] == "cpu"
  island = islands[0]
  adapter = export(island, folder / "adapter", "--adapter")
  merged = export(island, folder / "merged")
  base = transformers.AutoModelForCausalLM.from_pretrained(folder / "weights")
  before = logits(base)
  told = json.loads((adapter / "adapter_config.json").read_text())
  assert told["base_model_name_or_path"] == str(folder / "weights")
  adapted = peft.PeftModel.from_pretrained(base, adapter)
  whole = transformers.AutoModelForCausalLM.from_pretrained(merged)
  ours = logits(adapted)
  np.testing.assert_allclose(ours, logits(whole), atol=1e-4, rtol=0)
  assert np.abs(ours - before).max() > 0.1
  names = {name for name, _ in adapted.named_parameters() if "lora_" in name}
  assert len(names) == 2 * 2 * 7, "no adapter was left out"
  template = transformers.AutoTokenizer.from_pretrained(merged).chat_template
  assert "<|" in template
