"""What a person can get wrong is said in a paragraph, and nothing is harmed."""

import base64
import contextlib
import shutil

from processes import ALONE, Process
import pytest

from intellect_jax.elastic.identity import Identity

IMPATIENT = "--config.island.connect_patience=0.5"
COORDINATOR = dict(module="intellect_jax.coordinator")


def must_refuse(process: Process, *words: str) -> None:
  """It ends by itself, with a paragraph that has these words."""
  said = process.must_fail()
  assert "Traceback" not in said, said
  *_, paragraph = said.strip().splitlines()
  assert paragraph.startswith(("train.py: ", "coordinator.py: ")), said
  for word in words:
    assert word in paragraph, paragraph


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--config.run.outer.inner_stepz=3"], ["Did you mean", '"inner_steps"']),
    (["--config=configs/tinny.py"], ["configs/tinny.py", "tiny.py", "demo.py"]),
    (["--inner_steps=3"], ["inner_steps", "--help"]),
    (["--config.island.cpu_devices=3"], ["run.inner.batch_size is 8", "3"]),
    (
      ["--config.run.model.vocab_size=100"],
      ["run.model.vocab_size is 100", "'byte' has 257 ids"],
    ),
    (
      ["--config.run.data.stages=((0, (0.5,)),)"],
      ["run.data.stages", "have the sum 0.5"],
    ),
    (
      ["--config.run.data.sources=('docs',)"],
      ["run.data.sources has docs", "island.data.folder is empty"],
    ),
    (
      ["--coordinator=127.0.0.1:9", IMPATIENT],
      ["No coordinator answered at 127.0.0.1:9 within 0.5 s", "one runs"],
    ),
  ],
)
def test_settings(world, flags, words):
  island = world.start("island", *ALONE, *flags)
  must_refuse(island, *words)
  assert not island.workdir.exists()


def test_a_run_that_nobody_could_train(world):
  flags = [*ALONE, "--config.run.model.vocab_size=100"]
  coordinator = world.start("coordinator", *flags, **COORDINATOR)
  must_refuse(coordinator, "run.model.vocab_size is 100")
  assert not coordinator.workdir.exists()


def test_data_that_no_island_could_read(world, tmp_path):
  """The coordinator says so, before any island starts."""
  prepared = tmp_path / "prepared" / "docs"
  prepared.mkdir(parents=True)
  (prepared / "manifest.json").write_text('{"contents": {}}')
  flags = [
    *ALONE,
    "--config.run.data.sources=('docs',)",
    f"--config.island.data.folder={tmp_path / 'prepared'}",
    "--listen=127.0.0.1:0",
  ]
  coordinator = world.start("coordinator", *flags, **COORDINATOR)
  must_refuse(coordinator, "docs/manifest.json is no manifest")
  assert not coordinator.workdir.exists()


def test_another_tokenizer_than_the_runs(world, tmp_path):
  """Its digest is part of the run: who has another file does not join."""
  folders = [tmp_path / name for name in ("one", "other")]
  for number, folder in enumerate(folders):
    folder.mkdir()
    ranks = [
      f"{base64.b64encode(bytes([byte])).decode()} {byte ^ number}"
      for byte in range(256)
    ]
    (folder / "bytes.tiktoken").write_text("\n".join(ranks))
  one, other = (f"--config.island.data.folder={folder}" for folder in folders)
  coordinator = world.coordinator("data.tokenizer=bytes.tiktoken", one)
  island = world.start("island", f"--coordinator={coordinator.address}", other)
  must_refuse(island, "run.data.tokenizer=bytes.tiktoken has digest", "Copy")
  assert not island.workdir.exists()


def test_listening_to_strangers(world):
  flags = [*ALONE, "--listen=0.0.0.0:0"]
  coordinator = world.start("coordinator", *flags, **COORDINATOR)
  must_refuse(coordinator, "0.0.0.0:0", "pass --insecure where")


def test_places_that_are_taken(world, tmp_path):
  first = world.coordinator()
  same_port = world.start(
    "other", *ALONE, f"--listen={first.address}", **COORDINATOR
  )
  same_workdir = world.start(
    "coordinator", *ALONE, "--listen=127.0.0.1:0", **COORDINATOR
  )
  to_first = f"--coordinator={first.address}"
  other_run = world.start(
    "guest", to_first, *ALONE, "--config.run.outer.inner_steps=5"
  )
  with contextlib.closing(Identity(tmp_path / "held", "ada")):
    held = world.start("held", to_first)
    must_refuse(held, "Another process works in", "another --workdir")
  with contextlib.closing(Identity(tmp_path / "elsewhere", "bo")) as identity:
    identity.joined("another-run")
  elsewhere = world.start("elsewhere", to_first)

  must_refuse(same_port, first.address, "in use", "Choose another port")
  must_refuse(same_workdir, "ledger", "running", "another --workdir")
  must_refuse(other_run, "different runs", "Leave out --config")
  assert not other_run.workdir.exists()
  must_refuse(elsewhere, "run another-run", "another --workdir")
  misnamed = world.start("elsewhere", to_first, "--config.island.name=cy")
  must_refuse(misnamed, "island 'bo'", "name is 'cy'", "another --workdir")
  assert first.swarm().term == 1, "it has noticed nothing"


def test_a_workdir_of_another_run(world, undisturbed, tmp_path):
  workdir = tmp_path / "island"
  shutil.copytree(undisturbed.workdir, workdir)
  must_refuse(
    world.start("island", *ALONE, "--config.run.tokens=5"),
    "whose config differs in run.tokens (12288 there, 5 here)",
    "another --workdir",
  )
  assert contents(undisturbed.workdir) == contents(workdir)


def contents(folder):
  """The bytes of all files, by name."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }
