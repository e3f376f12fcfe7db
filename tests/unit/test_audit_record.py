"""A later run's audit skips recorded examples and nothing else: every planted leak is found as without a record."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from written_run import Run, rewrite, title, with_text, write_run

from tripletune.audit import record as audit_record
from tripletune.audit.audit import Audit, audit_shards, audit_work_folder
from tripletune.audit.lines import named_films
from tripletune.audit.record import RECORD, take_notes, unproven, write_record
from tripletune.audit.split_rows import SplitRows, digest
from tripletune.config import RunConfig
from tripletune.pipeline.registry import BY_NAME
from tripletune.schemas.generate import EXAMPLES, MESSAGE, PROVEN, SHORTENED
from tripletune.store.fingerprint import sha256_file
from tripletune.store.parquet import read_rows

Row = dict[str, Any]
ALL = 24 * 2 + 22
"""Examples of the written run: two users are unseen."""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose fits are pinned, with the record of its audit."""
    run = write_run(tmp_path_factory.mktemp("clean"))
    for name in run.specialists:
        manifest = {"parents": {"split": "e" * 32}, "files": {}}
        (run.root / name / "manifest.json").write_text(json.dumps(manifest))
    audit = audit_work_folder(run.generate, run.split, run.retrieve, run.specialists, earlier=None)
    assert (audit.leaks, audit.newly_audited) == ([], ALL)
    shutil.copytree(run.generate, run.root / "earlier")
    write_record(run.root / "earlier", audit.proven)
    sign(run.root / "earlier", {name: name for name in run.specialists})
    return run


