"""IFEval from files of this machine: its own checkers, and nothing fetched."""

import importlib
import json
from typing import Any

import pytest

from intellect_jax.data import sources
from intellect_jax.errors import UserError

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")
langdetect: Any = pytest.importorskip("langdetect")
nltk: Any = pytest.importorskip("nltk")

from intellect_jax.evaluation import ifeval, tasks  # noqa: E402
from intellect_jax.evaluation.harness import HarnessModel  # noqa: E402

HFLM: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
TaskManager: Any = importlib.import_module("lm_eval.tasks").TaskManager
simple_evaluate: Any = importlib.import_module(
  "lm_eval.evaluator"
).simple_evaluate

# What each kind of instruction is told, in the fields of the data set.
PLAIN = {
  "keywords:existence": dict(keywords=["harbour", "the"]),
  "keywords:frequency": dict(keyword="e", frequency=1, relation="at least"),
  "keywords:forbidden_words": dict(forbidden_words=["zeppelin"]),
  "keywords:letter_frequency": dict(
    letter="e", let_frequency=1, let_relation="at least"
  ),
  "language:response_language": dict(language="de"),
  "length_constraints:number_paragraphs": dict(num_paragraphs=2),
  "length_constraints:number_words": dict(num_words=3, relation="at least"),
  "length_constraints:nth_paragraph_first_word": dict(
    num_paragraphs=2, nth_paragraph=1, first_word="the"
  ),
  "detectable_content:number_placeholders": dict(num_placeholders=2),
  "detectable_content:postscript": dict(postscript_marker="P.S."),
  "detectable_format:number_bullet_lists": dict(num_bullets=2),
  "detectable_format:constrained_response": dict(),
  "detectable_format:number_highlighted_sections": dict(num_highlights=1),
  "detectable_format:multiple_sections": dict(
    section_spliter="Section", num_sections=2
  ),
  "detectable_format:json_format": dict(),
  "detectable_format:title": dict(),
  "combination:two_responses": dict(),
  "combination:repeat_prompt": dict(prompt_to_repeat="Say it."),
  "startend:end_checker": dict(end_phrase="Farewell."),
  "change_case:english_capital": dict(),
  "change_case:english_lowercase": dict(),
  "punctuation:no_comma": dict(),
  "startend:quotation": dict(),
}
# Their checks count with NLTK's model of sentences.
COUNTED = {
  "change_case:capital_word_frequency": dict(
    capital_frequency=40, capital_relation="less than"
  ),
  "length_constraints:number_sentences": dict(
    num_sentences=1, relation="at least"
  ),
}


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
  """No models of NLTK's that this machine may have; no chance in checks."""
  monkeypatch.setattr(nltk.data, "path", [])
  monkeypatch.setattr(langdetect.DetectorFactory, "seed", 0)


def write(data, kinds):
  """A question for each kind, and one for all of them."""
  file = data / "google" / "IFEval" / "train.jsonl"
  file.parent.mkdir(parents=True)
  asked = [[kind] for kind in kinds] + [list(kinds)]
  lines = (
    json.dumps(
      dict(
        key=1000 + n,
        prompt=f"Say it. Mind these: {', '.join(names)}",
        instruction_id_list=names,
        kwargs=[kinds[name] for name in names],
      )
    )
    for n, names in enumerate(asked)
  )
  file.write_text("\n".join(lines))


def load(data):
  (task,) = tasks.load(TaskManager(), [("ifeval", None)], data)
  task.set_config("generation_kwargs", dict(max_gen_toks=32), update=True)
  return task


def figures(lm, data):
  results = simple_evaluate(lm, tasks=[load(data)], bootstrap_iters=0)
  answers = [sample["resps"][0][0] for sample in results["samples"]["ifeval"]]
  return results["results"]["ifeval"], answers


def test_there_are_no_kinds_but_these():
  registry: Any = importlib.import_module(
    "lm_eval.tasks.ifeval.instructions_registry"
  )
  assert set(PLAIN) | set(COUNTED) == set(registry.INSTRUCTION_DICT)
  assert set(COUNTED) == set(ifeval.KINDS)


def test_the_figures_are_those_of_the_hf_model(tmp_path, folder, model):
  write(tmp_path, PLAIN)
  torch.set_num_threads(1)
  theirs = HFLM(str(folder), device="cpu", dtype="float32", batch_size=8)
  expected, their_answers = figures(theirs, tmp_path)
  told, answers = figures(HarnessModel(model, slots=8), tmp_path)
  assert answers == their_answers and all(answers)
  for name, value in expected.items():
    assert told[name] == value, name
  # Nobody names a zeppelin by chance, and nobody writes JSON.
  share = told["inst_level_strict_acc,none"]
  assert 2 / (2 * len(PLAIN)) <= share < 1


def test_what_cannot_be_checked_is_said_before_anything_is_asked(tmp_path):
  write(tmp_path, PLAIN | COUNTED)
  with pytest.raises(UserError, match=r"3 of IFEval's 26 .*punkt_tab") as told:
    load(tmp_path)
  assert f"{tmp_path}/nltk_data" in str(told.value)


def test_with_the_model_of_sentences_all_is_checked(tmp_path, model):
  """One made here, of the text that ships, in the form that NLTK has."""
  write(tmp_path, COUNTED)
  models = tmp_path / "nltk_data" / "tokenizers" / "punkt_tab"
  models.mkdir(parents=True)
  punkt = nltk.tokenize.punkt
  learned = punkt.PunktTrainer("\n".join(sources.documents()[:3])).get_params()
  nltk.data.path.append(str(tmp_path / "nltk_data"))  # where it may write
  punkt.save_punkt_params(learned, dir=str(models / "english"))
  nltk.data.path.clear()
  told, answers = figures(HarnessModel(model, slots=4), tmp_path)
  assert all(answers)
  assert told["inst_level_strict_acc,none"] == 1
