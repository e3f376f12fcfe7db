"""A user's mistake ends in one line on stderr and exit code 2, in any stage."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.flows.conftest import call_tripletune

MOVIES = "movieId,title,genres\n1,Heat (1995),Crime\n2,Ronin (1998),Action\n"
RATINGS = "userId,movieId,rating,timestamp\n1,1,4.0,100\n1,2,5.0,101\n"


def release(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in {"ratings": RATINGS, "movies": MOVIES, **files}.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def climbing_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "evil.zip", "w") as archive:
        archive.writestr("ml/ratings.csv", RATINGS)
        archive.writestr("../../movies.csv", MOVIES)
    return folder / "evil.zip"


def truncated_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "cut.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml/ratings.csv", RATINGS * 50)
        archive.writestr("ml/movies.csv", MOVIES)
    whole = (folder / "cut.zip").read_bytes()
    (folder / "cut.zip").write_bytes(whole[: len(whole) // 2])
    return folder / "cut.zip"


CASES = {
    "missing": (lambda d: d / "nowhere.zip", "no such file or folder"),
    "wrong columns": (lambda d: release(d / "r", ratings=RATINGS.replace("movieId", "film")), "ratings.csv"),
    "empty": (lambda d: release(d / "r", ratings=""), "ratings.csv"),
    "header only": (lambda d: release(d / "r", ratings=RATINGS.splitlines()[0] + "\n"), "ratings.csv"),
    "truncated zip": (truncated_zip, "cut.zip"),
    "climbing zip": (climbing_zip, "movies.csv"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_release_ends_in_one_line_and_exit_code_2(case, tmp_path):
    make, names = CASES[case]
    arguments = ("ingest", "--movielens", str(make(tmp_path)), "--artifacts", str(tmp_path / "a"))
    done = call_tripletune(*arguments, home=tmp_path / "prefect")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("tripletune: ")
    assert len(done.stderr.splitlines()) == 1
    assert names in done.stderr
    assert not (tmp_path.parent / "movies.csv").exists()


def test_an_unknown_key_is_named_before_anything_starts(tmp_path):
    config = tmp_path / "bad.toml"
    config.write_text('dataset = "x"\n[split]\nhold_out = 1\n')
    done = call_tripletune("run", "--config", str(config), "--artifacts", str(tmp_path / "a"), home=tmp_path / "p")
    assert done.returncode == 2
    assert "unknown key 'hold_out' in [split]; the keys there are: dislike" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('[prompt]\ntemplate = "hint-first"', "hints-first"),
        ("[evaluate]\nretrieval_cutoffs = [50]", "evaluate.retrieval_cutoffs"),
        ("[rgat]\ndim = 10\nheads = 4", "must be a multiple of heads"),
        ('[finetune]\nmodel = "./llama"', "no such file or folder"),
        ('[finetune]\nmodel = "gpt2"', "revision must pin a commit of gpt2"),
        ('[source]\nimdb = "README.md"', "give the folder that holds it"),
        ('[tracking]\nuri = "postgresql://me:secret@host/db"', "MLFLOW_TRACKING_URI"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_stage(text, names, tmp_path):
    config = tmp_path / "bad.toml"
    config.write_text(f'dataset = "x"\n{text}\n')
    done = call_tripletune("run", "--config", str(config), "--artifacts", str(tmp_path / "a"), home=tmp_path / "p")
    assert done.returncode == 2
    assert names in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr
    assert not (tmp_path / "a").exists()


def test_a_stage_without_its_parent_names_the_command_that_makes_it(tmp_path):
    done = call_tripletune("split", "--artifacts", str(tmp_path), home=tmp_path / "p")
    assert done.returncode == 2
    assert "produce it with: tripletune ingest" in done.stderr


def test_a_mistake_found_inside_the_flow_is_told_in_one_line_without_a_traceback(tmp_path):
    folder = release(tmp_path / "r", ratings="")
    arguments = ("run", "--movielens", str(folder), "--artifacts", str(tmp_path / "a"))
    done = call_tripletune(*arguments, home=tmp_path / "prefect")
    assert done.returncode == 2
    # Prefect's own log is around it, the temporary server's last lines after it
    assert len([line for line in done.stderr.splitlines() if line.startswith("tripletune: ")]) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "url", "says"),
    [
        ("PREFECT_API_URL", "http://127.0.0.1:9/api", "no Prefect server answers at 127.0.0.1:9"),
        ("MLFLOW_TRACKING_URI", "http://anna:secret@127.0.0.1:9", "no MLflow server answers at 127.0.0.1:9"),
    ],
)
def test_a_dead_server_is_one_line_before_anything_runs(tmp_path, variable, url, says):
    done = call_tripletune("run", "--artifacts", str(tmp_path / "a"), home=tmp_path / "prefect", **{variable: url})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"tripletune: {says} (")
    assert len(done.stderr.splitlines()) == 1
    assert f"unset {variable}" in done.stderr or f"or {variable} to where it is" in done.stderr
    assert "secret" not in done.stderr
    assert not list((tmp_path / "a").glob("runs/*"))


def test_an_adapter_for_other_prompts_is_refused_by_field(micro, tmp_path):
    from tripletune.config.presets import load_config
    from tripletune.contract import read_contract, require_same
    from tripletune.errors import ContractError
    from tripletune.prompts.engine import prompt_contract

    config = load_config(micro.config)
    other = config.prompt.model_copy(update={"template": "published"})
    with pytest.raises(ContractError, match="template"):
        require_same(prompt_contract(other, config.retrieve), read_contract(micro.paths.folder("finetune")))