def sign(folder: Path, parents: dict[str, str]) -> None:
    """Manifest of a finished run."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in folder.rglob("*.parquet")
    }
    (folder / "manifest.json").write_text(json.dumps({"parents": parents, "files": files}))


@pytest.fixture
def run(clean: Run, tmp_path: Path) -> Run:
    """The next run, a copy to change."""
    shutil.copytree(clean.root, tmp_path / "run")
    return Run(tmp_path / "run", clean.order)


def audit(run: Run) -> Audit:
    return audit_work_folder(run.generate, run.split, run.retrieve, run.specialists, earlier=run.root / "earlier")


def found(run: Run) -> set[tuple[int, str]]:
    """Kinds of leaks; the same as without a record."""
    leaks = audit(run).leaks
    assert set(leaks) == set(audit_shards(run.generate, run.split, run.retrieve, run.specialists))
    return {(leak.rule, leak.kind) for leak in leaks}


def change_split(run: Run, user: int, change: Callable[[Row], object]) -> None:
    def rewritten(rows: list[Row]) -> None:
        for row in rows:
            if row["user_id"] == user:
                change(row)

    rewrite(run.split / f"shard=00{user % 2}" / "part.parquet", rewritten)


def test_where_nothing_changed_nothing_is_proven_again_and_the_record_stays(clean: Run) -> None:
    again = audit(clean)
    assert (again.leaks, again.newly_audited) == ([], 0)
    earlier = read_rows(clean.root / "earlier" / RECORD, PROVEN)
    assert again.proven.equals(earlier)
    assert earlier["example_id"].n_unique() == ALL


def test_the_record_is_no_shard_of_the_finished_folder(clean: Run) -> None:
    assert audit_shards(clean.root / "earlier", clean.split, clean.retrieve, clean.specialists) == []


def test_a_text_that_changed_while_its_columns_did_not_is_proven_anew(run: Run) -> None:
    def show(rows: list[Row]) -> None:
        rows[0]["prompt"][1]["content"] += f"\n- {title(run.order[rows[0]['user_id']][12])}"

    rewrite(run.generate / "train" / "shard-000.parquet", show)
    assert found(run) == {(2, "prompt names a film that its columns do not")}
    assert 1 <= audit(run).newly_audited < ALL


@pytest.mark.parametrize("column", [name for name in EXAMPLES if name not in ("example_id", "purpose")])
def test_every_column_of_an_example_counts(run: Run, column: str) -> None:
    def change(rows: list[Row]) -> None:
        rows[0][column] = other(rows[0][column])

    def other(value: Any) -> Any:
        if value is None:
            lists = {"candidate_letters": ["A"], "worked": ["4:train:10"]}
            return {**lists, "shortened": dict.fromkeys(SHORTENED.to_schema(), 1)}.get(column, 1)
        if isinstance(value, bool):
            return not value
        return value[1:] or None if isinstance(value, list) else value + type(value)(1)

    rewrite(run.generate / "valid" / "shard-001.parquet", change)
    assert audit(run).newly_audited >= 1


def test_an_unchanged_example_whose_viewers_rows_changed_is_proven_anew(run: Run) -> None:
    """The test like is before the cutoff now, where the train example shows it as evidence."""

    def move(row: Row) -> None:
        row["label"] = {13: "graph", 3: "test"}.get(row["position"], row["label"])

    change_split(run, 4, move)
    kinds = found(run)
    assert (4, "test like in a train example") in kinds
    assert (2, "no held-out like at the cutoff") in kinds
    assert audit(run).newly_audited == 3


@pytest.mark.parametrize("column", ["movie_id", "rating", "position", "label", "unseen"])
def test_every_column_of_the_split_that_is_read_counts(run: Run, column: str) -> None:
    def change(row: Row) -> None:
        if row["position"] == 8:
            row[column] = {"movie_id": 99, "rating": 5.0, "position": 30, "label": "other", "unseen": True}[column]

    change_split(run, 6, change)
    assert audit(run).newly_audited == 3


def test_a_viewer_whose_rows_are_gone_is_proven_anew(run: Run) -> None:
    rewrite(run.split / "shard=000" / "part.parquet", lambda rows: [row for row in rows if row["user_id"] != 6])
    assert (0, "user without rows in the split") in found(run)


def test_an_example_that_stands_there_twice_is_found(run: Run) -> None:
    rewrite(run.generate / "test" / "shard-000.parquet", lambda rows: [*rows, rows[0]])
    assert [leak.kind for leak in audit(run).leaks] == ["example written twice"]


def test_an_example_that_moved_to_another_folder_is_proven_anew(run: Run) -> None:
    moved = pl.read_parquet(run.generate / "test" / "shard-001.parquet").filter(user_id=5)
    train = run.generate / "train" / "shard-001.parquet"
    pl.concat([pl.read_parquet(train), moved]).write_parquet(train)
    assert (4, "test like in a train example") in found(run)


def test_an_answer_that_a_pinned_fit_knows_is_found_in_what_is_proven(run: Run) -> None:
    """Its manifest is not what is checked: the rule covers all answers in every run."""
    row = {"user_id": 3, "movie_id": run.order[3][13], "fit": "b"}
    rewrite(run.rgat / "trained_on.parquet", lambda rows: [*rows, row])
    assert found(run) == {(1, "a pinned fit was trained on the answer")}


@pytest.mark.parametrize("name", ["rgat", "lightgcn"])
def test_a_record_of_other_fits_is_not_used(run: Run, name: str) -> None:
    sign(run.root / "earlier", {**{one: one for one in run.specialists}, name: "another"})
    assert audit(run).newly_audited == ALL


def test_without_a_record_or_with_a_damaged_one_everything_is_proven(run: Run) -> None:
    record = run.root / "earlier" / RECORD
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    assert audit(run).newly_audited == ALL
    record.write_bytes(b"no parquet")
    sign(run.root / "earlier", {name: name for name in run.specialists})
    assert audit(run).newly_audited == ALL
    record.unlink()
    assert audit(run).newly_audited == ALL
    sign(run.root / "earlier", {name: name for name in run.specialists})
    assert audit(run).newly_audited == ALL
    (run.root / "earlier" / "manifest.json").unlink()
    assert audit(run).newly_audited == ALL


def forge(run: Run, user: int) -> tuple[int, int]:
    """In the first run already, one line of the liked section names a film that is no candidate anywhere."""
    path = run.generate / "test" / f"shard-00{user % 2}.parquet"
    listed = {film for row in pl.read_parquet(path).iter_rows(named=True) for film in row["candidates"]}
    row = next(row for row in pl.read_parquet(path).iter_rows(named=True) if row["user_id"] == user)
    hidden = next(film for film in row["liked"] if film not in listed)
    shown = 777

    def put(rows: list[Row]) -> None:
        for one in rows:
            if one["user_id"] == user:
                text = one["prompt"][1]["content"]
                one["prompt"][1]["content"] = text.replace(f"- {title(hidden)}\n", f"- {title(shown)}\n")

    rewrite(path, put)
    return hidden, shown


@pytest.mark.parametrize("known", ["hidden", "shown"])
def test_a_title_that_tonight_makes_known_is_looked_for_in_what_is_proven(run: Run, known: str) -> None:
    user, other = 4, 8
    path = run.generate / "test" / "shard-000.parquet"
    rewrite(path, lambda rows: [row for row in rows if row["user_id"] in (user, other)])
    path.with_name("shard-001.parquet").unlink()  # of the same group
    hidden, shown = forge(run, user)
    first = audit_work_folder(run.generate, run.split, run.retrieve, run.specialists, earlier=None)
    assert first.leaks == []
    write_record(run.root / "earlier", first.proven)
    sign(run.root / "earlier", {name: name for name in run.specialists})
    film = {"hidden": hidden, "shown": shown}[known]
    rewrite(path, lambda rows: [offer(row, film) if row["user_id"] == other else row for row in rows])
    assert f"{user}:test" in {leak.subject for leak in audit(run).leaks}
    found(run)


def test_a_title_is_known_from_any_shard_of_the_group(run: Run) -> None:
    path = run.generate / "test" / "shard-000.parquet"
    rewrite(path, lambda rows: [row for row in rows if row["user_id"] in (4, 8)])
    forge(run, 4)
    assert found(run) == {(2, "section of the prompt differs from its column")}


@pytest.mark.parametrize(("film", "name"), [("listed", "Nowhere (1900)"), (999, "listed"), (999, "Nowhere (1900)")])
def test_a_new_title_sends_back_who_lists_its_film_or_names_it_and_nobody_else(
    clean: Run, film: int | str, name: str
) -> None:
    examples = pl.read_parquet(clean.generate / "test" / "shard-000.parquet").head(2)
    second = examples["prompt"][1][1]["content"]
    only = next(one for one in examples["liked"][0] if title(one) not in second)
    new = pl.DataFrame(
        {"title": title(only) if name == "listed" else name, "number": 99, "said": only if film == "listed" else film}
    )
    titles = named_films(examples)
    notes = take_notes("test/shard-000.parquet", examples, SplitRows(clean.split).digests(), titles)
    assert unproven(examples, notes, notes, titles).is_empty()
    left = unproven(examples, notes, notes, pl.concat([titles, new.select(titles.columns).cast(dict(titles.schema))]))
    assert left["user_id"].to_list() == ([] if "listed" not in (film, name) else examples["user_id"].to_list()[:1])


@pytest.mark.parametrize("column", ["candidates", "ranking", "similar", "liked", "disliked", "triples"])
def test_a_new_title_sends_back_who_lists_its_film_in_any_column(clean: Run, column: str) -> None:
    examples = pl.read_parquet(clean.generate / "test" / "shard-000.parquet").head(2)
    rows = examples.to_dicts()
    rows[0][column].append({**rows[0]["triples"][0], "movie_id": 999} if column == "triples" else 999)
    if column == "candidates":
        rows[0]["candidate_titles"].append("Another (1901)")
    examples = pl.DataFrame(rows, schema=EXAMPLES)
    titles = named_films(examples).filter(pl.col("title") != "Another (1901)")
    notes = take_notes("test/shard-000.parquet", examples, SplitRows(clean.split).digests(), titles)
    new = pl.DataFrame({"title": "Nowhere (1900)", "number": 99, "said": 999}).cast(dict(titles.schema))
    assert unproven(examples, notes, notes, new)["example_id"].to_list() == [rows[0]["example_id"]]


def test_with_many_new_titles_everything_is_proven_anew(clean: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = pl.read_parquet(clean.generate / "test" / "shard-000.parquet").head(2)
    titles = named_films(examples)
    notes = take_notes("test/shard-000.parquet", examples, SplitRows(clean.split).digests(), titles)
    new = pl.DataFrame({"title": "Nowhere (1900)", "number": 99, "said": 999})
    more = pl.concat([titles, new.select(titles.columns).cast(dict(titles.schema))])
    assert unproven(examples, notes, notes, more).is_empty()
    monkeypatch.setattr(audit_record, "MOST_TITLES", 0)
    assert unproven(examples, notes, notes, more).equals(examples)


def offer(row: Row, film: int) -> Row:
    """Replace the first candidate by a film."""
    old = row["candidates"][0]
    for column in ("candidates", "retrieved", "ranking"):
        row[column] = [film if one == old else one for one in row[column]]
    row["candidate_titles"] = [title(one) for one in row["candidates"]]
    row["triples"] = [one for one in row["triples"] if one["movie_id"] != old]
    return with_text(row)


def test_a_title_that_two_films_had_until_tonight_is_looked_for_in_what_is_proven(run: Run) -> None:
    user, other, namesake = 4, 8, 10
    path = run.generate / "test" / "shard-000.parquet"
    rewrite(path, lambda rows: [row for row in rows if row["user_id"] in (user, other, namesake)])
    path.with_name("shard-001.parquet").unlink()  # of the same group
    hidden, _ = forge(run, user)

    def share(rows: list[Row]) -> None:
        for row in rows:
            if row["user_id"] == other:
                offer(row, hidden)
            if row["user_id"] == namesake:
                offer(row, 888)
                text = row["prompt"][1]["content"].replace(title(888), title(hidden))
                row["prompt"][1]["content"] = text
                row["candidate_titles"] = [one.replace(title(888), title(hidden)) for one in row["candidate_titles"]]
                row["completion"][0]["content"] = row["completion"][0]["content"].replace(title(888), title(hidden))

    rewrite(path, share)
    first = audit_work_folder(run.generate, run.split, run.retrieve, run.specialists, earlier=None)
    assert first.leaks == []
    write_record(run.root / "earlier", first.proven)
    sign(run.root / "earlier", {name: name for name in run.specialists})
    rewrite(path, lambda rows: [row for row in rows if row["user_id"] != namesake])
    assert f"{user}:test" in {leak.subject for leak in audit(run).leaks}
    found(run)


@pytest.mark.parametrize("dtype", [pl.List(pl.String), pl.List(MESSAGE), pl.List(pl.Int32), pl.String])
def test_different_values_have_different_digests(dtype: pl.DataType) -> None:
    texts = ["", "a", "b", "ab", None]
    items: list[Any] = list(texts)
    if dtype == pl.List(MESSAGE):
        items = [{"role": one, "content": two} for one, two in product(texts, texts)] + [None]
    if dtype == pl.List(pl.Int32):
        items = [0, 1, -1, 2, None]
    values = [list(one) for length in range(4) for one in product(items, repeat=length)] + [None]
    if dtype == pl.String:
        values = texts
    frame = pl.DataFrame({"one": values}, schema={"one": dtype})
    frame = frame.join(frame.rename({"one": "two"}).head(30), how="cross")
    assert frame.select(digest("one", "two")).to_series().n_unique() == frame.height


def test_rows_that_cancel_out_or_change_places_do_not_hide_in_a_viewers_digest(run: Run) -> None:
    def of(user: int) -> int:
        return SplitRows(run.split).digests().filter(user_id=user)["viewer"].item()

    path, before = run.split / "shard=000" / "part.parquet", of(2)
    mine = [row for row in pl.read_parquet(path, hive_partitioning=False).to_dicts() if row["user_id"] == 2]
    rewrite(path, lambda rows: rows[::-1])
    assert of(2) == before
    for extra in (mine[:1], mine[:1] * 2, mine):
        rewrite(path, lambda rows, extra=extra: [*rows, *extra])
        assert of(2) != before
        rewrite(path, lambda rows, extra=extra: rows[: -len(extra)])

    def swap(rows: list[Row]) -> None:
        first, second = [row for row in rows if row["user_id"] == 2][:2]
        first["movie_id"], second["movie_id"] = second["movie_id"], first["movie_id"]

    rewrite(path, swap)
    assert of(2) != before


def test_another_process_and_another_number_of_threads_write_the_same_record(clean: Run, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tripletune.audit.audit import audit_work_folder;"
        "from tripletune.audit.record import write_record; root, out = map(Path, sys.argv[1:]); out.mkdir();"
        "trained = {name: root / name for name in ('rgat', 'lightgcn')};"
        "audit = audit_work_folder(root / 'generate', root / 'split', root / 'retrieve', trained, earlier=None);"
        "write_record(out, audit.proven)"
    )
    environment = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "5"}
    subprocess.run(
        [sys.executable, "-c", code, str(clean.root), str(tmp_path / "out")],
        check=True,
        env={**os.environ, **environment},
    )
    assert (tmp_path / "out" / RECORD).read_bytes() == (clean.root / "earlier" / RECORD).read_bytes()


def test_a_change_of_the_audits_code_rebuilds_the_shards() -> None:
    """So an earlier run's record is not used: it was made by other rules."""
    sources = BY_NAME["generate"].sources(RunConfig(dataset="d")).hashes
    assert {"audit.audit", "audit.rules", "audit.text", "audit.record", "store.parquet"} <= sources.keys()
