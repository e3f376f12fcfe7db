"""The report's section on what the model relies on."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from written_run import Run, write_run

from tripletune.config import EvaluateConfig
from tripletune.evaluate.evaluate import evaluate_run
from tripletune.evaluate.hint_verdicts import hint_verdicts
from tripletune.evaluate.reliance import reliance_section
from tripletune.schemas.probe import PROBED, PROBED_NAME
from tripletune.schemas.rank import SERVED
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


def probed(purpose: str, *hints: tuple[float, float | None, float | None, float], control: float = 0.0) -> pl.DataFrame:
    """A summary with gain, its bounds and the distance of hints 1, 2 ... under the tuned model."""
    lines: list[tuple[str, str, str, float, float | None, float | None]] = [
        ("tuned", "nothing", "distance", control, None, None)
    ]
    for number, (gain, low, high, distance) in enumerate(hints, 1):
        lines += [
            ("tuned", f"hint {number}", "change", gain, low, high),
            ("tuned", f"hint {number}", "distance", distance, None, None),
            ("tuned", f"hint {number}", "first_changed", 0.25, 0.1, 0.4),
        ]
    lines.append((SERVED, "hint 1", "change", 0.0, 0.0, 0.0))
    rows = [(purpose, system, "part", *line, 5, 7) for system, *line in lines]
    return pl.DataFrame(rows, schema=PROBED, orient="row")


@pytest.mark.parametrize(
    ("low", "high", "distance", "control", "word", "said"),
    [
        (0.1, 0.3, 0.2, 0.01, "yes", "+0.200 nats (interval +0.100 to +0.300)"),
        (-0.3, -0.1, 0.2, 0.01, "no", "It hurts."),
        (-0.1, 0.5, 0.2, 0.01, "not shown", "share of 0.250 (interval 0.100 to 0.400)"),
        (0.1, 0.3, 0.2, 0.11, "no", "The answers do not depend on it."),  # moves less than twice the control
        (None, None, 0.2, 0.01, "not known", "+0.200 nats; without it"),
    ],
)
def test_whether_a_hint_helped_follows_from_what_changes_without_it(
    low: float | None, high: float | None, distance: float, control: float, word: str, said: str
) -> None:
    gain = 0.2 if low is None or low > -0.2 else -0.2
    first, second = hint_verdicts(probed("test", (gain, low, high, distance), (0.5, 0.4, 0.6, 0.9), control=control))
    assert (first.question, first.word) == ("Did hint 1 help?", word)
    assert said in first.text
    assert (second.question, second.word) == ("Did hint 2 help?", "yes")


def test_test_decides_then_valid_and_never_the_examples_of_the_training() -> None:
    helps, hurts = (0.5, 0.4, 0.6, 0.9), (-0.5, -0.6, -0.4, 0.9)
    (found,) = hint_verdicts(pl.concat([probed("valid", hurts), probed("test", helps), probed("train", hurts)]))
    assert found.word == "yes"
    (found,) = hint_verdicts(pl.concat([probed("valid", hurts), probed("train", helps)]))
    assert (found.word, "users of valid" in found.text) == ("no", True)
    (found,) = hint_verdicts(probed("train", helps))
    assert (found.word, "no hint in prompts of test or valid" in found.text) == ("not known", True)


def test_without_a_probe_the_answer_names_what_would_tell() -> None:
    (found,) = hint_verdicts(None)
    assert found.word == "not known"
    assert "probe.users = 100" in found.text
    name = found.text.split("tripletune ablate ")[1].split()[0]
    assert (Path(__file__).parents[2] / name).is_file()


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
    assert "Did hint 2 help?" in html
    assert HOSTILE not in html
    assert reliance_section(None) is None
