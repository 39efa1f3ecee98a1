"""Conversations from JSON lines to samples: what is trained on, and all of it."""

import collections
import json

import numpy as np
import pytest

from intellect_jax import config as config_lib
from intellect_jax.data.chat import ChatTemplate
from intellect_jax.data.index import GlobalIndex
from intellect_jax.data.packing import WholeSamples, best_fit
from intellect_jax.data.preparation import Preparation, Settings
from intellect_jax.data.readers import Fields
from intellect_jax.data.shards import Tokens
from intellect_jax.data.texts import identify
from intellect_jax.data.tokenizer import make_tokenizer
from intellect_jax.errors import UserError

TOKENIZER = make_tokenizer("byte")
TEMPLATE = ChatTemplate(TOKENIZER)
WORDS = ("who", "what", "where", "why", "when", "how", "which", "whose")


def user(text):
  return dict(role="user", content=text)


def assistant(text):
  return dict(role="assistant", content=text)


def talks():
  return [
    dict(
      messages=[
        message
        for i in range(1 + number % 3)
        for message in (
          user(f"{number} {WORDS[i]}?"),
          assistant(f"{WORDS[-i]} {number}"),
        )
      ]
    )
    for number in range(60)
  ]


def pairs():
  return [
    dict(prompt=f"{number}?", chosen=f"yes {number}", rejected=f"no {number}")
    for number in range(40)
  ]


def prepare(
  folder, name, form, records, workers=0, held_out=0.2, part_bytes=2000
):
  path = folder / f"{name}.jsonl"
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  fields = Fields(form=form)
  preparation = Preparation(
    [str(path)],
    Settings("byte", fields, held_out=held_out, part_bytes=part_bytes),
    folder / "prepared" / name,
  )
  preparation.run(workers, lambda read: None)
  return preparation.finish()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("conversations")
  prepare(folder, "talks", "chat", talks())
  prepare(folder, "pairs", "preference", pairs())
  return folder


def config_of(folder, *names, loss="cross_entropy", length=128):
  config = config_lib.load(config_lib.base_path().with_name("tiny.py"))
  config.run.inner.loss = loss
  config.run.data.update(
    sources=names,
    stages=((0, (1 / len(names),) * len(names)),),
    sequence_length=length,
  )
  config.island.data.folder = str(folder / "prepared")
  return config


def open_index(config):
  identify(config)
  return GlobalIndex(config.run.data, TOKENIZER, config.island.data)


def epoch(index):
  return [index[i] for i in range(index.samples_per_epoch[0])]


def segments(sample):
  """Of each document of a sample: its tokens and last target, and weights."""
  for segment in range(1, sample["segment_ids"].max() + 1):
    here = sample["segment_ids"] == segment
    ids = [*sample["tokens"][here], sample["targets"][here][-1]]
    assert sample["positions"][here].tolist() == list(range(len(ids) - 1))
    assert ids[1:] == sample["targets"][here].tolist()
    yield ids, sample["weights"][here]


def test_each_conversation_is_trained_on_once_and_whole(folder):
  """With the weights that the template's mask gives the targets."""
  index = open_index(config_of(folder, "talks"))
  seen = collections.Counter()
  for sample in epoch(index) + index.held_out(999, 1):
    sample = {name: x.reshape(-1) for name, x in sample.items()}
    for ids, weights in segments(sample):
      seen[tuple(map(int, ids)), tuple(weights.tolist())] += 1
  expected = collections.Counter()
  for talk in talks():
    ids, mask = TEMPLATE.encode(talk["messages"])
    expected[tuple(ids.tolist()), tuple(mask[1:].astype(float).tolist())] += 1
  assert seen == expected


def test_a_pair_is_one_sample_s_odd_and_even_segment(folder):
  index = open_index(config_of(folder, "pairs", loss="dpo"))
  seen = []
  for sample in epoch(index):
    documents = list(segments(sample))
    assert len(documents) % 2 == 0
    for (chosen, yes), (rejected, no) in zip(
      documents[::2], documents[1::2], strict=True
    ):
      trained = np.array(chosen[1:])[yes > 0].tolist()
      assert TOKENIZER.decode(trained).startswith("yes")
      assert trained[-1] == TOKENIZER.eos
      trained = np.array(rejected[1:])[no > 0].tolist()
      assert TOKENIZER.decode(trained).startswith("no")
      seen.append(tuple(chosen))
  assert len(set(seen)) == len(seen) > 25
  assert np.mean([np.mean(s["segment_ids"] == 0) for s in epoch(index)]) < 0.4


