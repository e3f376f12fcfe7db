"""The layout that imports, deployments and the wheel rely on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tripletune.config.presets import load_config

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "configs").glob("*.toml"))
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("folder", ["flows", "tasks"])
def test_folder_is_a_regular_package(folder):
    # Without __init__.py an installed package of the same name wins, wherever sys.path has it.
    assert (ROOT / folder / "__init__.py").is_file()


def test_no_flow_module_hides_an_installed_or_standard_module():
    taken = set(packages_distributions()) | set(sys.stdlib_module_names)
    ours = {path.stem for path in (ROOT / "flows").glob("*.py")} - {"__init__"}
    assert ours & taken == set()


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_every_deployment_names_a_flow_that_takes_its_parameters(deployment):
    module, _, function = deployment["entrypoint"].rpartition(".")
    source = ROOT / Path(*module.split(".")).with_suffix(".py")
    flows = {node.name: node for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)}
    arguments = {argument.arg for argument in flows[function].args.args}
    assert set(deployment.get("parameters", {})) <= arguments


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_every_deployment_names_a_preset_that_exists(deployment):
    parameters = deployment.get("parameters", {})
    assert "config" not in parameters or (ROOT / parameters["config"]) in PRESETS
    assert "set_file" not in parameters or (ROOT / parameters["set_file"]).is_file()


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_every_deployed_flow_takes_the_timeout_of_its_deployment(deployment):
    module, _, function = deployment["entrypoint"].rpartition(".")
    source = ast.parse((ROOT / Path(*module.split(".")).with_suffix(".py")).read_text())
    (flow,) = (node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == function)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in flow.decorator_list[0].keywords}
    assert given["timeout_seconds"] == "TIMEOUT_SECONDS"
    assert float(deployment["work_pool"]["job_variables"]["env"]["TRIPLETUNE_TIMEOUT_HOURS"]) > 0


def test_stages_for_gpus_are_on_a_pool_of_their_own_and_take_a_run_by_its_name():
    pools = {d["name"]: d["work_pool"]["name"] for d in DEPLOYMENTS}
    assert pools == {
        **dict.fromkeys(("nightly", "smoke", "ablate", "backfill"), "tripletune"),
        **dict.fromkeys(("generate-shards", "nightly-pools"), "cpu"),
        **dict.fromkeys(("finetune-llama", "rank-models"), "gpu"),
    }
    for name in ("finetune_llama", "rank_models"):
        (flow,) = (
            node
            for node in ast.parse((ROOT / "flows" / f"{name}.py").read_text()).body
            if isinstance(node, ast.FunctionDef)
        )
        assert "run" in [argument.arg for argument in flow.args.args]


def test_the_nightly_schedule_has_a_timezone_and_stays_clear_of_daylight_saving():
    nightly = next(d for d in DEPLOYMENTS if d["name"] == "nightly")
    (schedule,) = nightly["schedules"]
    hour = int(schedule["cron"].split()[1])
    assert schedule["timezone"]
    assert hour not in (1, 2, 3)


@pytest.mark.parametrize("name", ["nightly", "nightly-pools", "ablate"])
def test_a_deployment_whose_runs_would_train_the_same_runs_one_at_a_time(name):
    (limit,) = (d["concurrency_limit"] for d in DEPLOYMENTS if d["name"] == name)
    assert limit == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_every_shipped_preset_parses_and_names_files_that_exist(preset):
    config = load_config(preset)
    assert config.dataset == preset.stem
    assert (ROOT / config.finetune.accelerate_config).is_file()


def test_the_wheel_holds_tripletune_alone_with_its_templates(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tripletune"}
    found = [path for path in (ROOT / "src").rglob("*templates/**/*") if path.is_file()]
    shipped = {path.relative_to(ROOT / "src").as_posix() for path in found}
    assert shipped
    assert shipped <= set(names)


def test_the_readme_opens_with_the_two_commands():
    block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block is not None
    commands = [line for line in block[1].splitlines() if line and not line.startswith("#")]
    assert commands == ["make run", "make test"]


def test_every_dependency_has_a_constraint():
    pinned = {canonicalize_name(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    assert {canonicalize_name(Requirement(line).name) for line in wanted} - {"tripletune"} <= pinned


PATTERN_READERS = ("pl.read_parquet", "pl.scan_parquet", "pl.scan_lines", "pl.scan_csv")
"""Of polars; ``read_csv`` and ``read_lines`` are given open files and bytes."""
MLFLOW = ("tracking.py", "tracked_results.py", "versions.py", "serve/package.py", "serve/champion_model.py")
"""Modules that import MLflow: runs, the registry, and the model that it serves."""


def test_only_tracking_registry_and_served_model_import_mlflow_and_only_flows_and_tasks_import_prefect():
    for path in (ROOT / "src").rglob("*.py"):
        imported = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert "prefect" not in imported, path
        assert "mlflow" not in imported or path.relative_to(ROOT / "src" / "tripletune").as_posix() in MLFLOW, path


def test_files_are_read_by_their_paths_as_they_are():
    """polars takes a path for a pattern; ``store/read.py`` and ``glob=False`` say that it is none."""
    for folder in ("src", "flows", "tasks"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            readers = [call for call in calls if ast.unparse(call.func) in PATTERN_READERS]
            assert all("glob" in {keyword.arg for keyword in call.keywords} for call in readers), path


def test_every_stage_has_a_command_and_a_task_and_reads_settings_that_exist(tmp_path):
    from tasks.stages import TASKS
    from tripletune.cli.main import app
    from tripletune.config import RunConfig
    from tripletune.contract import AdapterContract, write_contract
    from tripletune.pipeline.registry import STAGES
    from tripletune.pipeline.resolve import resolve
    from tripletune.prompts.engine import prompt_contract

    names = {stage.name for stage in STAGES}
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names <= commands
    assert names == TASKS.keys()
    # computing every fingerprint proves that each source and setting exists
    finetune = {"model": "smollm2-135m", "objective": "listwise", "teacher": str(tmp_path)}
    further = {"retrieve": {"fused_sasrec": 1.0}, "prompt": {"template": "letters"}, "finetune": finetune}
    further["probe"] = {"users": 1}
    further["retrieve"]["triple_choice"] = "learned"
    every = RunConfig.model_validate({"dataset": "x", **further})
    prompts = prompt_contract(every.prompt, every.retrieve)
    write_contract(
        tmp_path, AdapterContract(prompt=prompts, tokenizer_sha256="", base_model="big", base_revision="abc")
    )
    forms = {"ensemble": {"forms": ["pairwise"]}, "prompt": {"template": "recranker"}}  # no teacher goes with them
    asked = RunConfig.model_validate({"dataset": "x", **forms})
    found = [set(resolve(config, ROOT / "artifacts").fingerprints) for config in (every, asked)]
    assert set.union(*found) == names - {"quality", "promote"}


def test_no_code_of_a_model_repository_is_ever_run():
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
