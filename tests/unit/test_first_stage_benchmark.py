"""The benchmark of the default retriever: its rows by hand, and sections that replace their own."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from tests.benchmark_scripts import benchmark_script


@pytest.fixture(scope="module")
def script():
    with benchmark_script("first_stage") as module:
        yield module


def run(root: Path, name: str, places: dict[str, list[int]], weights: dict[str, float] | None = None) -> Path:
    """A retrieve stage whose lists have each user's answer at a place from 1; 0: not in the list."""
    folder = root / "retrieve" / name
    folder.mkdir(parents=True)
    rows = [
        (user, purpose, retriever, 99, [99 if place == rank else 100 + rank for rank in range(1, 21)])
        for retriever, of_users in places.items()
        for user, place in enumerate(of_users)
        for purpose in ("valid", "test")
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "purpose", "retriever", "answer", "top"], orient="row")
    frame.write_parquet(folder / "rankings.parquet")
    parents = {"fusion": name} if weights else {}
    (folder / "manifest.json").write_text(json.dumps({"parents": parents}))
    if weights:
        (root / "fusion" / name).mkdir(parents=True)
        (root / "fusion" / name / "fusion.json").write_text(json.dumps({"weights": weights}))
    return folder


def row(lines: list[str], name: str) -> list[str]:
    (line,) = (line for line in lines if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_is_the_mean_over_seeds_and_differences_are_paired_by_user(script, tmp_path):
    first = run(tmp_path, "a", {"fused": [1, 1, 3, 0], "slist": [0, 1, 3, 0]}, {"slist": 0.5, "sequence": 0.5})
    second = run(tmp_path, "b", {"fused": [1, 15, 0, 0], "slist": [0, 15, 0, 0]})
    more = [
        run(tmp_path, "c", {"fused": [0] * 4, "sasrec": [1, 0, 0, 0]}),
        run(tmp_path, "d", {"sasrec": [0, 0, 0, 0]}),
    ]
    lines = script.section("toy", [first, second], more, {}, [])
    assert lines[0] == "## toy"
    assert "4 users, 2 seeds. Learned weights, by seed: slist 0.5, sequence 0.5." in lines
    # hits of the fused list: 3/4 and 1/4; ndcg (1 + 1 + .5) / 4 and 1/4
    assert row(lines, "fused")[1:4] == ["0.5000 ± 0.3536", "0.4375 ± 0.2652", "0.6250 ± 0.1768"]
    # SLIST misses user 0 in both seeds: 1 of 4 users
    assert row(lines, "slist")[4].startswith("+0.2500 [")
    assert row(lines, "sasrec")[4].startswith("+0.3750 [")
    assert not [line for line in script.section("toy", [first, second], more, {}, ["slist"]) if "| slist" in line]


def test_a_part_left_out_is_compared_with_the_first_seed(script, tmp_path):
    whole = run(tmp_path, "a", {"fused": [1, 1], "sequence": [1, 0]})
    part = run(tmp_path, "b", {"fused": [1, 0], "sequence": [1, 1]})
    lines = script.section("toy", [whole], [], {"stars": part}, [])
    cells = row(lines, "stars")
    assert cells[1].startswith("-0.5000")
    assert cells[3].startswith("+0.5000")


def test_runs_with_other_queries_are_refused(script, tmp_path):
    first, second = run(tmp_path, "a", {"fused": [1, 1]}), run(tmp_path, "b", {"slist": [1]})
    with pytest.raises(SystemExit, match="toy: the runs have lists of different queries"):
        script.section("toy", [first], [second], {}, [])


def test_a_section_takes_the_place_of_its_own_and_leaves_the_others(script):
    page = script.put_section(script.put_section("", ["## one", "", "a", ""]), ["## two", "", "b", ""])
    assert page == script.HEAD + "\n## one\n\na\n\n## two\n\nb\n"
    assert script.put_section(page, ["## one", "", "c", ""]) == page.replace("\na\n", "\nc\n")