def test_the_three_ways_to_write_a_pair(tmp_path):
  """And the messages that both begin with have no weight, but all of an answer."""
  before = [user("a"), assistant("b"), user("c")]
  forms = [
    dict(messages=before, chosen="well, yes", rejected="well, no"),
    dict(
      prompt=before,
      chosen=[assistant("well, yes")],
      rejected=[assistant("well, no")],
    ),
    dict(
      chosen=[*before, assistant("well, yes")],
      rejected=[*before, assistant("well, no")],
    ),
  ]
  said = ""
  for number, form in enumerate(forms):
    filler = [dict(prompt=str(i), chosen="1", rejected="2") for i in range(20)]
    prepared = prepare(
      tmp_path, str(number), "preference", [form, *filler], held_out=0.3
    )
    for split in ("train", "held_out"):
      tokens, mask = prepared.tokens(split), prepared.mask(split)
      ids = tokens.read(0, len(tokens))
      words = ids[mask.read(0, len(mask)) > 0].tolist()
      said += TOKENIZER.decode(words)
  assert "b" not in said
  assert said.count("well, yes") == said.count("well, no") == len(forms)


def test_processes_make_no_difference(folder, tmp_path):
  again = prepare(tmp_path, "talks", "chat", talks(), workers=2)
  assert again.contents.count("train", "documents") > 30
  first = folder / "prepared" / "talks"
  assert len(list(first.glob("*.mask"))) > 2
  for path in first.iterdir():
    if path.suffix in (".tokens", ".mask", ".ends"):
      assert (again.folder / path.name).read_bytes() == path.read_bytes()
  (again.folder / "train-00000.mask").write_bytes(b"")
  with pytest.raises(UserError, match=r"train-00000\.mask has 0 bytes"):
    open_index(config_of(tmp_path, "talks"))


@pytest.mark.parametrize(
  "form, record, problem",
  [
    ("chat", [], "no object of JSON"),
    ("chat", dict(text="a"), "no field 'messages'; --field"),
    ("chat", dict(messages=[user("a")]), "no words of an assistant"),
    ("chat", dict(messages=["a"]), r"messages\[0\] is no object"),
    ("chat", dict(messages=[user("<eos>")]), "would become a special token"),
    ("chat", dict(messages=[user("\ud83d")]), "halves of characters"),
    ("preference", dict(prompt="a", chosen="b"), "no field 'rejected'"),
    (
      "preference",
      dict(prompt="a", chosen="b", rejected="b"),
      "Chosen has no words",
    ),
    ("preference", dict(prompt=1, chosen="b", rejected="c"), "neither text"),
  ],
)
def test_what_is_broken_is_named_with_its_place(
  tmp_path, form, record, problem
):
  good = dict(chat=talks(), preference=pairs())[form][:2]
  where = len("".join(json.dumps(r) + "\n" for r in good))
  with pytest.raises(UserError, match=rf"a\.jsonl, byte {where}: .*{problem}"):
    prepare(tmp_path, "a", form, [*good, record], part_bytes=10**6)


def test_sources_must_fit_the_loss(folder):
  for names, loss in ((("talks",), "dpo"), (("pairs",), "cross_entropy")):
    with pytest.raises(UserError, match=r"but run\.inner\.loss is"):
      identify(config_of(folder, *names, loss=loss))
  config = config_of(folder, "talks", "python_docs")
  identify(config)
  assert config.run.data.chat_template == TEMPLATE.source
  config.run.data.chat_template = "{{ messages }}"
  with pytest.raises(UserError, match="other chat templates"):
    identify(config)


def test_what_is_longer_than_a_sample(folder):
  """A conversation loses its end; a pair is left out, or it is an error."""
  index = open_index(config_of(folder, "talks", length=32))
  longest = max(len(ids) for s in epoch(index) for ids, _ in segments(s))
  assert longest == 33
  with pytest.raises(UserError, match="is as short as run"):
    open_index(config_of(folder, "pairs", loss="dpo", length=16))


def test_the_fullest_box_that_has_room():
  rng = np.random.default_rng(0)
  sizes = rng.integers(0, 101, 2000)
  boxes = best_fit(sizes, 100)
  assert sorted(t for box in boxes for t in box) == list(range(2000))
  filled = np.array([sizes[box].sum() for box in boxes])
  assert filled.max() == 100 and filled.sum() / (100 * len(boxes)) > 0.97
  assert best_fit(np.array([3, 3, 4, 6]), 10) == [[3, 2], [0, 1]]


def test_a_split_may_have_several_shards():
  """Documents are found in whichever shard they are."""
  ids, ends = np.arange(100, 112), np.array([5, 12])
  shards = [(ids, ends), (ids + 100, ends)]
  tokens = Tokens([12, 12], shards.__getitem__)
  ones = Tokens([12, 12], lambda k: (np.ones(12, np.uint8), ends))
  samples = WholeSamples(tokens, ones, 6)
  starts = sorted(samples[i]["tokens"][0] for i in range(len(samples)))
  assert starts == [100, 105, 200, 205]
