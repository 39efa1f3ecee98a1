"""What counts as a right answer, and as a polite one."""

import importlib
import pathlib
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]


def test_right_and_polite_are_counted_apart(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "experiments"))
  shares: Any = importlib.import_module("answers").shares
  asked = [("Which number comes after 8?", "9"), ("Say it.", "it")]
  said = [["9.", "it."], ["9, with pleasure.", "at."], ["9", "it, with"]]
  assert [shares(asked, texts) for texts in said] == [
    ["100.0 %", "100.0 %", "100.0 %", "0.0 %"],
    ["50.0 %", "100.0 %", "0.0 %", "50.0 %"],
    ["0.0 %"] * 4,
  ]
