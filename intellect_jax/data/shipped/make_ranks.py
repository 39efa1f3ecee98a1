"""Makes `tekken.tiktoken.xz`: the first ranks of Mistral's Tekken vocabulary.

Byte-pair merges are ranked in the order in which they were learned, so the
first n ranks are themselves a vocabulary of n tokens. Written in tiktoken's
format: a line with the token's bytes in base64, a space and its rank.

  pip download --no-deps mistral_common==1.13.1
  unzip mistral_common-*.whl mistral_common/data/tekken_240911.json
  python make_ranks.py mistral_common/data/tekken_240911.json

Tekken is copyright 2024 Mistral AI, Apache-2.0: LICENSE.tekken.txt.
"""

import hashlib
import json
import lzma
import pathlib
import sys

OUTPUT = pathlib.Path(__file__).with_name("tekken.tiktoken.xz")
RANKS = 32_767  # with the end-of-document token 2^15


def main(source: str) -> None:
  vocabulary = json.loads(pathlib.Path(source).read_text())["vocab"][:RANKS]
  lines = [f"{token['token_bytes']} {token['rank']}" for token in vocabulary]
  text = "\n".join(lines).encode()
  packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
  OUTPUT.write_bytes(packed)
  print(f"{len(lines)} ranks, {len(packed)} bytes packed")
  print(f"SHA-256 when packed: {hashlib.sha256(packed).hexdigest()}")


if __name__ == "__main__":
  main(*sys.argv[1:])
