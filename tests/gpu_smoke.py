"""What only a GPU can show; `make gpu-smoke`. Says so where there is none.

The model and the encoders pass their tests on the GPU, cuDNN's attention those
of packed documents, and an island trains a few rounds with each implementation.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import jax

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = [
  *(sys.executable, "-m", "intellect_jax.train", "--config=configs/tiny.py"),
  "--config.run.model.dtype=bfloat16",
  "--config.run.model.head_dim=64",
  "--config.island.platform=cuda",
  "--config.island.model.remat=dots",
]


def check(name: str, *command: str) -> None:
  print(f"== {name}", flush=True)
  environment = os.environ | {"INTELLECT_JAX_TEST_PLATFORM": "cuda"}
  done = subprocess.run(command, cwd=ROOT, env=environment)
  if done.returncode:
    sys.exit(f"gpu-smoke failed at: {name}")


def main() -> None:
  try:
    devices = jax.devices("cuda")
  except RuntimeError:
    print("gpu-smoke did not run: JAX finds no GPU on this machine.")
    return
  print(f"{len(devices)} x {devices[0].device_kind}")
  check(
    "the model, its attention and the encoders, on the GPU",
    *(sys.executable, "-m", "pytest"),
    *("tests/model/test_attention.py", "tests/model/test_llama.py"),
    "tests/outer/test_device_codec.py",
  )
  for attention in ("xla", "cudnn"):
    with tempfile.TemporaryDirectory() as workdir:
      check(
        f"an island with {attention} attention",
        *TRAIN,
        f"--config.island.model.attention={attention}",
        f"--workdir={workdir}",
      )


if __name__ == "__main__":
  main()
