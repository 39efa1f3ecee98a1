"""What counts as a right answer, and as a polite one."""

import json
import pathlib
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
# In a process of its own, for a command's flags are those of its process.
SHARES = (
  "import json, sys; from answers import shares;"
  " print(json.dumps(shares(*json.load(sys.stdin))))"
)


def shares(asked: list[tuple[str, str]], said: list[str]) -> list[str]:
  told = subprocess.run(
    [sys.executable, "-c", SHARES],
    cwd=FOLDER,
    input=json.dumps([asked, said]),
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(told.stdout)


def test_right_and_polite_are_counted_apart():
  asked = [("Which number comes after 8?", "9"), ("Say it.", "it")]
  said = [["9.", "it."], ["9, with pleasure.", "at."], ["9", "it, with"]]
  assert [shares(asked, texts) for texts in said] == [
    ["100.0 %", "100.0 %", "100.0 %", "0.0 %"],
    ["50.0 %", "100.0 %", "0.0 %", "50.0 %"],
    ["0.0 %"] * 4,
  ]
