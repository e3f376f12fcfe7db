"""The HTML report: self-contained, escaped, the same every time."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from written_run import Run, rewrite, write_run

from tripletune.config import EvaluateConfig
from tripletune.evaluate.evaluate import evaluate_run
from tripletune.html.pictures import Dot, draw_bars, draw_curves, draw_dots

HOSTILE = "</pre><script>alert('x')</script>"


def build(run: Run, out: Path) -> str:
    out.mkdir()
    evaluate_run(
        run.rank,
        run.generate,
        run.retrieve,
        run.split,
        out,
        EvaluateConfig(bootstrap_resamples=100),
        3,
        {**run.specialists, "finetune": run.finetune},
        ingest=run.ingest,
    )
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose titles, texts and relations try to break the page."""
    run = write_run(tmp_path_factory.mktemp("hostile"))
    rewrite(run.rank / "predictions.parquet", lambda rows: [{**row, "text": HOSTILE} for row in rows])
    rewrite(run.rgat / "attention.parquet", lambda rows: [{**rows[0], "relation": f"$x^{HOSTILE}"}, *rows])
    rewrite(
        run.generate / "test" / "shard-001.parquet",
        lambda rows: [
            {
                **row,
                "candidate_titles": [HOSTILE, *row["candidate_titles"][1:]],
                "prompt": [{"role": "user", "content": HOSTILE}],
            }
            for row in rows
        ],
    )
    return run


@pytest.fixture(scope="module")
def html(run: Run) -> str:
    return build(run, run.root / "out")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.sources += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(html: str) -> None:
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tags.names)
    assert all(source.startswith("#") for source in tags.sources)
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {f"#{name}" for name in re.findall(r' id="([^"]+)"', html)}
    assert len(html.encode()) < 2_000_000


def test_text_from_data_is_escaped_everywhere(html: str) -> None:
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_the_page_says_what_was_measured(html: str) -> None:
    for text in ("popularity", "lightgcn", "rgat", "random", "retriever", "untuned", "tuned", "seed 3", "95 %"):
        assert text in html
    assert re.search(r'class="word better">better<', html)
    assert "no difference shown" in html
    assert html.count("<svg") == 6 + 6 + 1 + 1  # two a family; losses, evaluations and valid curves; relations; places
    assert "which retrieval did not find" in html


def test_examples_mark_the_held_out_film(html: str) -> None:
    assert '<span class="hit">Film' in html


def test_a_run_without_triples_has_a_report(run: Run, tmp_path: Path) -> None:
    for path in (run.rgat / "attention.parquet", run.retrieve / "choices" / "shard-000.parquet"):
        pl.read_parquet(path).clear().write_parquet(path)
    assert "No triples." in build(run, tmp_path / "out")


def test_pictures_are_the_same_bytes_and_carry_no_colour_of_their_own() -> None:
    def draw() -> list[str]:
        dots = [Dot("a", "all", 0.2, 0.1, 0.3), Dot("b", "all", 0.2, None, None), Dot("b", "unseen", 0.1, 0.0, 0.4)]
        return [
            draw_dots(dots, title="<t>", xlabel="x", limit=0.5),
            draw_curves({"loss": [(1, 2.0), (2, 1.0)], "eval": [(2, 1.5)]}, title="t", ylabel="y"),
            draw_bars(["$x^", "b"], {"one": [0.2, 0.8], "two": [0.5, 0.5]}, title="t", xlabel="share"),
        ]

    first = draw()
    assert first == draw()
    for svg in first:
        assert svg.startswith("<svg")
        assert svg.rstrip().endswith("</svg>")
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg)
        assert "var(--c1)" in svg
    assert "<title>&lt;t&gt;</title>" in first[0]
    assert "$x^" in first[2]
