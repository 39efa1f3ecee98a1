"""The generated messages are those of the .proto files."""

import importlib.resources
import pathlib

from grpc_tools import protoc

_ROOT = pathlib.Path(__file__).parents[2]
_FOLDER = pathlib.Path("intellect_jax/elastic/protocol")


def test_generated_files_are_up_to_date(tmp_path):
  arguments = [
    "protoc",
    f"-I{_ROOT}",
    f"-I{importlib.resources.files('grpc_tools') / '_proto'}",
    f"--python_out={tmp_path}",
    f"--pyi_out={tmp_path}",
    f"--grpc_python_out={tmp_path}",
    str(_ROOT / _FOLDER / "elastic.proto"),
    str(_ROOT / _FOLDER / "island.proto"),
  ]
  assert protoc.main(arguments) == 0
  generated = sorted((tmp_path / _FOLDER).iterdir())
  assert len(generated) == 6
  for file in generated:
    committed = _ROOT / _FOLDER / file.name
    assert file.read_text() == committed.read_text(), (
      f"{file.name} is not what the .proto files say: run `make proto`"
    )
