"""OpenAI's own client package talks to a model here."""

import concurrent.futures
import http.client
import json
import queue
import threading
import time
from typing import Any

import jax
import pytest

from intellect_jax import config as config_lib
from intellect_jax.data.chat import ChatTemplate
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.inference.engine import GREEDY, Engine, Request, Sampling
from intellect_jax.inference.loading import Model
from intellect_jax.model import llama, sharding

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from intellect_jax.generate import generate  # noqa: E402
from intellect_jax.serve import Server  # noqa: E402
from intellect_jax.serving.worker import Worker  # noqa: E402

PROMPT = "The function"
PATIENCE = 120.0  # seconds


@pytest.fixture(scope="module")
def model():
  tiny = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  c = llama.LlamaConfig.of(tiny.run.model, tiny.island.model)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  tokenizer = make_tokenizer("bpe:512")
  return Model(
    c,
    llama.init_params(c, jax.random.key(1), mesh),
    mesh,
    tokenizer,
    ChatTemplate(tokenizer),
    128,
    frozenset({tokenizer.eos}),
    (),
    "tiny",
  )


@pytest.fixture(scope="module")
def server(model):
  server = Server(model, "127.0.0.1", 0, slots=4, waiting=8)
  thread = threading.Thread(target=server.run)
  thread.start()
  yield server
  server.stop()
  thread.join(PATIENCE)
  assert not thread.is_alive() and not server.failed


@pytest.fixture(scope="module")
def client(server):
  return openai.OpenAI(
    base_url=f"http://{server.address}/v1",
    api_key="none",
    timeout=PATIENCE,
    max_retries=0,
  )


def complete(client, prompt: Any = PROMPT, **fields: Any):
  fields = dict(max_tokens=12, temperature=0) | fields
  return client.completions.create(model="tiny", prompt=prompt, **fields)


def chat(client, *contents, **fields):
  roles = ("user", "assistant")
  messages = [
    dict(role=roles[i % 2], content=content)
    for i, content in enumerate(contents)
  ]
  fields = dict(max_tokens=12, temperature=0) | fields
  return client.chat.completions.create(
    model="tiny", messages=messages, **fields
  )


def test_the_model_is_listed(client):
  assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_completion_is_what_generate_writes(client, model):
  (expected,) = generate(model, [PROMPT], 12, Sampling(temperature=0.0))
  done = complete(client)
  assert done.choices[0].text == expected
  assert done.choices[0].finish_reason == "length"
  prompt = len(model.encode(PROMPT))
  assert done.usage.prompt_tokens == prompt
  assert done.usage.total_tokens == prompt + 12


def test_a_stream_has_the_same_words(client):
  (expected,) = complete(client).choices
  events = list(complete(client, stream=True))
  assert len(events) > 3
  assert "".join(event.choices[0].text for event in events) == expected.text
  assert events[-1].choices[0].finish_reason == "length"


def test_several_prompts_and_choices(client, model):
  prompts = [PROMPT, "import", "The module"]
  expected = [complete(client, p).choices[0].text for p in prompts]
  done = complete(client, prompts, n=2)
  assert [c.index for c in done.choices] == list(range(6))
  assert [c.text for c in done.choices] == [t for t in expected for _ in "12"]
  ids = model.encode(PROMPT)
  assert complete(client, ids).choices[0].text == expected[0]


def test_a_seed_decides_what_is_drawn(client):
  warm = dict(temperature=1.0, top_p=0.9, n=3, seed=5)
  texts = [[c.text for c in complete(client, **warm).choices] for _ in "12"]
  assert texts[0] == texts[1]
  assert len(set(texts[0])) == 3
  assert complete(client, **dict(warm, seed=9)).choices[0].text != texts[0][0]


