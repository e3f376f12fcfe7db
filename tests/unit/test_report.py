"""The HTML report: self-contained, escaped, the same every time."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from written_run import Run, rewrite, write_run

from tests.page_rules import faults
from tripletune.config import EvaluateConfig
from tripletune.evaluate.cases import NUM_CASES, worth_reading
from tripletune.evaluate.evaluate import COMPARISONS, METRICS, evaluate_run
from tripletune.evaluate.verdicts import verdicts
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
    assert faults(html) == []
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tags.names)
    assert all(source.startswith("#") for source in tags.sources)
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {f"#{name}" for name in re.findall(r' id="([^"]+)"', html)}
    assert len(html.encode()) < 2_000_000


def test_text_from_data_is_escaped_everywhere(html: str) -> None:
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_the_page_says_what_was_measured(html: str) -> None:
    for text in ("popularity", "lightgcn", "rgat", "random", "retriever", "untuned", "tuned", "95 %"):
        assert text in html
    assert "<dt>seed</dt><dd>3</dd>" in html
    assert re.search(r'class="word better">better<', html)
    assert "no difference shown" in html
    assert html.count("<svg") == 6 + 6 + 1 + 1  # two a family; losses, evaluations and valid curves; relations; places
    assert "which retrieval did not find" in html
    assert "What the model relies on" not in html  # it was not probed


def test_examples_mark_the_held_out_film(html: str) -> None:
    assert '<span class="hit">Film' in html


def test_the_verdicts_stand_first_and_are_those_of_the_comparisons(html: str, run: Run) -> None:
    comparisons = pl.read_parquet(run.root / "out" / "comparisons.parquet")
    asked = html.index("Did tuning help?")
    assert asked < html.index('class="tiles"') < html.index("Contents") < html.index('id="retrieval"')
    line = comparisons.filter(
        pl.col("row_a") == "tuned",
        pl.col("row_b") == "untuned",
        pl.col("metric") == "ndcg_at_5",
        pl.col("group") == "all",
    ).row(0, named=True)
    word = "yes" if line["low"] > 0 else "no" if line["high"] < 0 else "not shown"
    said = re.search(r'<span class="answer [a-z-]+">([a-z ]+)</span> <span class="why">([^<]*)', html[asked:])
    assert said is not None
    assert said[1] == word
    assert f"{line['difference']:+.3f} (interval {line['low']:+.3f} to {line['high']:+.3f})" in said[2]


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.01, 0.2, "yes"), (-0.2, -0.01, "no"), (-0.1, 0.1, "not shown"), (0.0, 0.0, "no")]
)
def test_a_verdict_follows_from_the_interval(low: float, high: float, word: str) -> None:
    difference = (low + high) / 2
    lines = [
        {"row_a": "tuned", "row_b": b, "metric": "ndcg_at_5", "group": "all", "difference": difference, "low": low}
        | {"high": high, "num_viewers": 9}
        for b in ("untuned", "retriever")
    ]
    metrics = pl.DataFrame(schema=METRICS)
    found = verdicts(metrics, pl.DataFrame(lines, schema=COMPARISONS), None)
    assert [one.word for one in found] == [word, word, "not known"]


def places_by_hand(run: Run) -> dict[int, tuple[int, int]]:
    """By user the place of the held-out film in the retriever's order and in the model's, where it is a candidate."""
    predictions = pl.read_parquet(run.rank / "predictions.parquet").filter(pl.col("purpose") == "test")
    held_out = {row["user_id"]: row for row in pl.read_parquet(run.generate / "test" / "*.parquet").to_dicts()}
    found: dict[int, dict[str, int]] = {}
    for row in predictions.to_dicts():
        if row["system"] == "retriever" or (row["system"] == "tuned" and row["constrained"]):
            example = held_out[row["user_id"]]
            rest = [film for film in example["retrieved"] if film not in row["answers"]]
            whole = [*row["answers"], *rest]
            if example["answers"][0] in whole:
                place = whole.index(example["answers"][0]) + 1
                found.setdefault(row["user_id"], {})[row["system"]] = place
    return {user: (of["retriever"], of["tuned"]) for user, of in found.items()}


def test_cases_are_the_queries_that_moved_furthest(run: Run) -> None:
    places = places_by_hand(run)
    gains = {user: 1 / math.log2(1 + after) - 1 / math.log2(1 + before) for user, (before, after) in places.items()}
    found = worth_reading(run.generate, run.rank)
    for kind, sign in (("helped", 1), ("hurt", -1)):
        expected = sorted((-abs(gain), user) for user, gain in gains.items() if gain * sign > 0)[:NUM_CASES]
        assert [case["gain"] for case in found[kind]] == pytest.approx([sign * -size for size, _ in expected])
        shown = [tuple(order["place"] for order in case["orders"]) for case in found[kind]]
        assert shown == [places[user] for _, user in expected]
        assert [case["orders"][0]["name"] for case in found[kind]] == ["retriever"] * len(expected)
    assert found["helped"]


def test_what_helped_hurts_when_the_two_orders_change_places(run: Run, tmp_path: Path) -> None:
    swapped = run.copy_to(tmp_path / "copy")
    other = {"tuned": "retriever", "retriever": "tuned"}
    rewrite(
        swapped.rank / "predictions.parquet",
        lambda rows: [
            {**row, "system": other.get(row["system"], row["system"]), "constrained": True}
            for row in rows
            if row["constrained"] or row["system"] == "retriever"
        ],
    )
    before, after = worth_reading(run.generate, run.rank), worth_reading(swapped.generate, swapped.rank)
    assert [-case["gain"] for case in after["hurt"]] == [case["gain"] for case in before["helped"]]
    assert [case["held_out"] for case in after["hurt"]] == [case["held_out"] for case in before["helped"]]


def test_a_user_with_several_queries_is_one_case(tmp_path: Path) -> None:
    run = write_run(tmp_path, held_out=3)
    found = worth_reading(run.generate, run.rank)
    prompts = [case["prompt"][1]["content"] for kind in found.values() for case in kind]
    users = [text.split("disliked:\n")[1].split("\n\n")[0] for text in prompts]  # the same in all of a user's prompts
    assert len(users) == len(set(users)) > 2


def test_cases_name_no_user(html: str) -> None:
    cases = html[html.index('<section id="cases"') : html.index('<section id="users"')]
    assert "Prompt and answer of helped case 1" in cases
    assert re.search(r"\d+:test", cases) is None
    assert "user_id" not in cases
    assert HOSTILE not in cases
    assert "&lt;/pre&gt;&lt;script&gt;" in cases


def test_a_run_without_triples_has_a_report(run: Run, tmp_path: Path) -> None:
    for path in (run.rgat / "attention.parquet", run.retrieve / "choices" / "shard-000.parquet"):
        pl.read_parquet(path).clear().write_parquet(path)
    assert "No triples." in build(run, tmp_path / "out")


@pytest.mark.parametrize(("low", "high"), [(-0.0125, 0.0475), (-0.0049, 0.0001), (0.0, 0.234), (0.0, 12345.0)])
def test_labels_of_an_axis_stand_apart(low: float, high: float) -> None:
    dots = [Dot("tuned with the retriever", "all", (low + high) / 2, low, high)]
    svg = draw_dots(dots, title="t", xlabel="gap in ndcg_at_5")
    labels = re.findall(r'<text style="font-size: 10px[^>]* x="([\d.]+)"[^>]*>([\u2212\d.]+)</text>', svg)
    assert len(labels) > 2
    for (left, one), (right, other) in pairwise(labels):
        width = 5.6 * (len(one) + len(other)) / 2  # a digit takes .56 of its size in the widest of the page's fonts
        assert float(right) - float(left) > width + 5.6, "less than a digit between two labels"


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
