"""``tripletune gc``: what no kept run refers to goes, everything else stays."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tripletune.cli.main import main
from tripletune.errors import InputError
from tripletune.pipeline.garbage import find_garbage, kept_runs, remove
from tripletune.store.files import write_json
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, write_run

NOW = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def hexed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def add_output(root: Path, dataset: str, stage: str, name: str, inputs: dict[str, str] | None = None) -> Path:
    paths = RunPaths(
        root=root,
        dataset=dataset,
        fingerprints={stage: hexed(name)},
        ingredients={stage: {"inputs": inputs or {}}},
    )
    return paths.build(stage, lambda work: {"bytes": (work / "rows.txt").write_text(name)})


def add_run(root: Path, name: str, started: str, outputs: dict[str, str], **more: Any) -> None:
    dataset = name.split("-")[0]
    config = {"dataset": dataset, "specialists": {"pin": more.pop("pin", "")}}
    fingerprints = {stage: hexed(output) for stage, output in outputs.items()}
    record = {"status": "completed", "config": config, "fingerprints": fingerprints, **more}
    write_run(root, RunRecord.model_validate({"name": name, "dataset": dataset, "started": started, **record}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three runs of one dataset that share a split, and one run of another."""
    root = tmp_path / "artifacts"
    for night in "123":
        add_output(root, "films", "generate", f"g{night}")
        add_run(root, f"films-{night}", f"2026-01-0{night}T00:00:00Z", {"split": "s", "generate": f"g{night}"})
    add_output(root, "films", "split", "s")
    add_output(root, "books", "split", "b")
    add_run(root, "books-1", "2025-01-01T00:00:00Z", {"split": "b"})
    (root / "films" / "promote" / "films-1").mkdir(parents=True)
    (root / "films" / "notes").mkdir()
    return root


def garbage(root: Path, newest: int = 1, named: tuple[str, ...] = ()) -> set[str]:
    found = find_garbage(root, kept_runs(root, newest=newest, named=named))
    return {f"{one.dataset}/{one.stage}/{(one.folder / 'rows.txt').read_text()}" for one in found}


def test_members_of_an_ablation_set_do_not_take_the_place_of_other_runs(root):
    for member in "456":
        add_output(root, "films", "generate", f"g{member}")
        outputs = {"split": "s", "generate": f"g{member}"}
        add_run(root, f"films-{member}", f"2026-01-0{member}T00:00:00Z", outputs, tags={"ablation.set": "hints"})
    add_run(root, "films-0", "2026-01-01T12:00:00Z", {"generate": "g9"}, tags={"ablation.set": "old"})
    assert [run.name for run in kept_runs(root, newest=2, named=()) if run.dataset == "films"] == [
        f"films-{name}" for name in "23456"
    ]


def test_outputs_of_older_runs_go_and_shared_ones_stay(root):
    assert garbage(root) == {"films/generate/g1", "films/generate/g2"}
    assert garbage(root, newest=2) == {"films/generate/g1"}
    assert garbage(root, newest=3) == set()


def test_a_named_run_and_the_run_that_a_kept_one_pins_are_kept(root):
    assert garbage(root, named=("films-1",)) == {"films/generate/g2"}
    add_run(root, "films-4", "2026-01-04T00:00:00Z", {"split": "s"}, pin="films-2")
    assert garbage(root) == {"films/generate/g1", "films/generate/g3"}
    with pytest.raises(InputError, match=r"no run 'films-9' in .*; runs there: books-1, films-1"):
        kept_runs(root, newest=1, named=("films-9",))


def test_a_run_that_goes_on_is_kept_but_not_one_that_was_killed_long_ago(root):
    add_output(root, "films", "generate", "now")
    add_output(root, "films", "generate", "killed")
    add_run(root, "films-now", NOW, {"generate": "now"}, status="running")
    add_run(root, "films-killed", "2025-12-01T00:00:00Z", {"generate": "killed"}, status="running")
    add_run(root, "films-later", "2099-01-01T00:00:00Z", {"split": "s"})
    assert garbage(root) == {"films/generate/killed", *(f"films/generate/g{night}" for night in "123")}


def test_what_a_stopped_run_left_goes_unless_its_output_is_wanted(root):
    for name in ("g3", "gone"):
        (root / "films" / "generate" / f"{hexed(name)}.work").mkdir()
        (root / "films" / "generate" / f"{hexed(name)}.work" / "rows.txt").write_text(f"half of {name}")
    assert garbage(root, newest=3) == {"films/generate/half of gone"}


def test_a_parsed_file_stays_while_a_kept_run_was_made_of_it(root):
    for name in ("old", "new"):
        add_output(root, "films", "parsed", name, {"file": f"sha of {name}"})
    add_output(root, "films", "ingest", "i", {"feed/new.csv": "sha of new"})
    add_run(root, "films-5", "2026-02-01T00:00:00Z", {"ingest": "i", "split": "s"})
    assert {one for one in garbage(root) if "parsed" in one} == {"films/parsed/old"}


def test_what_a_process_works_on_is_left(root):
    found = find_garbage(root, kept_runs(root, newest=1, named=()))
    with FileLock(found[0].folder.with_name(f"{found[0].folder.name}.lock")):
        removed, held = remove(found)
    assert (removed, held) == (found[1:], found[:1])
    assert [one.folder.exists() for one in found] == [True, False]


def test_the_command_says_what_it_would_remove_and_removes_it_when_told(root, capsys):
    write_json(root / "runs" / "note.json", {"no": "run"})
    before = sorted(root.rglob("*"))
    assert main(["gc", "--keep", "1", "--artifacts", str(root)]) == 0
    said = capsys.readouterr().out
    assert "kept runs: books-1, films-3" in said
    assert "nothing was removed; add --delete" in said
    assert sorted(root.rglob("*")) == before
    assert main(["gc", "--keep", "1", "--delete", "--artifacts", str(root)]) == 0
    assert "removed 2 outputs" in capsys.readouterr().out
    left = {path.relative_to(root).as_posix() for path in root.glob("*/*/*") if path.is_dir()}
    assert left == {
        f"films/generate/{hexed('g3')}",
        f"films/split/{hexed('s')}",
        f"books/split/{hexed('b')}",
        "films/promote/films-1",
    }
    assert (root / "films" / "notes").is_dir()
    assert main(["gc", "--artifacts", str(root)]) == 0
