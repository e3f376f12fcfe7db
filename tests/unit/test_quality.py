"""The quality report: what it writes, which examples it names, when it stops a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_report import Tags
from written_run import Run, rewrite, write_run

from tests.page_rules import faults
from tripletune.config import QualityConfig
from tripletune.errors import DriftError, InputError
from tripletune.quality.report import Quality, refuse_drift, report_quality
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, earlier_run
from tripletune.store.runs import write_run as write_record

HOSTILE = "</code><script>alert('x')</script>\x07"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def run(clean: Run, tmp_path: Path) -> Run:
    """A copy to change."""
    shutil.copytree(clean.root, tmp_path / "run")
    return Run(tmp_path / "run", clean.order)


def report(run: Run, out: Path, before: Run | None = None, **limits: Any) -> Quality:
    settings = QualityConfig(**limits)
    last = ("films-1", before.generate) if before else None
    return report_quality(run.generate, run.split, out, settings, run="films-2", before=last)


def test_the_page_says_how_triples_were_chosen_where_that_is_learned(clean: Run, tmp_path: Path) -> None:
    said = "Triples are chosen as under 'personal': there is no log yet."
    for choice in ("", said):
        (tmp_path / "out").mkdir(exist_ok=True)
        page = report_quality(
            clean.generate, clean.split, tmp_path / "out", QualityConfig(), run="x", before=None, choice=choice
        ).page
        assert ("Triples are chosen as under" in page.read_text(encoding="utf-8")) is bool(choice)
        assert figures(tmp_path / "out")["triple_choice"] == choice


def figures(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    return found


def spoil(run: Run, purpose: str = "test") -> None:
    """Drop half of the examples and all evidence: prompts of another kind."""
    for shard in sorted((run.generate / purpose).glob("*.parquet")):
        rewrite(shard, lambda rows: [{**row, "liked": row["liked"][:1]} for row in rows[: len(rows) // 2]])


def test_the_page_is_whole_fetches_nothing_and_is_the_same_every_time(clean: Run, run: Run, tmp_path: Path) -> None:
    spoil(run)
    first, again = (report(run, tmp_path / name, before=clean) for name in ("one", "two"))
    html = first.page.read_text(encoding="utf-8")
    assert faults(html) == []
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tags.names)
    assert html.count("<svg") == 4  # places, popularity, characters, relations
    assert html == again.page.read_text(encoding="utf-8")
    assert (tmp_path / "one" / "quality.json").read_bytes() == (tmp_path / "two" / "quality.json").read_bytes()


def test_text_of_examples_is_escaped_and_their_ids_are_named(run: Run, tmp_path: Path) -> None:
    def plant(rows: list[dict[str, Any]]) -> None:
        rows[0]["prompt"][1]["content"] += f"\n- {HOSTILE}"

    rewrite(run.generate / "test" / "shard-001.parquet", plant)
    html = report(run, tmp_path / "out").page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    (flaw,) = figures(tmp_path / "out")["flaws"]["kinds"]
    assert (flaw["kind"], flaw["examples"], flaw["example_ids"]) == ("control character", 1, ["1:test"])
    assert report(run, tmp_path / "out").metrics["examples_with_text_flaws"] == 1.0


def test_a_first_night_has_nothing_to_compare_with_and_says_so(clean: Run, tmp_path: Path) -> None:
    quality = report(clean, tmp_path, max_psi=0.01, max_ks=0.01)
    assert "Not measured: there is no other completed run" in quality.page.read_text(encoding="utf-8")
    assert not [name for name in quality.metrics if name.startswith(("psi_", "ks_"))]
    refuse_drift(quality, QualityConfig(max_psi=0.01))


def test_a_night_whose_shards_have_other_columns_is_not_compared(clean: Run, run: Run, tmp_path: Path) -> None:
    shard = run.generate / "train" / "shard-000.parquet"
    pl.read_parquet(shard).drop("liked").write_parquet(shard)
    quality = report(clean, tmp_path / "out", before=run)
    assert figures(tmp_path / "out")["compared_with"] is None
    assert "the shards of films-1 cannot be read" in quality.page.read_text(encoding="utf-8")


def test_tonights_own_shards_must_be_readable(run: Run, tmp_path: Path) -> None:
    (run.generate / "train" / "shard-000.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"train/shard-000\.parquet: cannot be read"):
        report(run, tmp_path / "out")


def test_without_limits_drift_is_reported_and_stops_nothing(clean: Run, run: Run, tmp_path: Path) -> None:
    spoil(run)
    quality = report(run, tmp_path / "out", before=clean, min_examples=1)
    assert quality.metrics["psi_liked"] > 0.25
    assert quality.metrics["ks_liked"] == pytest.approx(24 / 70)  # the 24 examples of eleven likes are gone
    refuse_drift(quality, QualityConfig())
    assert ">major</span>" in quality.page.read_text(encoding="utf-8")


def test_a_shift_above_its_limit_stops_the_run_with_one_line(clean: Run, run: Run, tmp_path: Path) -> None:
    spoil(run)
    limits = {"max_psi": 10.0, "max_ks": 0.2, "min_examples": 58}
    quality = report(run, tmp_path / "out", before=clean, **limits)
    assert [shift.name for shift in quality.too_far] == ["ks_liked"]
    with pytest.raises(DriftError) as error:
        refuse_drift(quality, QualityConfig(**limits))
    line = str(error.value)
    assert line.startswith("ks_liked = 0.3429 is above quality.max_ks = 0.2: ")
    assert str(tmp_path / "out" / "quality.html") in line
    assert "raise the limit" in line
    assert "\n" not in line
    assert ">above the limit</span>" in quality.page.read_text(encoding="utf-8")


def test_the_furthest_shift_is_named_and_the_others_are_counted(clean: Run, run: Run, tmp_path: Path) -> None:
    spoil(run)
    quality = report(run, tmp_path / "out", before=clean, max_psi=0.01, max_ks=0.2, min_examples=1)
    ratios = [shift.value / (0.01 if shift.statistic == "psi" else 0.2) for shift in quality.too_far]
    assert ratios == sorted(ratios, reverse=True)
    assert len(ratios) > 2
    with pytest.raises(DriftError, match=rf"\(and {len(ratios) - 1} more above their limits"):
        refuse_drift(quality, QualityConfig(max_psi=0.01))


def test_few_examples_stop_nothing(clean: Run, run: Run, tmp_path: Path) -> None:
    spoil(run)
    assert report(run, tmp_path / "out", before=clean, max_psi=0.01, max_ks=0.01, min_examples=59).too_far == ()


def add_night(root: Path, name: str, started: str, generate: str, **more: Any) -> RunPaths:
    dataset = name.split("-")[0]
    record = RunRecord.model_validate(
        {
            "name": name,
            "dataset": dataset,
            "started": started,
            "status": "completed",
            "config": {},
            "fingerprints": {"generate": generate * 32},
            "stages": {"generate": "made"},
            **more,
        }
    )
    write_record(root, record)
    return record.paths(root)


def test_the_night_before_is_the_newest_completed_one_with_other_shards(tmp_path: Path) -> None:
    for number, name, generate in ((1, "films-1", "a"), (2, "films-2", "b"), (3, "films-3", "c"), (4, "books-4", "d")):
        add_night(tmp_path, name, f"2026-01-0{number}T00:00:00Z", generate).build("generate", lambda work: {})
    add_night(tmp_path, "films-5", "2026-01-05T00:00:00Z", "e", status="failed").build("generate", lambda work: {})
    add_night(tmp_path, "films-6", "2026-01-06T00:00:00Z", "f")  # its shards are gone
    looked = add_night(tmp_path, "films-8", "2026-01-06T01:00:00Z", "a", stages={"quality": "made"})
    looked.build("generate", lambda work: {})  # the report was made again for a run that had been stopped
    tonight = add_night(tmp_path, "films-7", "2026-01-07T00:00:00Z", "c", status="running")

    found = earlier_run(tonight, "generate", but="films-7")
    assert found is not None
    assert found.name == "films-2"  # films-3 made this run's own shards
    first = RunPaths(root=tmp_path, dataset="new", fingerprints={"generate": "a" * 32})
    assert earlier_run(first, "generate") is None
