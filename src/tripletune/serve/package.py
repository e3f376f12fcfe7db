"""Write the files of a version: a model that ``mlflow.pyfunc.load_model`` loads without a checkout of this package.

MLflow calls the form "models from code": it runs ``champion_model.py``, and the package's own code lies next to it.
Weights are safetensors, nothing is pickled, and the requirements are the versions that are installed here.
"""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array, Object, Property

import tripletune
from tripletune.config import RunConfig
from tripletune.contract import AdapterContract, read_contract
from tripletune.serve import champion_model
from tripletune.serve.answers import OPTIONAL, REQUIRED
from tripletune.serve.layout import ADAPTER, FILMS, PROMPTS, copy_film_vectors, write_prompts

_REQUIREMENTS = (
    *("mlflow", "pandas", "numpy", "polars", "pyarrow", "pydantic"),
    *("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "jinja2"),
    *("filelock", "psutil", "rich", "scipy", "fsspec"),
)
"""Distributions that the code behind ``champion_model`` imports."""
_BATCH = 32
_CHAT = Array(Object([Property("role", DataType.string), Property("content", DataType.string)]))
_TYPES: dict[str, Any] = {
    "prompt": _CHAT,
    "candidates": Array(DataType.long),
    "candidate_titles": Array(DataType.string),
    "retrieved": Array(DataType.long),
    "template_sha256": DataType.string,
}
_OUTPUTS = (
    ColSpec(Array(DataType.long), "answers"),
    ColSpec(Array(DataType.string), "names"),
    ColSpec(Array(DataType.float), "scores"),
    ColSpec(DataType.string, "system"),
)


def requirements(contract: AdapterContract) -> list[str]:
    """What a fresh environment installs, pinned; a local label such as ``+cpu`` is no index's."""
    needed = (*_REQUIREMENTS, *(("bitsandbytes",) if contract.quantization != "none" else ()))
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in needed]


def signature(contract: AdapterContract) -> ModelSignature:
    """Columns that ``predict`` reads and returns."""
    films = contract.behaviour.columns if contract.behaviour else ()
    further = [name for name in films if name not in REQUIRED]
    inputs = [ColSpec(_TYPES[name], name) for name in REQUIRED]
    inputs += [ColSpec(Array(DataType.long), name) for name in further]
    inputs += [ColSpec(_TYPES[name], name, required=False) for name in OPTIONAL]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(list(_OUTPUTS)))


def save_version(to: Path, adapter: Path, config: RunConfig, example: pl.DataFrame, films: Path | None = None) -> None:
    """Write a version's files.

    Args:
        to: a new folder.
        adapter: a finetuned folder with its manifest.
        config: settings of the run that trained it.
        example: one row of the shards, the model's input example; its prompt is read by whoever reads the version.
        films: output of the stage that the film vectors of behaviour tokens come from.

    Raises:
        ConfigError: the template is missing or invalid. MissingArtifactError, ContractError: there is no contract.
    """
    contract = read_contract(adapter)
    shape = signature(contract)
    parts = to.with_name(f"{to.name}.parts")
    shutil.rmtree(parts, ignore_errors=True)
    try:
        write_prompts(parts / PROMPTS, config)
        artifacts = {ADAPTER: adapter, PROMPTS: parts / PROMPTS}
        if contract.behaviour and films:
            copy_film_vectors(films, parts / FILMS)
            artifacts[FILMS] = parts / FILMS
        mlflow.pyfunc.save_model(
            path=str(to),
            python_model=champion_model.__file__,
            code_paths=[str(Path(tripletune.__file__).parent)],
            # addresses, as mlflow would read a % or a ? of a bare path as one of an address
            artifacts={name: path.resolve().as_uri() for name, path in artifacts.items()},
            signature=shape,
            input_example=pd.DataFrame(example.select(shape.inputs.input_names()).to_dicts()),
            pip_requirements=requirements(contract),
            model_config={"batch_size": _BATCH},
        )
    finally:
        shutil.rmtree(parts, ignore_errors=True)
