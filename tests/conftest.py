"""Marks tests by their folder, and skips what can't run here."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

# before anything imports Prefect, MLflow or DGL
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).parents[1]
MARKS = {"unit": "unit", "numerics": "numerics", "packaging": "packaging", "flows": "flow"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")


@cache
def has_gpu() -> bool:
    import torch  # here: only where a test for a GPU is collected

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in MARKS:
            item.add_marker(MARKS[folder])
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
        # not "in item.keywords", which also holds the names of the folders that the checkout lies in
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; see benchmarks/gpu/queue.md"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """MovieLens latest-small and credits, where this checkout has them next to it."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "ml-latest-small" / "ratings.csv").is_file():
        pytest.skip("needs the real MovieLens data in ../shared/data, which is not part of the project")
    return folder
