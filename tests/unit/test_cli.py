"""Messages of the command line: after a stage, for a run that is not there, for an output that cannot be written."""

from __future__ import annotations

import io
import logging
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.written_run import write_run
from tripletune.cli.app import CHECKOUT, say
from tripletune.cli.data import SYNTHETIC
from tripletune.cli.inspect import show_run
from tripletune.cli.main import main
from tripletune.cli.recommend import explain_prompt
from tripletune.config import RunConfig
from tripletune.config.presets import load_config
from tripletune.errors import ConfigError, InputError
from tripletune.pipeline.stage_lines import headline
from tripletune.store import runs
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord

MOVIES = "movieId,title,genres\n1,Heat (1995),Crime\n2,Ronin (1998),Action\n"
RATINGS = "userId,movieId,rating,timestamp\n" + "".join(
    f"{user},{movie},4.0,{978300000 + user}\n" for user in range(1, 21) for movie in (1, 2)
)


@pytest.fixture
def release(tmp_path) -> Path:
    """Forty ratings and one that is none; forty tags and two for a film that is not there."""
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "movies.csv").write_text(MOVIES)
    (folder / "ratings.csv").write_text(RATINGS + "21,1,many,978300000\n")
    tags = [f"{user},{movie},slow,978300000\n" for user in range(1, 21) for movie in (1, 2)]
    lost = [f"{user},99,lost,978300000\n" for user in (1, 2)]
    (folder / "tags.csv").write_text("".join(["userId,movieId,tag,timestamp\n", *tags, *lost]))
    (folder / "links.csv").write_text("movieId,imdbId,tmdbId\n1,0113277,949\n2,0122690,8195\n")
    return folder


def in_store(root: Path, *arguments: str) -> int:
    return main([*arguments, "--artifacts", str(root), "--config", str(CHECKOUT / "configs/smoke.toml")])


def test_a_stage_says_what_it_kept_and_rejected_and_then_where_it_is(release, tmp_path, capsys):
    assert in_store(tmp_path / "a", "ingest", "--movielens", str(release)) == 0
    facts, folder = capsys.readouterr().out.splitlines()
    assert facts == ("40 ratings kept, 1 rejected, 2 tags rejected (see rejects.parquet), 20 users, 2 films")
    assert (Path(folder) / "rejects.parquet").is_file()


def test_knowledge_without_credits_says_so(release, tmp_path, capsys):
    for stage in ("ingest", "knowledge"):
        assert in_store(tmp_path / "a", stage, "--movielens", str(release)) == 0
    assert "2 films, 0 with credits, " in capsys.readouterr().out


def test_nothing_rejected_is_not_mentioned():
    facts = {"rows_kept": 100_829, "rows_rejected": 0, "tables": {}, "viewers": 610, "movies": 9742}
    assert headline("ingest", facts) == "100,829 ratings kept, 610 users, 9,742 films"


def test_a_stage_without_its_usual_facts_shows_the_first_three():
    assert headline("ease", {"films": {"b": 1200}, "likes": 3}) == "films (b 1,200)"
    assert headline("ease", {"movies": 1200, "likes": 3, "seconds": 1.5, "more": 4}) == (
        "movies 1,200, likes 3, seconds 1.5"
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [(18, "only 18 users have a test query"), (603, "603 of 6,040 users have a test query")],
)
def test_a_split_that_asks_few_viewers_says_so(asked, said):
    facts = {
        "protocol": "global_time",
        "labels": {"graph": 1200, "test": 18},
        "asked_viewers": {"target": 50, "valid": 20, "test": asked},
        "viewers": 6040,
    }
    assert headline("split", facts) == f"global_time: 1,200 graph, 18 test; {said}"


@pytest.mark.parametrize(
    ("encoding", "errors", "shown"),
    [
        ("ascii", "strict", rb"Am\xe9lie, \u5343\u3068"),
        ("ascii", "surrogateescape", rb"Am\xe9lie, \u5343\u3068"),  # the C locale
        ("latin-1", "strict", rb"Am\xe9lie, \u5343\u3068".replace(rb"\xe9", b"\xe9")),
        ("ascii", "replace", b"Am?lie, ??"),
        ("utf-8", "strict", "Amélie, 千と".encode()),
    ],
)
def test_a_title_is_shown_in_any_locale_with_escapes_for_what_it_lacks(encoding, errors, shown, monkeypatch):
    written = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, stream in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding, errors=errors, write_through=True))
    assert main(["--version"]) == 0
    written["stdout"].truncate(0)
    say("Amélie, 千と")
    print("Amélie, 千と", file=sys.stderr)
    assert written["stdout"].getvalue().strip(b"\0\n") == shown
    assert written["stderr"].getvalue().strip() == shown


