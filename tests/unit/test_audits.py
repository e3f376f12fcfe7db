"""Every kind of leak is planted in a clean run, and found; the clean run has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from written_run import Run, rewrite, title, with_text, write_run

from tripletune.errors import InputError
from tripletune.paths import RunPaths
from tripletune.rank import audits
from tripletune.rank.audits import Leak, audit_shards, format_leaks, refuse_leaks

Row = dict[str, Any]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def run(clean: Run, tmp_path: Path) -> Run:
    """A copy to damage."""
    shutil.copytree(clean.root, tmp_path / "run")
    return Run(tmp_path / "run", clean.order)


def audit(run: Run) -> list[Leak]:
    return audit_shards(run.generate, run.split, run.retrieve, run.specialists)


def found(run: Run) -> set[tuple[int, str]]:
    return {(leak.rule, leak.kind) for leak in audit(run)}


def plant(run: Run, purpose: str, change: Callable[[Row], object], *, render: bool = True) -> Row:
    """Damage the first example of a purpose; the text follows the columns unless told otherwise."""
    planted: list[Row] = []

    def damage(rows: list[Row]) -> None:
        change(rows[0])
        if render:
            with_text(rows[0])
        planted.append(rows[0])

    rewrite(run.generate / purpose / "shard-000.parquet", damage)
    return planted[0]


def test_a_clean_run_has_no_leak(clean: Run) -> None:
    assert audit(clean) == []
    assert "no leak" in format_leaks([])


def rated(run: Run, row: Row, position: int) -> int:
    return run.order[row["user_id"]][position]


def swap(row: Row, column: str, film: int) -> None:
    """Put a film in the place of the column's last one (no answer), in all columns that must agree."""
    old = next(f for f in reversed(row[column]) if f not in row["answers"])
    for other in (column,) if column != "candidates" else ("candidates", "retrieved", "ranking"):
        row[other] = [film if f == old else f for f in row[other]]
    row["candidate_titles"] = [title(f) for f in row["candidates"]]
    row["triples"] = [t for t in row["triples"] if t["movie_id"] != old]


@pytest.mark.parametrize("specialist", ["rgat", "lightgcn"])
@pytest.mark.parametrize(
    ("fit", "position", "kind"),
    [
        ("a", 10, "fit a trained on more than graph likes"),
        ("a", 13, "fit a trained on more than graph likes"),
        ("b", 12, "fit b trained on more than graph and target likes"),
        ("b", 13, "fit b trained on more than graph and target likes"),
        ("b", 1, "fit b trained on more than graph and target likes"),
    ],
)
def test_a_fit_that_saw_more_than_its_likes_is_found(
    run: Run, specialist: str, fit: str, position: int, kind: str
) -> None:
    film = run.order[3][position]
    rewrite(
        run.root / specialist / "trained_on.parquet",
        lambda rows: [*rows, {"user_id": 3, "movie_id": film, "fit": fit}],
    )
    leaks = audit(run)
    assert [(leak.rule, leak.kind) for leak in leaks] == [(1, kind)]
    assert specialist in leaks[0].subject
    assert str(film) in leaks[0].detail


def test_ease_on_more_than_its_likes_is_found(run: Run) -> None:
    shutil.copy(run.lightgcn / "trained_on.parquet", run.retrieve / "trained_on.parquet")
    assert audit(run) == []
    row = {"user_id": 3, "movie_id": run.order[3][13], "fit": "b"}
    rewrite(run.retrieve / "trained_on.parquet", lambda rows: [*rows, row])
    (leak,) = audit(run)
    assert (leak.rule, leak.kind) == (1, "fit b trained on more than graph and target likes")
    assert leak.subject.startswith("ease fit b, viewer 3")


@pytest.mark.parametrize(
    ("user", "film", "fit", "kind"),
    [
        (5, 0, "b", "trained on an unseen viewer"),
        (3, 40, "b", "trained on a row that the split does not hold"),
        (999, 0, "a", "trained on a row that the split does not hold"),
        (3, 0, "c", "unknown fit"),
    ],
)
def test_a_fit_on_the_wrong_viewer_or_row_is_found(run: Run, user: int, film: int, fit: str, kind: str) -> None:
    row = {"user_id": user, "movie_id": run.order.get(user, run.order[1])[film], "fit": fit}
    rewrite(run.rgat / "trained_on.parquet", lambda rows: [*rows, row])
    assert found(run) == {(1, kind)}


@pytest.mark.parametrize("purpose", ["train", "valid", "test"])
@pytest.mark.parametrize("column", ["liked", "disliked"])
def test_evidence_from_after_the_cutoff_is_found(run: Run, purpose: str, column: str) -> None:
    plant(run, purpose, lambda row: swap(row, column, rated(run, row, 13)))
    assert (2, "evidence that does not precede the cutoff") in found(run)


def test_evidence_that_the_viewer_never_rated_is_found(run: Run) -> None:
    plant(run, "test", lambda row: swap(row, "liked", rated(run, row, 45)))
    assert found(run) == {(2, "evidence that the viewer never rated")}


