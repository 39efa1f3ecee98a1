"""Ids and masks of conversations are those of transformers."""

import json

import numpy as np
import pytest

from intellect_jax.checkpoint.tensors import write_json
from intellect_jax.data.chat import DEFAULT, ChatTemplate
from intellect_jax.data.tokenizer import make_tokenizer

transformers = pytest.importorskip("transformers")

# The two commonest forms: ChatML, whose tokens are special ones here, and
# Llama 3's, which begins with bos and takes the system's message out first.
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content + '<|im_end|>\\n' }}{%- endgeneration %}
{%- else %}{{- message.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|im_start|>system<|im_end|>\\n\\n" + system_message + "<|im_start|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' and message.content is mapping %}
        {{- raise_exception("no tools") }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '<|im_end|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
        {{- message['content'] | trim + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant<|im_end|>\\n\\n' }}
{%- endif %}
"""
TALKS = [
  [dict(role="user", content="Hi"), dict(role="assistant", content="Hello!")],
  [
    dict(role="system", content="  Answer\n\nbriefly. "),
    dict(role="user", content="日本 👩‍👩‍👧‍👦 naïve café"),
    dict(role="assistant", content="\n\n👩‍👩‍👧‍👦 é\u0301, d'accord\n"),
    dict(role="user", content="{{ messages }} {% raw %} <|assistant|>"),
    dict(role="assistant", content="    indented\n\tcode()  \n"),
    dict(role="user", content=""),
    dict(role="assistant", content="12345 I'LL ²"),
  ],
]


@pytest.fixture(scope="module", params=["byte", "bpe:2048", "tokenizer.json"])
def both(request, tmp_path_factory):
  """Our tokenizer, and transformers' of the same files."""
  folder = tmp_path_factory.mktemp("tokenizer")
  write_json(folder / "config.json", dict(model_type="llama"))
  base = make_tokenizer("bpe:2048" if "." in request.param else request.param)
  files = base.files(64)
  if "." in request.param:  # with special tokens of its own
    added = json.loads(files["tokenizer.json"])
    for i, name in enumerate(("<|bos|>", "<|im_start|>", "<|im_end|>")):
      like = dict(added["added_tokens"][0], id=2048 + i, content=name)
      added["added_tokens"].append(like)
    told = json.loads(files["tokenizer_config.json"])
    told.update(bos_token="<|bos|>", eos_token="<|im_end|>")
    files = {
      "tokenizer.json": json.dumps(added).encode(),
      "tokenizer_config.json": json.dumps(told).encode(),
    }
  for name, content in files.items():
    (folder / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  if "." in request.param:
    base = make_tokenizer(request.param, folder)
  return base, theirs


def expected(theirs, template, talk):
  out = theirs.apply_chat_template(
    talk,
    chat_template=template,
    return_dict=True,
    return_assistant_tokens_mask=True,
  )
  return out["input_ids"], out["assistant_masks"]


@pytest.mark.parametrize("template", [DEFAULT, CHATML, LLAMA3])
@pytest.mark.parametrize("talk", TALKS)
def test_ids_and_masks(both, template, talk):
  ours, theirs = both
  ids, mask = ChatTemplate(ours, template).encode(talk)
  expected_ids, expected_mask = expected(theirs, template, talk)
  assert ids.tolist() == expected_ids
  assert mask.astype(int).tolist() == expected_mask
  assert 0 < sum(expected_mask) < len(expected_mask)


@pytest.mark.parametrize("template", [DEFAULT, CHATML])
@pytest.mark.parametrize("talk", TALKS)
def test_ordinary_templates(both, template, talk):
  """transformers wants {% generation %}; the masks are those with it."""
  ours, theirs = both
  ordinary = template
  for tag in ("generation", "endgeneration"):
    for dash in ("-", ""):
      ordinary = ordinary.replace("{%" + dash + " " + tag + " %}", "")
  assert "generation %}" not in ordinary
  ids, mask = ChatTemplate(ours, ordinary).encode(talk)
  expected_ids, expected_mask = expected(theirs, template, talk)
  assert ids.tolist() == expected_ids
  assert mask.astype(int).tolist() == expected_mask
  prompt = ChatTemplate(ours, ordinary).prompt(talk[:-1])
  assert prompt.tolist() == theirs.apply_chat_template(
    talk[:-1],
    chat_template=template,
    add_generation_prompt=True,
    return_dict=False,
  )
  assert ids[: len(prompt)].tolist() == prompt.tolist()
  assert not np.any(mask[: len(prompt)][-1:])
