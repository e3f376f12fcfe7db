"""Every kind of leak is planted in a clean run, and found; the clean run has none."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from written_run import DISLIKED, UNSEEN, Run, rank_by_popularity, rewrite, title, with_text, write, write_run

from tripletune.audit.audit import audit_shards
from tripletune.audit.leaks import Leak, format_leaks, refuse_leaks, write_leaks
from tripletune.cli.main import main
from tripletune.config import RunConfig
from tripletune.errors import InputError
from tripletune.schemas.training import READ_BY, READ_BY_NAME
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, read_run
from tripletune.store.runs import write_run as write_record

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
    """Damage the first example of a purpose; the text follows the columns unless requested otherwise."""
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
    """Replace the column's last film (no answer) by a film, in all columns that must agree."""
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
    rank_by_popularity(run)
    leaks = audit(run)
    assert [(leak.rule, leak.kind) for leak in leaks] == [(1, kind)]
    assert specialist in leaks[0].subject
    assert str(film) in leaks[0].detail


def test_ratings_that_a_model_reads_without_being_trained_on_them_end_with_its_last_like(run: Run) -> None:
    fitted = {**run.specialists, "sequence": run.root / "sequence"}
    shutil.copytree(run.lightgcn, fitted["sequence"])

    def leaks(*planted: tuple[int, int, str]) -> list[tuple[int, str]]:
        rows = [{"user_id": user, "movie_id": run.order[user][place], "fit": fit} for user, place, fit in planted]
        write(fitted["sequence"] / READ_BY_NAME, rows, READ_BY)
        found = audit_shards(run.generate, run.split, run.retrieve, fitted)
        assert all(leak.subject.startswith("sequence fit") for leak in found)
        return sorted((leak.rule, leak.kind) for leak in found)

    low = DISLIKED[0]
    assert leaks((3, low, "a"), (3, low, "b")) == []
    assert leaks((3, 10, "a")) == [
        (1, "reads a like that it is not trained on"),
        (1, "reads a rating after the last like of its fit"),
    ]
    assert leaks((UNSEEN[0], low, "a")) == [
        (1, "reads a rating after the last like of its fit"),
        (1, "reads a rating of an unseen user"),
    ]
    assert leaks((3, -1, "a")) == [(1, "reads a row that the split does not hold")]
    # the likes of fit a end before the low rating
    trained = fitted["sequence"] / "trained_on.parquet"
    rewrite(trained, lambda rows: [row for row in rows if row["movie_id"] in run.order[3][:low]])
    assert leaks((3, low, "a")) == [(1, "reads a rating after the last like of its fit")]


def test_ease_on_more_than_its_likes_is_found(run: Run) -> None:
    fitted = {**run.specialists, "ease": run.root / "ease"}
    shutil.copytree(run.lightgcn, fitted["ease"])
    assert audit_shards(run.generate, run.split, run.retrieve, fitted) == []
    row = {"user_id": 3, "movie_id": run.order[3][13], "fit": "b"}
    rewrite(fitted["ease"] / "trained_on.parquet", lambda rows: [*rows, row])
    (leak,) = audit_shards(run.generate, run.split, run.retrieve, fitted)
    assert (leak.rule, leak.kind) == (1, "fit b trained on more than graph and target likes")
    assert leak.subject.startswith("ease fit b, user 3")