@pytest.mark.parametrize("column", ["candidates", "similar"])
def test_a_shown_film_that_was_rated_before_is_found(run: Run, column: str) -> None:
    plant(run, "valid", lambda row: swap(row, column, rated(run, row, 4)))
    assert (2, "shown film was rated before the cutoff") in found(run)


@pytest.mark.parametrize("purpose", ["train", "valid", "test"])
def test_a_cutoff_after_the_first_answer_is_found(run: Run, purpose: str) -> None:
    def later(row: Row) -> None:
        row["cutoff"] += 1

    plant(run, purpose, later)
    kinds = found(run)
    assert (2, "cutoff after the first answer") in kinds
    assert (2, "answer before the cutoff") in kinds


def test_a_ranking_outside_the_candidates_is_found(run: Run) -> None:
    plant(run, "train", lambda row: swap(row, "ranking", rated(run, row, 50)))
    assert found(run) == {(2, "ranking name a film outside candidates")}


def test_a_triple_about_a_film_that_is_not_shown_is_found(run: Run) -> None:
    def strange(row: Row) -> None:
        row["triples"][0]["movie_id"] = rated(run, row, 50)

    plant(run, "train", strange)
    assert found(run) == {(2, "triples name a film outside candidates and liked")}


@pytest.mark.parametrize("purpose", ["train", "valid", "test"])
@pytest.mark.parametrize("column", ["liked", "disliked"])
def test_an_answer_in_the_evidence_is_found(run: Run, purpose: str, column: str) -> None:
    plant(run, purpose, lambda row: swap(row, column, row["answers"][0]))
    assert (3, "answer in the evidence") in found(run)


@pytest.mark.parametrize("purpose", ["train", "valid", "test"])
def test_an_answer_in_the_text_alone_is_found(run: Run, purpose: str) -> None:
    """The columns are clean; the rendered liked section is not."""

    def show(rows: list[Row]) -> None:
        row = next(row for row in rows if row["answers"][0] in row["candidates"])
        row["prompt"][1]["content"] = f"- {title(row['answers'][0])}\n" + row["prompt"][1]["content"]

    rewrite(run.generate / purpose / "shard-001.parquet", show)
    assert found(run) == {(3, "answer stands in the prompt beyond candidates and hints")}


def test_a_later_film_in_the_text_alone_is_found(run: Run) -> None:
    def show(row: Row) -> None:
        row["prompt"][1]["content"] += f"\n- {title(rated(run, row, 12))}"

    plant(run, "train", show, render=False)
    assert found(run) == {(2, "prompt names a film that its columns do not")}


def test_a_completion_that_says_something_else_is_found(run: Run) -> None:
    def other(row: Row) -> None:
        row["completion"][0]["content"] = "\n".join(f"{n}. {t}" for n, t in enumerate(row["candidate_titles"][:2], 1))

    plant(run, "train", other, render=False)
    plant(run, "test", other, render=False)
    leaks = audit(run)
    assert [(leak.rule, leak.kind) for leak in leaks] == [
        (3, "completion is not the answers, then the retriever's order")
    ] * 2


def test_a_candidate_title_that_the_prompt_lacks_is_found(run: Run) -> None:
    def rename(row: Row) -> None:
        row["candidate_titles"][0] = "Never Shown (1999)"

    plant(run, "test", rename, render=False)
    assert (0, "candidate's title is no line of the prompt") in found(run)


@pytest.mark.parametrize("purpose", ["train", "valid"])
def test_a_test_like_as_an_answer_is_found(run: Run, purpose: str) -> None:
    def steal(row: Row) -> None:
        film = rated(run, row, 13)
        row["answers"] = [film]
        if purpose == "train":
            swap(row, "candidates", film)

    plant(run, purpose, steal)
    kinds = found(run)
    assert (4, f"test like in a {purpose} example") in kinds
    assert any(rule == 4 and kind.startswith(f"answer of a {purpose} example is not") for rule, kind in kinds)


@pytest.mark.parametrize("purpose", ["train", "valid"])
def test_a_test_like_in_the_evidence_is_found(run: Run, purpose: str) -> None:
    plant(run, purpose, lambda row: swap(row, "liked", rated(run, row, 13)))
    assert (4, f"test like in a {purpose} example") in found(run)


def test_a_test_like_among_the_candidates_is_no_leak(run: Run) -> None:
    plant(run, "train", lambda row: swap(row, "candidates", rated(run, row, 13)))
    assert audit(run) == []


def test_an_unseen_viewer_in_training_is_found(run: Run) -> None:
    moved = pl.read_parquet(run.generate / "test" / "shard-001.parquet").filter(pl.col("user_id") == 5)
    train = run.generate / "train" / "shard-001.parquet"
    pl.concat([pl.read_parquet(train), moved]).write_parquet(train)
    kinds = found(run)
    assert (4, "unseen viewer in a training example") in kinds
    assert (4, "example of another purpose in the folder") in kinds
    assert (4, "test like in a train example") in kinds
    assert (0, "example written twice") in kinds


