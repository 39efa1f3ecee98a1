"""Many seeds on all cores, or one seed with all that is said.

make simulate SEEDS=10000 FIRST=5000
make simulate SEED=123
"""

import argparse
import concurrent.futures
import os
import sys
import time

from simulation.run import simulate

_BATCH = 25  # seeds, between two lines of progress


def main() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument("--seeds", type=int, default=2000)
  parser.add_argument("--first", type=int, default=0)
  parser.add_argument("--seed", type=int)
  parser.add_argument("--workers", type=int, default=os.cpu_count())
  flags = parser.parse_args()
  if flags.seed is not None:
    simulate(flags.seed, trace=True)
    return 0
  return _many(flags.first, flags.first + flags.seeds, flags.workers)


def _many(first: int, stop: int, workers: int) -> int:
  began, done, failures = time.monotonic(), 0, 0
  with concurrent.futures.ProcessPoolExecutor(workers) as pool:
    batches = [
      pool.submit(_batch, start, min(stop, start + _BATCH))
      for start in range(first, stop, _BATCH)
    ]
    for batch in concurrent.futures.as_completed(batches):
      seeds, failed = batch.result()
      done += seeds
      failures += len(failed)
      for text in failed:
        print(f"\n{text}", flush=True)
      rate = done / (time.monotonic() - began)
      print(
        f"\r{done:,} of {stop - first:,} seeds, {failures} failed,"
        f" {rate:.0f} seeds/s ",
        end="",
        flush=True,
      )
  print()
  return 1 if failures else 0


def _batch(start: int, stop: int) -> tuple[int, list[str]]:
  failed = []
  for seed in range(start, stop):
    try:
      simulate(seed)
    except AssertionError as error:
      failed.append(f"{error}\n  make simulate SEED={seed} shows it")
  return stop - start, failed


if __name__ == "__main__":
  sys.exit(main())