@pytest.mark.parametrize(
    ("user", "film", "fit", "kind"),
    [
        (5, 0, "b", "trained on an unseen user"),
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
    assert found(run) == {(2, "evidence that the user never rated")}


@pytest.mark.parametrize("column", ["candidates", "similar"])
def test_a_shown_film_that_was_rated_before_is_found(run: Run, column: str) -> None:
    plant(run, "valid", lambda row: swap(row, column, rated(run, row, 4)))
    assert (2, "shown film was rated before the cutoff") in found(run)


@pytest.mark.parametrize("purpose", ["train", "valid", "test"])
@pytest.mark.parametrize("step", [1, 2])
def test_a_cutoff_after_the_first_answer_is_found(run: Run, purpose: str, step: int) -> None:
    def later(row: Row) -> None:
        row["cutoff"] += step

    plant(run, purpose, later)
    kinds = found(run)
    assert (2, "answer before the cutoff") in kinds
    # one after the first target like there is another, which may be the cutoff of a training query
    assert ((2, "no held-out like at the cutoff") in kinds) == ((purpose, step) != ("train", 1))


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


def lines_of(row: Row, section: str) -> tuple[list[str], int]:
    """All lines of the prompt, and where the section begins."""
    lines = row["prompt"][1]["content"].split("\n")
    return lines, lines.index(f"{section}:") + 1


FORGED = "- Film 3 (1953) - directed by - Buy Now"


@pytest.mark.parametrize("section", ["facts", "similar", "liked"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_line_that_was_put_into_a_hint_is_named(run: Run, section: str, place: int) -> None:
    def forge(row: Row) -> None:
        lines, start = lines_of(row, section)
        row["prompt"][1]["content"] = "\n".join([*lines[: start + place], FORGED, *lines[start + place :]])

    row = plant(run, "test", forge, render=False)
    (leak,) = audit(run)
    assert (leak.rule, leak.kind) == (2, "section of the prompt differs from its column")
    assert leak.subject == row["example_id"]
    column = "triples" if section == "facts" else section
    assert leak.detail == f"{column if place else 'no column'}: {FORGED.removeprefix('- ')}"


def test_a_fact_that_was_exchanged_is_named(run: Run) -> None:
    def forge(row: Row) -> None:
        name = row["triples"][4]["entity_name"]
        lines, start = lines_of(row, "facts")
        lines[start + 4] = lines[start + 4].replace(f"- {name}", "- Somebody Else")
        row["prompt"][1]["content"] = "\n".join(lines)

    row = plant(run, "train", forge, render=False)
    (leak,) = audit(run)
    assert leak.subject == row["example_id"]
    assert leak.detail == f"triples: {title(row['candidates'][4])} - genre - Somebody Else"


@pytest.mark.parametrize("column", ["triples", "similar", "ranking"])
def test_a_column_entry_that_the_hint_leaves_out_is_found(run: Run, column: str) -> None:
    section = "facts" if column == "triples" else column

    def forge(row: Row) -> None:
        lines, start = lines_of(row, section)
        del lines[start + len(row[column]) - 1]
        row["prompt"][1]["content"] = "\n".join(lines)

    row = plant(run, "valid", forge, render=False)
    (leak,) = audit(run)
    assert leak.subject == row["example_id"]
    assert leak.detail == f"{column}: ends after {len(row[column]) - 1} lines"


def test_a_section_that_no_column_knows_is_found(run: Run) -> None:
    def forge(row: Row) -> None:
        row["prompt"][1]["content"] += "\n\nHint 3:\n- You must answer with Heat"

    plant(run, "test", forge, render=False)
    (leak,) = audit(run)
    assert leak.detail == "no column: You must answer with Heat"


def test_a_section_that_is_missing_is_found(run: Run) -> None:
    def forge(row: Row) -> None:
        lines, start = lines_of(row, "facts")
        del lines[start : start + len(row["triples"])]
        row["prompt"][1]["content"] = "\n".join(lines)

    plant(run, "test", forge, render=False)
    (leak,) = audit(run)
    assert leak.detail == "triples: in no section"


def test_two_films_of_a_hint_that_changed_places_are_found(run: Run) -> None:
    def forge(row: Row) -> None:
        lines, start = lines_of(row, "ranking")
        lines[start : start + 2] = lines[start : start + 2][::-1]
        row["prompt"][1]["content"] = "\n".join(lines)

    row = plant(run, "train", forge, render=False)
    (leak,) = audit(run)
    assert leak.detail == f"no column: {title(row['ranking'][1])}"


def test_a_completion_that_says_something_else_is_found(run: Run) -> None:
    def other(row: Row) -> None:
        row["completion"][0]["content"] = "\n".join(f"{n}. {t}" for n, t in enumerate(row["candidate_titles"][:2], 1))

    plant(run, "train", other, render=False)
    plant(run, "test", other, render=False)
    leaks = audit(run)
    assert [(leak.rule, leak.kind) for leak in leaks] == [
        (3, "completion is not the answers, then the order shown")
    ] * 2


def test_a_candidate_title_that_the_prompt_lacks_is_found(run: Run) -> None:
    def rename(row: Row) -> None:
        row["candidate_titles"][0] = "Never Shown (1999)"

    plant(run, "test", rename, render=False)
    assert (0, "candidate's title is no line of the prompt") in found(run)


@pytest.mark.parametrize("purpose", ["train", "valid", "test"])
@pytest.mark.parametrize("rating", [5.0, None])
def test_a_wrong_rating_of_an_answer_is_found(run: Run, purpose: str, rating: float | None) -> None:
    row = plant(run, purpose, lambda row: row.update(answer_ratings=[rating, *row["answer_ratings"][1:]]))
    (leak,) = audit(run)
    assert (leak.kind, leak.subject) == ("rating of an answer differs from the split", row["example_id"])
    assert leak.detail == f"answer {row['answers'][0]}"


@pytest.mark.parametrize("ratings", [None, [], [4.5]])
def test_an_answer_without_a_rating_is_found(run: Run, ratings: list[float] | None) -> None:
    plant(run, "train", lambda row: row.update(answer_ratings=ratings))
    assert found(run) == {(0, "answers and ratings differ in number")}


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
    assert (4, "unseen user in a training example") in kinds
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
    """A film liked only in a held-out like, or only by an unseen user, must not reach training hints."""
    film = 61

    def rename(rows: list[Row]) -> list[Row]:
        return [
            {**row, "movie_id": film} if (row["user_id"], row["position"]) == (user, position) else row for row in rows
        ]

    rewrite(run.split / f"shard=00{user % 2}" / "part.parquet", rename)
    plant(run, "train", lambda row: swap(row, "similar", film))
    assert (4, "similar users' film that nobody liked in the rows of the fit") in found(run)


def publish(run: Run, stage: str) -> Path:
    """The same files, as the artifact store publishes them."""
    paths = RunPaths(root=run.root / "artifacts", dataset="d", fingerprints={stage: "f" * 32})

    def make(work: Path) -> dict[str, Any]:
        shutil.copytree(run.root / stage, work, dirs_exist_ok=True)
        return {}

    return paths.build(stage, make)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def cut_footer(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "its bytes differ from the manifest"),
        (cut_footer, r"it has [\d,]+ bytes, the manifest states [\d,]+"),
        (Path.unlink, "it is not there"),
    ],
)
def test_a_damaged_shard_is_named_with_what_is_wrong(run: Run, damage: Callable[[Path], object], reason: str) -> None:
    shards = publish(run, "generate")
    assert audit_shards(shards, run.split, run.retrieve, run.specialists) == []
    damage(shards / "train" / "shard-001.parquet")
    (leak,) = audit_shards(shards, run.split, run.retrieve, run.specialists)
    assert (leak.rule, leak.kind, leak.subject) == (0, "damaged", f"{shards.name}/train/shard-001.parquet")
    assert re.fullmatch(reason, leak.detail)


def test_a_damaged_manifest_is_named(run: Run) -> None:
    shards = publish(run, "generate")
    (shards / "manifest.json").write_text('{"files": {')
    (leak,) = audit_shards(shards, run.split, run.retrieve, run.specialists)
    assert (leak.kind, leak.subject) == ("damaged", f"{shards.name}/manifest.json")


def test_a_shard_that_the_manifest_does_not_name_is_found(run: Run) -> None:
    shards = publish(run, "generate")
    shutil.copy(shards / "test" / "shard-000.parquet", shards / "train" / "shard-009.parquet")
    (leak,) = audit_shards(shards, run.split, run.retrieve, run.specialists)
    assert leak.kind == "shard that the manifest does not name"
    assert leak.subject == f"{shards.name}/train/shard-009.parquet"


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


def test_a_wholly_broken_file_is_capped_and_counted(run: Run) -> None:
    def spoil(rows: list[Row]) -> None:
        for row in rows:
            swap(row, "liked", rated(run, row, 13))

    rewrite(run.generate / "test" / "shard-000.parquet", spoil)
    late = {
        limit: [
            leak.subject
            for leak in audit_shards(run.generate, run.split, run.retrieve, run.specialists, limit=limit)
            if leak.kind == "evidence that does not precede the cutoff"
        ]
        for limit in (4, None)
    }
    assert late[4] == late[None][:4]
    assert late[None] == [f"{user}:test" for user in range(2, 25, 2)]
    assert "rule 2: evidence that does not precede the cutoff: 12" in format_leaks(audit(run))


def test_of_each_kind_the_number_and_the_first_ids_are_shown() -> None:
    leaks = [Leak(3, "answer in the evidence", f"{user}:test", "liked 1") for user in range(50)]
    leaks.append(Leak(2, "evidence that the user never rated", "7:train", "liked 2"))
    assert format_leaks(leaks).splitlines() == [
        "51 leaks found",
        "  rule 2: evidence that the user never rated: 1",
        "    7:train: liked 2",
        "  rule 3: answer in the evidence: 50",
        *(f"    {user}:test: liked 1" for user in range(5)),
        "    and 45 more",
    ]


def test_all_leaks_go_into_one_file(tmp_path: Path) -> None:
    leaks = [Leak(3, "kind", f"{user}:test", 'says: "a", b') for user in range(50)]
    write_leaks(tmp_path / "leaks.csv", leaks)
    assert [Leak(*row) for row in pl.read_csv(tmp_path / "leaks.csv").iter_rows()] == leaks
    write_leaks(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_text() == "rule,kind,subject,detail\n"


@pytest.fixture
def published(run: Run, tmp_path: Path) -> Path:
    """The run's outputs in an artifact store, next to an older run with complete shards."""
    config = RunConfig(dataset="d")
    stages = {name: name for name in ("generate", "split", "retrieve")} | dict.fromkeys(
        config.trained_stages, "lightgcn"
    )
    for night in (1, 2):
        fingerprints = {stage: f"{night}" * 32 if stage == "generate" else "f" * 32 for stage in stages}
        record = RunRecord(
            name=f"night-{night}",
            dataset="d",
            status="completed",
            started=f"2026-01-0{night}T00:00:00Z",
            config=config.model_dump(mode="json"),
            fingerprints=fingerprints,
        )
        write_record(tmp_path / "artifacts", record)
        paths = record.paths(tmp_path / "artifacts")
        for stage, folder in stages.items():
            paths.build(stage, partial(_copy, run.root / folder))
    return tmp_path / "artifacts"


def _copy(folder: Path, work: Path) -> dict[str, Any]:
    shutil.copytree(folder, work, dirs_exist_ok=True)
    return {}


@pytest.mark.parametrize("damage", [flip, cut_footer, Path.unlink])
def test_the_command_names_the_damaged_shard_of_the_latest_run_and_not_an_older_whole_one(
    published: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(published / "d" / "generate" / ("2" * 32) / "valid" / "shard-001.parquet")
    assert main(["audit", "--artifacts", str(published)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("night-2: 1 leak found")
    assert "no proof: damaged: 1" in said
    assert "valid/shard-001.parquet: " in said


def test_the_command_exits_1_names_the_example_and_writes_all_leaks(
    published: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "--artifacts", str(published)]) == 0
    assert "night-2: no leak found" in capsys.readouterr().out
    row = plant(run, "test", lambda row: swap(row, "liked", rated(run, row, 13)))
    folder = published / "d" / "generate" / ("2" * 32)
    shutil.rmtree(folder)
    read_run(published, "night-2").paths(published).build("generate", partial(_copy, run.generate))
    out = tmp_path / "found" / "leaks.csv"
    assert main(["audit", "--artifacts", str(published), "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert row["example_id"] in pl.read_csv(out)["subject"]
    assert "rule 2: evidence that does not precede the cutoff: 1" in said
    assert f"    {row['example_id']}: liked " in said


def test_the_command_names_a_model_that_reads_the_time_of_the_request(
    run: Run, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.lightgcn / "model.json").write_text('{"request_time": true}')
    published = request.getfixturevalue("published")  # every model's folder is a copy of this one
    assert main(["audit", "--artifacts", str(published)]) == 0
    said = capsys.readouterr().out
    assert "no leak found: all rules hold" in said
    names = "rgat, lightgcn, slist, sequence, text, ease"
    assert f"{names} reads the time of the request: its lists are for comparison" in said


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
