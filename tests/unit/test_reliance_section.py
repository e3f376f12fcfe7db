"""The report's section on what the model relies on."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from written_run import Run, write_run

from tripletune.config import EvaluateConfig
from tripletune.evaluate.evaluate import evaluate_run
from tripletune.evaluate.reliance import reliance_section
from tripletune.schemas.probe import PROBED, PROBED_NAME
from tripletune.store.paths import MANIFEST

HOSTILE = "<script>alert('x')</script>"
LINES = [
    ("test", "retriever", "stability", "like-removed", "tau", 0.5, 0.4, 0.6),
    ("test", "retriever", "stability", "like-removed", "kept", 0.9, 0.8, 1.0),
    ("test", "retriever", "stability", "like-removed", "first_changed", 0.1, 0.0, 0.2),
    ("test", "tuned", "part", "hint 2", "change", 0.1234, -0.1, 0.3),
    ("test", "tuned", "part", "hint 2", "distance", 0.2, 0.1, 0.3),
    ("test", "tuned", "part", "hint 2", "first_changed", 0.0, 0.0, 0.0),
    ("test", "tuned", "relation", HOSTILE, "change", 0.7, None, None),
    ("test", "tuned", "relation", HOSTILE, "first_changed", 0.0, None, None),
    ("test", "tuned", "stability", "like-removed", "tau", 0.5, 0.4, 0.6),
    ("test", "tuned", "stability", "like-removed", "kept", 1.0, 1.0, 1.0),
    ("test", "tuned", "stability", "like-removed", "first_changed", 0.1, 0.0, 0.2),
]


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    folder = tmp_path / "probe"
    folder.mkdir()
    pl.DataFrame([(*line, 5, 7) for line in LINES], schema=PROBED, orient="row").write_parquet(folder / PROBED_NAME)
    (folder / MANIFEST).write_text(json.dumps({"facts": {"said": f"one · {HOSTILE}"}, "fingerprint": "f", "files": {}}))
    return folder


def test_the_model_comes_before_the_retriever_and_has_no_column_of_candidates_kept(probe: Path) -> None:
    section = reliance_section(probe)
    assert section["said"] == ["one", HOSTILE]
    assert [(group["system"], [table["kind"] for table in group["tables"]]) for group in section["groups"]] == [
        ("tuned", ["part", "relation", "stability"]),
        ("retriever", ["stability"]),
    ]
    model, retriever = (group["tables"][-1]["columns"] for group in section["groups"])
    assert model == ["tau", "first changes"]
    assert retriever == ["tau", "candidates kept", "first changes"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("run"))


def report(run: Run, out: Path, **more: Path) -> str:
    out.mkdir()
    evaluate_run(
        *(run.rank, run.generate, run.retrieve, run.split, out),
        EvaluateConfig(bootstrap_resamples=20),
        3,
        {**run.specialists, "finetune": run.finetune, **more},
        ingest=run.ingest,
    )
    return (out / "report.html").read_text(encoding="utf-8")


def test_the_section_is_in_the_report_of_a_run_with_a_probe_and_in_no_other(
    run: Run, probe: Path, tmp_path: Path
) -> None:
    html = report(run, tmp_path / "with", probe=probe)
    assert html.count(">What the model relies on</h2>") == 1
    assert '<b>0.123</b><span class="faint">-0.100 to 0.300</span>' in html
    assert HOSTILE not in html
    assert "What the model relies on" not in report(run, tmp_path / "without")