@pytest.mark.parametrize("command", [["show"], ["run"], ["ingest"], ["doctor"], ["recommend", "--user", "1"]])
def test_a_name_that_the_locale_cannot_read_ends_in_one_line(command, tmp_path, capsys):
    # Python's way to keep the bytes of an argument that the locale's encoding lacks: Polars takes no such path
    assert main([*command, "--artifacts", f"{tmp_path}/\udcc3\udca9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tripletune: '{tmp_path}/é' cannot be read in this locale")
    assert "export PYTHONUTF8=1" in line
    assert main([*command, "--artifacts", f"{tmp_path}/\udcff"]) == 2  # no UTF-8 in any locale
    assert "xff' cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["show"], ["audit"], ["prompt", "--user", "1"]])
def test_outputs_of_single_stages_are_not_a_run_and_the_message_says_how_to_make_one(command, tmp_path, capsys):
    assert main([*command, "--artifacts", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"tripletune: no run in {tmp_path} yet (outputs of single stages are not a run); make one with: "
        f"tripletune run --artifacts {tmp_path}\n"
    )


def test_a_run_that_has_not_come_to_the_stage_is_named(tmp_path, capsys):
    write_record(tmp_path, "r1", {"generate": "f"})
    assert main(["audit", "--artifacts", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert f"no run with a finished 'generate' in {tmp_path}; runs there: r1; or make one with" in message


def write_record(root: Path, name: str, fingerprints: dict[str, str]) -> RunRecord:
    config = RunConfig(dataset="toy").model_dump(mode="json")
    record = RunRecord(
        name=name, dataset="toy", status="failed", started=runs.utc_now(), config=config, fingerprints=fingerprints
    )
    runs.write_run(root, record)
    return record


def test_show_prints_counts_by_table_a_line_each(tmp_path):
    record = write_record(tmp_path, "r1", {"ingest": "f"})
    tables = {name: {"rows_in": 9742, "rows_kept": 9740, "rows_rejected": 2} for name in ("movies", "links")}
    record.paths(tmp_path).build("ingest", lambda work: {"viewers": 1610, "tables": tables, "asked": {"a": 1, "b": 2}})
    console = Console(width=160, record=True)
    with console.capture() as printed:
        console.print(show_run(record, tmp_path))
    cells = [line.split("│")[-2].rstrip() for line in printed.get().splitlines() if line.count("│") > 1]
    expected = ["viewers 1,610", "tables", "  movies 9,740 kept, 2 rejected", "  links 9,740 kept, 2 rejected"]
    assert cells == [f" {line}" for line in [*expected, "asked a 1, b 2"]]


@pytest.mark.parametrize("command", ["ingest", "run"])
@pytest.mark.parametrize("place", ["file", "/proc/nope"])
def test_an_artifact_folder_that_cannot_be_written_ends_in_one_line(command, place, release, tmp_path, capsys):
    (tmp_path / "file").touch()
    root = tmp_path / place
    assert in_store(root, command, "--movielens", str(release)) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"tripletune: cannot write {root}")
    assert message.endswith("; name another folder with --artifacts\n")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("place", ["file/made", "/proc/made"])
def test_a_synthetic_release_that_cannot_be_written_ends_in_one_line(place, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["synth", "--size", "small", "--out", str(tmp_path / place)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"tripletune: cannot write {tmp_path / place} (")
    assert message.endswith("; name another folder with --out\n")


def test_made_up_data_has_a_preset_and_with_it_a_dataset_of_its_own():
    presets = {path: load_config(path) for path in (CHECKOUT / "configs").glob("*.toml")}
    made_up = presets.pop(CHECKOUT / SYNTHETIC)
    assert made_up.dataset not in {config.dataset for config in presets.values()}


def test_a_preset_with_a_real_releases_name_reads_that_release():
    for name in ("ml-latest-small", "ml-1m", "ml-32m"):
        config = load_config(CHECKOUT / "configs" / f"{name}.toml")
        assert Path(config.source.movielens).name == f"{config.dataset}.zip"


@pytest.mark.parametrize(
    ("purpose", "advice"),
    [
        ("test", "users with too few likes have none; try a user who has one, such as 22, 23, 24"),
        (
            "train",
            "nor have unseen ones and those whose answers retrieval missed; try --purpose test, or a user who has one, "
            "such as 22, 23, 24",
        ),
    ],
)
def test_advice_for_a_viewer_without_prompt_is_not_what_was_just_tried(purpose, advice, tmp_path):
    written = write_run(tmp_path / "written")
    paths = RunPaths(root=tmp_path / "a", dataset="toy", fingerprints={"generate": "f"})
    paths.build("generate", lambda work: {"copied": str(shutil.copytree(written.generate, work, dirs_exist_ok=True))})
    with pytest.raises(InputError) as caught:
        explain_prompt(paths, RunConfig(dataset="toy"), 999, purpose)
    assert str(caught.value).startswith(f"--user 999: no {purpose} example; ")
    assert str(caught.value).endswith(advice)


@pytest.mark.parametrize(("option", "shown"), [("-q", "W"), ("-v", "DIW"), ("", "IW")])
def test_v_and_q_choose_what_of_our_log_is_shown(option, shown, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIPLETUNE_VERBOSE", "0")  # and put back what -v sets
    assert main([*filter(None, [option]), "runs", "--artifacts", str(tmp_path)]) == 0
    log = logging.getLogger("tripletune.of_this_test")
    for level, text in ((logging.DEBUG, "D"), (logging.INFO, "I"), (logging.WARNING, "W")):
        log.log(level, text)
    assert capsys.readouterr().err.split() == list(shown)


def test_a_run_of_another_version_is_read_or_refused_in_one_line_with_run_and_setting(tmp_path, capsys):
    (tmp_path / "runs").mkdir()

    def started(**sections: dict[str, object]) -> RunRecord:
        config = {**RunConfig(dataset="d").model_dump(mode="json"), **sections}
        record = RunRecord(name="old", dataset="d", status="completed", started="2026", config=config, fingerprints={})
        runs.write_run(tmp_path, record)
        return record

    decided = started(promote={"margin": 0.01, "min_users": 7}, quality={"gone": 1}).settings()
    assert decided == RunConfig.model_validate({"dataset": "d", "promote": {"min_users": 7}})
    started(finetune={"gradient_accumulation_steps": 4})
    assert main(["rollback", "--why", "x", "--run", "old", "--artifacts", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run old has settings of another version of tripletune" in line
    assert "unknown key 'gradient_accumulation_steps' in [finetune]; its place took global_batch" in line
    started(promote={"min_users": "many"})
    with pytest.raises(ConfigError, match=r"run old .*promote.min_users = 'many'"):
        runs.read_run(tmp_path, "old").settings()