def test_a_stop_word_ends_a_text(client):
  text = complete(client).choices[0].text
  word = text[len(text) // 2 :][:2]
  (choice,) = complete(client, stop=[word]).choices
  assert choice.text == text[: text.index(word)]
  assert choice.finish_reason == "stop"


def test_a_chat_goes_through_the_template(client, model):
  said = dict(role="user", content="Hello")
  prompt = model.template.prompt([said]).tolist()
  expected = complete(client, prompt).choices[0].text
  answer = chat(client, "Hello")
  assert answer.choices[0].message.role == "assistant"
  assert answer.choices[0].message.content == expected
  assert answer.usage.prompt_tokens == len(prompt)
  longer = chat(client, "Hello", expected, "And?")
  assert longer.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_chat_streams(client):
  expected = chat(client, "Hello").choices[0].message.content
  events = list(
    chat(client, "Hello", stream=True, stream_options=dict(include_usage=True))
  )
  assert events[0].choices[0].delta.role == "assistant"
  pieces = [e.choices[0].delta.content or "" for e in events if e.choices]
  assert "".join(pieces) == expected
  assert events[-2].choices[0].finish_reason == "length"
  assert events[-1].usage.completion_tokens == 12


def test_many_at_once_are_as_one_by_one(client):
  prompts = [f"Item {n}" for n in range(6)]
  expected = [complete(client, p).choices[0].text for p in prompts]
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    done = list(pool.map(lambda p: complete(client, p), prompts))
  assert [d.choices[0].text for d in done] == expected


@pytest.mark.parametrize(
  "fields, word",
  [
    (dict(prompt=["x" * 500]), "context"),
    (dict(prompt=[-1]), "prompt"),
    (dict(prompt=7), "prompt"),
    (dict(temperature=-1), "temperature"),
    (dict(top_p=0), "top_p"),
    (dict(max_tokens=0), "max_tokens"),
    (dict(n=0), "n is 0"),
    (dict(logprobs=0), "logprobs"),
    (dict(extra_body=dict(min_p=0.1)), "min_p"),
    (dict(stop=[1]), "stop"),
    (dict(seed=1.5), "seed"),
  ],
)
def test_what_is_not_served_is_said(client, fields, word):
  with pytest.raises(openai.BadRequestError, match=word):
    complete(client, **fields)


def test_another_model_is_not_this_one(client):
  with pytest.raises(openai.BadRequestError, match=r"'other'.*'tiny'"):
    client.completions.create(model="other", prompt="x")


def test_too_much_is_refused_and_then_there_is_room(client):
  with pytest.raises(openai.RateLimitError):
    complete(client, n=9)
  assert complete(client, n=8).choices


def raw(server, method, path, body=None):
  connection = http.client.HTTPConnection(server.address, timeout=PATIENCE)
  connection.request(method, path, body)
  response = connection.getresponse()
  return response.status, response.read()


def test_errors_below_the_client_are_json_too(server):
  for method, path, body, status in (
    ("GET", "/v1/nothing", None, 404),
    ("GET", "/v1/completions", None, 405),
    ("POST", "/v1/completions", "{", 400),
    ("POST", "/v1/completions", "[" * 100_000, 400),
    ("POST", "/v1/completions", "x" * (5 << 20), 413),
  ):
    seen, content = raw(server, method, path, body)
    assert (seen, "error" in json.loads(content)) == (status, True)
  assert raw(server, "GET", "/health")[0] == 200


def test_halves_of_characters_are_no_text(server):
  for path, body in (
    ("/v1/completions", r'{"prompt": "\ud800"}'),
    (
      "/v1/chat/completions",
      r'{"messages": [{"role": "user", "content": "\ud800"}]}',
    ),
  ):
    assert raw(server, "POST", path, body)[0] == 400


def test_when_the_engine_fails_nobody_waits(model):
  failed, whys = threading.Event(), queue.SimpleQueue()
  worker = Worker(Engine(model, slots=1), failed.set)

  def take(token, logprob):
    raise MemoryError("as if the device were full")

  for _ in range(2):
    worker.add(Request([1], 5, GREEDY, take, whys.put))
  assert failed.wait(PATIENCE)
  assert [whys.get(timeout=PATIENCE) for _ in "12"] == ["cancelled"] * 2
  assert not worker.alive
  worker.close()


def test_who_leaves_a_stream_leaves_room_for_others(client, server):
  """All slots and places are taken by texts nobody waits for any more."""
  streams = [complete(client, n=4, stream=True, max_tokens=110) for _ in "12"]
  for stream in streams:
    next(iter(stream))
    stream.close()
  ends = time.monotonic() + PATIENCE
  while True:
    try:
      assert len(complete(client, n=8, max_tokens=2).choices) == 8
      break
    except openai.RateLimitError:
      assert time.monotonic() < ends
