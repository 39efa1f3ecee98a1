"""What an evaluation found: a table for people, and all of it as JSON."""

from collections.abc import Iterator, Sequence
import json
import pathlib
from typing import Any

from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
  handle_non_serializable,
)
import rich.table

from intellect_jax.evaluation.suites import Benchmark


def suite_table(
  results: dict[str, Any], benchmarks: Sequence[Benchmark], name: str
) -> rich.table.Table:
  """The figures of a suite, in percent, beside INTELLECT-1's."""
  table = rich.table.Table("benchmark", "shots", "metric", box=None)
  figures = [b.figure for b in benchmarks if b.figure is not None]
  table.add_column(name, justify="right")
  if figures:
    table.add_column("INTELLECT-1", justify="right")
  measured = []
  for benchmark in benchmarks:
    value, error = _figure(results, benchmark.task, benchmark.metric)
    measured.append(value)
    row = [
      benchmark.title,
      str(_shots(results, benchmark)),
      benchmark.metric.removesuffix(",none"),
      _percent(value, error),
    ]
    if figures:
      row.append("" if benchmark.figure is None else f"{benchmark.figure:.2f}")
    table.add_row(*row)
  if len(figures) > 1 and len(figures) == len(measured):
    table.add_row(
      "mean",
      "",
      "",
      _percent(sum(measured) / len(measured), None),
      f"{sum(figures) / len(figures):.2f}",
    )
  return table


def task_table(results: dict[str, Any], name: str) -> rich.table.Table:
  """Every figure of every task."""
  table = rich.table.Table("task", "shots", "metric", box=None)
  table.add_column(name, justify="right")
  shown = {**results["results"], **results.get("groups", {})}
  for task, values in shown.items():
    shots = results.get("n-shot", {}).get(task, "")
    for metric in _metrics(values):
      value, error = _figure(results, task, metric)
      written = f"{value:.4f}" + (
        f" ± {error:.4f}" if error is not None else ""
      )
      table.add_row(task, str(shots), metric.removesuffix(",none"), written)
  return table


def write(path: pathlib.Path, results: dict[str, Any], **more: Any) -> None:
  """Writes everything but the samples."""
  kept = {k: v for k, v in results.items() if k != "samples"} | more
  path.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(kept, indent=1, default=handle_non_serializable)
  path.write_text(text + "\n")


def _shots(results: dict[str, Any], benchmark: Benchmark) -> int | str:
  if benchmark.shots is not None:
    return benchmark.shots
  return results.get("n-shot", {}).get(benchmark.task, "")


def _metrics(values: dict[str, Any]) -> Iterator[str]:
  for name, value in values.items():
    if "," in name and "_stderr," not in name and isinstance(value, float):
      yield name


def _figure(
  results: dict[str, Any], task: str, metric: str
) -> tuple[float, float | None]:
  """A figure and its standard error, if there is one."""
  values = {**results["results"], **results.get("groups", {})}[task]
  name, _, filter_name = metric.partition(",")
  error = values.get(f"{name}_stderr,{filter_name}")
  return values[metric], error if isinstance(error, float) else None


def _percent(value: float, error: float | None) -> str:
  shown = f"{100 * value:.2f}"
  return shown if error is None else f"{shown} ± {100 * error:.2f}"