def test_an_unseen_viewer_who_is_marked_as_seen_is_found(run: Run) -> None:
    def unmark(rows: list[Row]) -> None:
        for row in rows:
            row["unseen"] = False

    rewrite(run.generate / "test" / "shard-001.parquet", unmark)
    assert found(run) == {(0, "unseen mark differs from the split")}


@pytest.mark.parametrize(("user", "position"), [(8, 13), (8, 12), (8, 10), (5, 0)])
def test_similar_viewers_films_from_outside_the_fit_are_found(run: Run, user: int, position: int) -> None:
    """A film that somebody's held-out like, or an unseen viewer's like alone names, must not reach training hints."""
    film = 61

    def rename(rows: list[Row]) -> list[Row]:
        return [
            {**row, "movie_id": film} if (row["user_id"], row["position"]) == (user, position) else row for row in rows
        ]

    rewrite(run.split / f"shard=00{user % 2}" / "part.parquet", rename)
    plant(run, "train", lambda row: swap(row, "similar", film))
    assert (4, "similar viewers' film that nobody liked in the rows of the fit") in found(run)


def publish(run: Run, stage: str) -> Path:
    """The same files, as the artifact store publishes them."""
    paths = RunPaths(root=run.root / "artifacts", dataset="d", fingerprints={stage: "f" * 32})

    def make(work: Path) -> dict[str, Any]:
        shutil.copytree(run.root / stage, work, dirs_exist_ok=True)
        return {}

    return paths.build(stage, make)


def test_a_changed_byte_in_a_published_shard_is_found(run: Run) -> None:
    shards = publish(run, "generate")
    assert audit_shards(shards, run.split, run.retrieve, run.specialists) == []
    path = shards / "train" / "shard-001.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    (leak,) = audit_shards(shards, run.split, run.retrieve, run.specialists)
    assert (leak.rule, leak.kind) == (0, "damaged")
    assert "train/shard-001.parquet" in leak.subject


def test_nothing_is_proven_against_a_damaged_split(run: Run) -> None:
    split = publish(run, "split")
    (split / "shard=000" / "part.parquet").unlink()
    leaks = audit_shards(run.generate, split, run.retrieve, run.specialists)
    assert [leak.kind for leak in leaks] == ["damaged"]


def test_files_that_the_manifest_does_not_name_are_not_data(run: Run) -> None:
    split = publish(run, "split")
    shutil.copy(split / "shard=000" / "part.parquet", split / "stray.parquet")
    assert audit_shards(run.generate, split, run.retrieve, run.specialists) == []


def test_viewers_whose_rows_lie_in_several_files_are_audited_alike(run: Run) -> None:
    rows = pl.read_parquet([run.split / f"shard=00{n}" / "part.parquet" for n in (0, 1)], hive_partitioning=False)
    for number in (0, 1):
        part = rows.filter(pl.col("position") % 2 == number)
        part.write_parquet(run.split / f"shard=00{number}" / "part.parquet")
    assert audit(run) == []
    plant(run, "test", lambda row: swap(row, "liked", rated(run, row, 13)))
    assert (2, "evidence that does not precede the cutoff") in found(run)


def test_a_wholly_broken_file_is_capped_and_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "MAX_PER_KIND", 4)

    def spoil(rows: list[Row]) -> None:
        for row in rows:
            swap(row, "liked", rated(run, row, 13))

    rewrite(run.generate / "test" / "shard-000.parquet", spoil)
    leaks = audit(run)
    late = [leak for leak in leaks if leak.kind == "evidence that does not precede the cutoff"]
    assert len(late) == 4
    text = format_leaks(leaks)
    assert text.startswith(f"{len(leaks)} leaks found")
    assert "rule 2: evidence that does not precede the cutoff: 4" in text


def test_only_the_first_twenty_leaks_are_shown() -> None:
    leaks = [Leak(3, "answer in the evidence", f"{user}:test", "liked 1") for user in range(50)]
    lines = format_leaks(leaks).splitlines()
    assert lines[1] == "  rule 3: answer in the evidence: 50"
    assert len(lines) == 3 + 20


def test_leaks_stop_a_stage_with_one_line() -> None:
    refuse_leaks([])
    with pytest.raises(InputError, match=r"2 leaks, first rule 2: kind: 1:test: detail") as error:
        refuse_leaks([Leak(2, "kind", "1:test", "detail")] * 2)
    assert "\n" not in str(error.value)


def test_missing_shards_and_wrong_columns_are_one_line_errors(run: Run) -> None:
    path = run.generate / "test" / "shard-000.parquet"
    pl.read_parquet(path).drop("liked").write_parquet(path)
    with pytest.raises(InputError, match=r"shard-000.parquet.*liked") as error:
        audit(run)
    assert "\n" not in str(error.value)
    shutil.rmtree(run.generate / "test")
    with pytest.raises(InputError, match=r"no Parquet files in .*test"):
        audit(run)
