"""Lookup of a retriever's code by name: its declaration, settings and training.

``models/<name>/serve.py`` declares ``RETRIEVER``. For a further retriever (one that is not shipped), ``models/<name>/
fit.py`` defines ``Settings``, a ``config.Section``, and

    train(split: Path, out: Path, settings: Settings, seed: int) -> Facts

Modules are imported only when a run needs them, because the shipped ones import torch.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tripletune.config import RETRIEVERS, SHIPPED_RETRIEVERS, RunConfig, Section
from tripletune.config.presets import explain
from tripletune.errors import ConfigError

if TYPE_CHECKING:
    from tripletune.models.serving.retriever import RetrieverSpec
    from tripletune.store.paths import Facts

FURTHER_RETRIEVERS = tuple(name for name in RETRIEVERS if name not in SHIPPED_RETRIEVERS)


def load_retriever(name: str) -> RetrieverSpec:
    """The declaration in ``models/<name>/serve.py``.

    Raises:
        TypeError: the module declares no retriever of this name.
    """
    from tripletune.models.serving.retriever import RetrieverSpec

    spec = getattr(importlib.import_module(f"tripletune.models.{name}.serve"), "RETRIEVER", None)
    if not isinstance(spec, RetrieverSpec) or spec.name != name:
        raise TypeError(f"models/{name}/serve.py must declare RETRIEVER, a RetrieverSpec named {name!r}")
    return spec


def check_settings(config: RunConfig) -> None:
    """Refuse tables ``[models.<name>]`` that name no further retriever or fail its ``Settings``.

    Raises:
        ConfigError: the first mistake, in one line.
    """
    for name in config.models:
        if name in SHIPPED_RETRIEVERS:
            section = "retrieve" if name == "ease" else name
            raise ConfigError(f"[models.{name}]: the settings of {name} are in [{section}]; move them there")
        if name not in FURTHER_RETRIEVERS:
            nearest = difflib.get_close_matches(name, FURTHER_RETRIEVERS, n=3, cutoff=0.0)
            there = f"did you mean {', '.join(nearest)}?" if nearest else "config/models.py registers none"
            raise ConfigError(f"[models.{name}]: {name!r} is no further retriever; {there}")
    for name in FURTHER_RETRIEVERS:
        if name in config.models or name in config.trained_stages:
            model_settings(name, config)


def model_settings(name: str, config: RunConfig) -> Section:
    """The validated settings of a further retriever; a key missing from ``[models.<name>]`` gets its default.

    Raises:
        ConfigError: a key is unknown, missing, or out of range.
    """
    settings: type[Section] = importlib.import_module(f"tripletune.models.{name}.fit").Settings
    try:
        return settings.model_validate(config.models.get(name, {}))
    except ValidationError as error:
        raise ConfigError(explain(error, settings, within=("models", name))) from None


def train_further(name: str, split: Path, out: Path, config: RunConfig) -> Facts:
    """Train a further retriever: the stage that bears its name.

    Args:
        name: one of ``FURTHER_RETRIEVERS``.
        split: output of the split stage.
        out: work folder.
        config: the run's.

    Raises:
        UserError: as documented by its ``train``.
    """
    fit = importlib.import_module(f"tripletune.models.{name}.fit")
    facts: Facts = fit.train(split, out, model_settings(name, config), config.seed)
    return facts
