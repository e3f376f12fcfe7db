"""The audit follows the answer style of the shards: labels where it has some, titles where it has none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from prompt_frames import build
from written_run import Run, rewrite, title, write_run

from tripletune.audit.audit import audit_shards, stated_style
from tripletune.audit.lines import named_films
from tripletune.audit.text import text_findings
from tripletune.cli.main import main
from tripletune.config import RunConfig
from tripletune.errors import ConfigError
from tripletune.prompts.template import load_template
from tripletune.schemas.answers import LETTERS, TITLES, AnswerStyle, candidate_letters
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.inline import Inline
from tripletune.store.paths import MANIFEST
from tripletune.store.runs import RunRecord
from tripletune.store.runs import write_run as write_record

Row = dict[str, Any]


def with_labels(row: Row) -> None:
    """Answers by label instead of by title."""
    labels = candidate_letters(len(row["candidates"]))
    label_of = dict(zip(map(title, row["candidates"]), labels, strict=True))
    head, candidates = row["prompt"][1]["content"].rsplit("?\n", 1)
    lines = [line.removeprefix("- ") for line in candidates.split("\n")]
    row["prompt"][1]["content"] = head + "?\n" + "\n".join(f"{label_of[line]}. {line}" for line in lines)
    said = [line.split(". ", 1)[1] for line in row["completion"][0]["content"].split("\n")]
    row["completion"][0]["content"] = "\n".join(label_of[name] for name in said)
    row["candidate_letters"] = labels


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = write_run(tmp_path_factory.mktemp("labelled"))
    for path in run.generate.rglob("shard-*.parquet"):
        rewrite(path, lambda rows: [with_labels(row) for row in rows] and None)
    return run


@pytest.fixture
def run(labelled: Run, tmp_path: Path) -> Run:
    """A copy to damage."""
    shutil.copytree(labelled.root, tmp_path / "run")
    return Run(tmp_path / "run", labelled.order)


def found(run: Run, style: AnswerStyle) -> set[tuple[int, str]]:
    leaks = audit_shards(run.generate, run.split, run.retrieve, run.specialists, style=style)
    return {(leak.rule, leak.kind) for leak in leaks}


def plant(run: Run, change: Callable[[Row], object]) -> None:
    rewrite(run.generate / "train" / "shard-000.parquet", lambda rows: change(rows[0]) and None)


def test_clean_shards_have_no_leak_in_their_own_style_alone(labelled: Run, tmp_path: Path) -> None:
    assert found(labelled, LETTERS) == set()
    assert (0, "labels although answers are titles") in found(labelled, TITLES)
    by_title = write_run(tmp_path)
    assert found(by_title, TITLES) == set()
    assert found(by_title, LETTERS) == {(0, "labels are not one to a candidate")}


@pytest.mark.parametrize("labels", [None, [], ["A"], ["A"] * 20])
def test_an_example_without_a_label_for_each_candidate_is_found(run: Run, labels: list[str] | None) -> None:
    plant(run, lambda row: row.update(candidate_letters=labels))
    assert found(run, LETTERS) == {(0, "labels are not one to a candidate")}


def test_two_labels_that_changed_places_in_the_prompt_are_found(run: Run) -> None:
    def exchange(row: Row) -> None:
        first, second = map(title, row["candidates"][:2])
        text = row["prompt"][1]["content"].replace(f"A. {first}", f"A. {second}")
        row["prompt"][1]["content"] = text.replace(f"B. {second}", f"B. {first}")

    plant(run, exchange)
    assert (0, "label does not stand before its title") in found(run, LETTERS)


def test_a_completion_of_other_labels_is_found(run: Run) -> None:
    def answer(row: Row) -> None:
        row["completion"][0]["content"] = "\n".join(row["completion"][0]["content"].split("\n")[::-1])

    plant(run, answer)
    assert found(run, LETTERS) == {(3, "completion is not the answers, then the order shown")}


ORDERS = {"hints-first": "ranking", "letters": "ranking", "compact": "retrieved", "hint-2-only": "candidates"}


@pytest.mark.parametrize("template", ORDERS)
@pytest.mark.parametrize("order", ["ranking", "retrieved", "candidates"])
def test_only_a_completion_in_an_order_that_the_prompt_shows_is_right(template: str, order: str) -> None:
    loaded = load_template(template)
    made = {ordered: build(name) for name, ordered in ORDERS.items()}
    rows = build(template).to_dicts()
    for row, films in zip(rows, made[order][order].to_list(), strict=True):
        picks = list(dict.fromkeys([*row["answers"], *films]))[:5]
        names = row["candidate_letters"] or row["candidate_titles"]
        named = [names[row["candidates"].index(film)] for film in picks]
        lines = [loaded.answers.line(number, name) for number, name in enumerate(named, 1)]
        is_written = row["completion"][0]["content"] == "\n".join(lines)
        assert is_written or order != ORDERS[template]
        row["completion"][0]["content"] = "\n".join(lines)
    examples = pl.DataFrame(rows, schema=EXAMPLES)
    words = loaded.inline_in("arrow")
    findings = text_findings(examples, named_films(examples), "test", loaded.answers, words)
    kinds = {one.kind for one in findings if len(one.rows)}
    assert kinds == (set() if order == ORDERS[template] else {"completion is not the answers, then the order shown"})


@pytest.fixture
def published(run: Run, tmp_path: Path) -> RunRecord:
    """A finished run of the template ``letters`` in an artifact store, whose manifest states no style."""
    config = RunConfig.model_validate({"dataset": "d", "prompt": {"template": "letters"}})
    stages = {name: name for name in ("generate", "split", "retrieve")} | dict.fromkeys(
        config.trained_stages, "lightgcn"
    )
    record = RunRecord(
        name="night",
        dataset="d",
        status="completed",
        started="2026-01-01T00:00:00Z",
        config=config.model_dump(mode="json"),
        fingerprints=dict.fromkeys(stages, "f" * 32),
    )
    write_record(tmp_path / "artifacts", record)
    for stage, folder in stages.items():

        def copy(work: Path, folder: str = folder) -> dict[str, Any]:
            shutil.copytree(run.root / folder, work, dirs_exist_ok=True)
            return {}

        record.paths(tmp_path / "artifacts").build(stage, copy)
    return record


def test_the_command_takes_the_style_from_the_manifest_and_from_the_template_where_that_states_none(
    published: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts = tmp_path / "artifacts"
    shards = published.paths(artifacts).folder("generate")
    assert stated_style(shards) is None
    assert main(["audit", "--artifacts", str(artifacts)]) == 0
    manifest = json.loads((shards / MANIFEST).read_text())
    for stated, code in (("letters", 0), ("titles", 1), ("numbers", 2)):
        (shards / MANIFEST).write_text(json.dumps(manifest | {"facts": {"answer_style": stated}}))
        assert main(["audit", "--artifacts", str(artifacts)]) == code
    inline = Inline(words=(("retrieved", "#{place}"),), facts={}).as_json()
    (shards / MANIFEST).write_text(json.dumps(manifest | {"facts": {"answer_style": "letters", "inline": inline}}))
    assert main(["audit", "--artifacts", str(artifacts)]) == 1
    (shards / MANIFEST).write_text(json.dumps(manifest | {"facts": {"answer_style": "numbers"}}))
    assert "no answer style 'numbers'; the styles are titles, letters" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no answer style 'numbers'"):
        stated_style(shards)
