"""The registered champion answers prompts as the rank stage does, wherever MLflow loads it, and refuses others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mlflow import MlflowClient

from tests.adapters import write_adapter
from tests.flows.conftest import MicroRun
from tripletune.contract import Residual, read_contract
from tripletune.errors import ContractError, InputError, UserError
from tripletune.prompts.engine import prompt_contract
from tripletune.rank.predict import rank_examples
from tripletune.serve.answers import ServedModel
from tripletune.serve.layout import PROMPTS, VersionFiles, write_prompts
from tripletune.serve.prompting import Prompter, queries_of_today, rows_of
from tripletune.store.paths import MANIFEST, RunPaths
from tripletune.store.shards import split_files
from tripletune.versions import download_version, find_version

URI = "models:/tripletune-micro@champion"
ANSWER = """
import json, sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
answers = model.predict(pd.DataFrame(json.load(open(sys.argv[2]))))
import tripletune
json.dump({"code": tripletune.__file__, "answers": answers.to_dict("records")}, open(sys.argv[3], "w"))
"""
COLUMNS = ["prompt", "candidates", "candidate_titles", "retrieved", "template_sha256"]


def examples(micro: MicroRun, purpose: str = "test") -> pl.DataFrame:
    return pl.read_parquet(sorted((micro.paths.folder("generate") / purpose).glob("*.parquet")))


def ranked(micro: MicroRun, num: int = 20) -> pl.DataFrame:
    """Rows of the shards that the rank stage answered with the tuned model, with these answers as ``expected``."""
    predictions = pl.read_parquet(micro.paths.folder("rank") / "predictions.parquet")
    tuned = predictions.filter(purpose="test", system="tuned", constrained=True)
    expected = tuned.select("user_id", "cutoff", expected="answers")
    found = examples(micro).join(expected, on=["user_id", "cutoff"]).sort("user_id").head(num)
    assert len(found) == num
    return found


def answer_elsewhere(python: str, micro: MicroRun, rows: pl.DataFrame, folder: Path) -> dict[str, Any]:
    """What the champion answers in a process that has no checkout: not in its path, not in its folder."""
    given, out = folder / "rows.json", folder / "out.json"
    given.write_text(json.dumps(rows.select(COLUMNS).to_dicts()))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{micro.root / 'mlflow.db'}"
    done = subprocess.run(
        [python, "-c", ANSWER, URI, str(given), str(out)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_the_champion_answers_like_rank_in_a_process_without_a_checkout(micro: MicroRun, tmp_path: Path) -> None:
    rows = ranked(micro)
    found = answer_elsewhere(sys.executable, micro, rows, tmp_path)
    assert f"{micro.root}/mlflow/models/m-" in found["code"], "the code that answered is the version's own"
    assert [row["answers"] for row in found["answers"]] == rows["expected"].to_list()
    titles = [dict(zip(row["candidates"], row["candidate_titles"], strict=True)) for row in rows.to_dicts()]
    named = [[title[film] for film in row["answers"]] for title, row in zip(titles, found["answers"], strict=True)]
    assert [row["names"] for row in found["answers"]] == named
    assert {row["system"] for row in found["answers"]} == {"tuned"}


@pytest.mark.slow
@pytest.mark.timeout(3600)  # installing takes minutes, on a busy machine many
def test_the_champion_answers_like_rank_in_an_environment_of_its_own_requirements(
    micro: MicroRun, tmp_path: Path
) -> None:
    version = MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}").get_model_version_by_alias(*named())
    folder = Path(version.source.removeprefix("file://"))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    python = tmp_path / "fresh" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-r", folder / "requirements.txt"]
    subprocess.run(install, check=True, capture_output=True)
    rows = ranked(micro)
    found = answer_elsewhere(str(python), micro, rows, tmp_path)
    assert [row["answers"] for row in found["answers"]] == rows["expected"].to_list()


def named() -> tuple[str, str]:
    return "tripletune-micro", "champion"


def test_the_version_says_what_it_is_and_holds_no_pickle(micro: MicroRun) -> None:
    client = MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}")
    version = client.get_model_version_by_alias(*named())
    assert micro.record.name in version.description
    assert micro.record.fingerprints["finetune"] in version.description
    assert version.tags["run"] == micro.record.name
    assert client.get_run(version.run_id).data.tags["mlflow.parentRunId"] == version.tags["parent_run"]
    (model,) = client.search_logged_models([micro.record.mlflow_experiment_id], "name = 'tripletune-micro'")
    measured = {metric.key: metric.value for metric in model.metrics}
    assert measured["valid_ndcg_at_5"] == pytest.approx(float(version.tags["valid_ndcg_at_5"]), abs=1e-4)
    folder = Path(model.artifact_location.removeprefix("file://"))
    pinned = (folder / "requirements.txt").read_text().splitlines()
    assert all(line.count("==") == 1 and "+" not in line for line in pinned)
    assert {"torch", "transformers", "peft", "mlflow"} <= {line.split("==")[0] for line in pinned}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".bin", ".pt", ".pth", ".pickle", ".pyc")]
    assert (folder / "input_example.json").is_file()
    says = json.loads((folder / "artifacts" / PROMPTS / "settings.json").read_text())
    assert says == micro.record.settings().model_dump(mode="json")


@pytest.fixture(scope="module")
def fetched(micro: MicroRun, tmp_path_factory: pytest.TempPathFactory) -> VersionFiles:
    from tripletune.tracking import open_registry

    tracker = open_registry(micro.record.settings().tracking, micro.root)
    version = find_version(tracker, "tripletune-micro")
    assert version is not None
    return download_version(tracker, version, tmp_path_factory.mktemp("version") / "files")


def load(files: VersionFiles) -> ServedModel:
    assert files.prompts is not None
    return ServedModel.load(files.adapter, files.prompts, None, batch_size=4)


@pytest.fixture(scope="module")
def served(fetched: VersionFiles) -> ServedModel:
    return load(fetched)


@pytest.mark.parametrize("purpose", ["train", "valid", "test"])
def test_every_prompt_of_the_run_passes_the_checks(micro: MicroRun, served: ServedModel, purpose: str) -> None:
    rows = examples(micro, purpose).to_dicts()
    assert rows
    for number, row in enumerate(rows):
        served._checked(number, row)


def change(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**row, **changes}


def with_user(row: dict[str, Any], edit: Callable[[str], str]) -> dict[str, Any]:
    system, user = row["prompt"]
    return {**row, "template_sha256": None, "prompt": [system, {**user, "content": edit(user["content"])}]}


def says(row: dict[str, Any], text: str) -> dict[str, Any]:
    return {**row, "template_sha256": None, "prompt": [{"role": "system", "content": text}, row["prompt"][1]]}


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda row: change(row, template_sha256="0" * 64), "row 1: template_sha256 is 000000000000, and the adapter"),
        (lambda row: says(row, "You rank films."), "row 1: the system message is not that of the template"),
        (lambda row: with_user(row, lambda text: text[: len(text) // 2]), "row 1: the prompt lacks '"),
        (lambda row: with_user(row, lambda text: text.replace("viewer", "user")), "row 1: the prompt lacks '"),
        (lambda row: change(row, prompt="Which film?"), "row 1: prompt must be a list of messages"),
        (lambda row: change(row, prompt=row["prompt"][1:]), "row 1: prompt must have two messages"),
        (lambda row: change(row, candidates=row["candidates"] * 2), "row 1: candidates are 40, 20 of them distinct"),
        (lambda row: change(row, candidates=[]), "row 1: candidates are 0"),
        (lambda row: change(row, retrieved=row["retrieved"][1:]), "row 1: retrieved must list the films of candidates"),
        (lambda row: change(row, candidate_titles=None), "row 1: the adapter answers with titles"),
        (lambda row: change(row, candidates=None), "row 1: candidates must be a list of film ids"),
    ],
)
def test_a_prompt_of_another_contract_is_refused_with_the_reason(
    micro: MicroRun, served: ServedModel, edit: Callable[[dict[str, Any]], dict[str, Any]], reason: str
) -> None:
    good, row = examples(micro).head(2).to_dicts()
    with pytest.raises((ContractError, InputError)) as refused:
        served.answer([good, edit(row)])
    assert str(refused.value).startswith(reason)
    assert len(str(refused.value).splitlines()) == 1


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "contract.json", "base/tokenizer.json"])
@pytest.mark.parametrize("fault", [damage, lambda file: file.unlink()])
def test_a_damaged_file_of_a_version_is_refused_in_one_line(
    fetched: VersionFiles, tmp_path: Path, name: str, fault: Callable[[Path], None]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(fetched.adapter, adapter)
    fault(adapter / name)
    with pytest.raises(InputError, match=rf"{name} is damaged: .*; download the version again") as refused:
        load(VersionFiles(adapter, fetched.prompts))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("fault", ["manifest", "template"])
def test_a_version_without_manifest_or_with_another_template_is_refused(
    fetched: VersionFiles, tmp_path: Path, fault: str
) -> None:
    adapter, prompts = tmp_path / "adapter", tmp_path / "prompts"
    shutil.copytree(fetched.adapter, adapter)
    assert fetched.prompts is not None
    shutil.copytree(fetched.prompts, prompts)
    if fault == "manifest":
        (adapter / MANIFEST).unlink()
    else:
        (file,) = prompts.glob("*.txt")
        file.write_text(file.read_text().replace("You recommend", "You suggest"))
    reason = "manifest.json is missing" if fault == "manifest" else "and the adapter was trained with"
    with pytest.raises(UserError, match=reason):
        load(VersionFiles(adapter, prompts))


@pytest.fixture(scope="module")
def letters(micro: MicroRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, pl.DataFrame]:
    """Adapter and prompts folder of a version that orders letters with the retriever's scores, and today's prompts."""
    config = micro.record.settings()
    config = config.model_copy(update={"prompt": config.prompt.model_copy(update={"template": "compact"})})
    prompter = Prompter.load(micro.paths, config, None)
    rows = rows_of(list(split_files(micro.paths.folder("split")).values()))
    shown = prompter.prompts(rows, queries_of_today(rows)).head(24)
    folder = tmp_path_factory.mktemp("letters")
    (folder / "shards" / "train").mkdir(parents=True)
    examples(micro, "train").write_parquet(folder / "shards" / "train" / "shard-000.parquet")
    residual = Residual(prior=tuple(-0.4 * place for place in range(20)), weight=0.7)
    paths = RunPaths(root=folder, dataset="x", fingerprints={"finetune": "f" * 32})

    def make(work: Path) -> dict[str, Any]:
        write_adapter(work, folder / "shards", prompt_contract(config.prompt, config.retrieve), residual=residual)
        return {}

    adapter = paths.build("finetune", make)
    write_prompts(folder / PROMPTS, config)
    return adapter, folder / PROMPTS, shown


@pytest.mark.parametrize("with_retriever", [True, False])
def test_letters_and_scores_are_those_of_rank_with_and_without_the_retriever(
    letters: tuple[Path, Path, pl.DataFrame], with_retriever: bool
) -> None:
    adapter, prompts, shown = letters
    given = shown if with_retriever else shown.drop("retrieved")
    answers = ServedModel.load(adapter, prompts, None, batch_size=7).answer(given.to_dicts())
    if with_retriever:
        expected = rank_examples(shown, adapter, tuned=True, constrained=True, batch_size=5)
    else:
        from tripletune.rank.answerer import Answerer

        expected = Answerer.load(adapter).answer(shown, constrained=True, batch_size=5)
    assert read_contract(adapter).residual is not None
    system = "tuned+retriever" if with_retriever else "tuned"
    for row, answer, theirs in zip(shown.to_dicts(), answers, expected.to_dicts(), strict=True):
        assert answer["answers"] == theirs["answers"]
        assert answer["scores"] == pytest.approx(theirs["scores"], abs=1e-5)
        letter = dict(zip(row["candidates"], row["candidate_letters"], strict=True))
        assert answer["names"] == [letter[film] for film in answer["answers"]]
        assert answer["system"] == system


def test_rows_with_and_without_the_retriever_keep_their_places(letters: tuple[Path, Path, pl.DataFrame]) -> None:
    adapter, prompts, shown = letters
    model = ServedModel.load(adapter, prompts, None, batch_size=7)
    rows = shown.head(6).to_dicts()
    mixed = [{**row, "retrieved": row["retrieved"] if number % 2 else None} for number, row in enumerate(rows)]
    both, alone = model.answer(rows), model.answer([{**row, "retrieved": None} for row in rows])
    found = model.answer(mixed)
    assert [one["system"] for one in found] == ["tuned", "tuned+retriever"] * 3
    for number, answer in enumerate(found):
        assert answer["answers"] == (both if number % 2 else alone)[number]["answers"]
    assert model.answer([]) == []
