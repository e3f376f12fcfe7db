"""Add the metric of the guide, MRR, to a copy of the checkout, and evaluate with it: ``python -m docs.example_metric``.

Evaluated is the small run that the tests write, so that no model has to be trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
from rich.console import Console

from docs.checkout import with_example

METRIC = "mrr_at_5"


def main() -> str:
    """The metric's lines, the run's tables with them, where else it stands, and how many existing lines it took."""
    with with_example("metric") as checkout:
        printed = checkout.run("-m", "docs.example_metric", "--evaluate", "written")
        return "\n".join([printed, checkout.changed_lines()])


def evaluate(root: Path) -> None:
    """Evaluate a small written run below ``root``, and print what became of the new metric."""
    from tests.unit.written_run import write_run
    from tripletune.cli.inspect import metrics_tables
    from tripletune.config import EvaluateConfig
    from tripletune.evaluate.evaluate import evaluate_run

    run, out, settings = write_run(root), root / "evaluate", EvaluateConfig(bootstrap_resamples=200)
    out.mkdir()
    folders = {**run.specialists, "finetune": run.finetune}
    evaluate_run(run.rank, run.generate, run.retrieve, run.split, out, settings, 0, folders, ingest=run.ingest)
    console = Console(width=200)
    console.print(metrics_tables(out, settings))
    metrics, comparisons = (pl.read_parquet(out / f"{name}.parquet") for name in ("metrics", "comparisons"))
    of_metric = pl.col("metric") == METRIC, pl.col("group") == "all"
    for line in metrics.filter(of_metric).iter_rows(named=True):
        console.print(f"{line['row']} {METRIC} {line['value']:.4f}", highlight=False)
    files = [name for name in ("metrics.json", "report.html") if METRIC in (out / name).read_text(encoding="utf-8")]
    pairs = comparisons.filter(of_metric).height
    console.print(f"{pairs} comparisons by {METRIC}; it is in {' and '.join(files)}", highlight=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--evaluate"]:
        evaluate(Path(sys.argv[2]))
    else:
        print(main())
