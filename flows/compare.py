"""Compare runs, and log the comparison where people look: on Prefect's page and on the compared runs in MLflow."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from tripletune.compare.compare import compare_runs
from tripletune.compare.pages import verdict, write_comparison
from tripletune.compare.runs import read_scores
from tripletune.tracked_results import log_comparison


@flow(name="tripletune-compare")
def compare(
    runs: list[str],
    out: str,
    artifacts: str = "artifacts",
    baseline: str = "",
    row: str = "",
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> list[str]:
    """Compare runs as ``tripletune compare`` does, and return the verdicts.

    Each run but the baseline gets comparison.json, .md and .html as artifacts in MLflow.

    Args:
        runs: names of two runs or more; ``ROOT:NAME`` for one of another root.
        out: folder for the three files.
        artifacts: the artifact root.
        baseline, row, confidence, resamples: as the command's options.
    """
    read = [read_scores(name, Path(artifacts), row) for name in runs]
    found = compare_runs(read, baseline, confidence=confidence, resamples=resamples)
    files = write_comparison(Path(out), found)
    first = next(run for run in read if run.name == found.baseline)
    for run in read:
        if run is not first:
            place = log_comparison(run.record, run.root, first.record.name, files)
            get_run_logger().info("%s: logged in MLflow as %s", run.name, place)
    create_markdown_artifact(
        files[1].read_text(encoding="utf-8"), key="tripletune-comparison", description=found.baseline
    )
    return verdict(found)
