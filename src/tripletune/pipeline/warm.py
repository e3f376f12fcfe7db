"""Whether a run's training starts from the champion's adapter, decided when fingerprints are computed.

The champion is an input of finetune: its fingerprint stands among finetune's ingredients, so that the same champion and
the same examples give the same output. The champion's own inputs lead back to its own output, so that a run after its
promotion reuses it instead of starting a training of nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tripletune.config import RunConfig
from tripletune.contract import TINY, AdapterContract, read_contract, require_same
from tripletune.errors import ConfigError, ContractError, MissingArtifactError
from tripletune.finetune.warm import Champion
from tripletune.schemas.finetune import TRAINED_EXAMPLES_NAME
from tripletune.store.champion import Standing, model_name, standing_champion
from tripletune.store.fingerprint import Ingredients, fingerprint
from tripletune.store.paths import RunPaths, read_manifest

STAGE = "finetune"
ADAPTER, SINCE = "champion/adapter", "champion/warm_runs"
"""Inputs of finetune: the champion's fingerprint, and ``Champion.since``."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a training starts from."""

    champion: Champion | None
    """None: the base model."""
    reason: str
    """Why it is the base model although ``finetune.start`` is ``champion``; else empty."""


def from_champion(parts: Ingredients, config: RunConfig, root: Path) -> Ingredients:
    """Finetune's ingredients with the champion among them, or those of the champion's own output if this run's are the
    same.

    Raises:
        MissingArtifactError, ConfigError: as ``choose_start``.
    """
    if config.finetune.start == "base":
        return parts
    standing = standing_champion(root, config.dataset, model_name(config))
    if standing is None:
        return parts
    own: Ingredients = _manifest(standing, config, root)["ingredients"]
    others = {name: value for name, value in own["inputs"].items() if name not in (ADAPTER, SINCE)}
    if fingerprint(STAGE, {**own, "inputs": others}) == fingerprint(STAGE, parts):
        return own
    champion = choose_start(config, root).champion
    if champion is None:
        return parts
    given = {ADAPTER: champion.fingerprint, SINCE: str(champion.since)}
    return {**parts, "inputs": dict(sorted({**parts["inputs"], **given}.items()))}


def choose_start(config: RunConfig, root: Path) -> Start:
    """The champion, or the base model where there is none yet or a fresh adapter is due.

    Raises:
        MissingArtifactError: the champion's output is gone, or does not say what it was trained on.
        ConfigError: the settings do not fit the champion's adapter.
    """
    if config.finetune.start == "base":
        return Start(None, "")
    standing = standing_champion(root, config.dataset, model_name(config))
    if standing is None:
        return Start(None, f"there is no champion of {model_name(config)} yet")
    manifest = _manifest(standing, config, root)
    folder = _folder(standing, config, root)
    _require_fitting(config, folder, manifest, standing)
    before = 0 if standing.beat_fresh else int(manifest["facts"]["warm_runs"])
    if before + 1 >= config.finetune.fresh_every:
        return Start(
            None,
            f"a fresh adapter is due after {before} warm trainings (finetune.fresh_every = "
            f"{config.finetune.fresh_every})",
        )
    return Start(Champion(folder, standing.fingerprint, standing.run, before + 1), "")


def resolved_start(paths: RunPaths, config: RunConfig) -> Start:
    """What the run's fingerprint of finetune says that it starts from."""
    inputs = paths.ingredients.get(STAGE, {}).get("inputs", {})
    if ADAPTER not in inputs:
        return Start(None, choose_start(config, paths.root).reason)
    standing = standing_champion(paths.root, paths.dataset, model_name(config))
    run = standing.run if standing and standing.fingerprint == inputs[ADAPTER] else ""
    folder = paths.root / paths.dataset / STAGE / inputs[ADAPTER]
    return Start(Champion(folder, inputs[ADAPTER], run, int(inputs[SINCE])), "")


def _folder(standing: Standing, config: RunConfig, root: Path) -> Path:
    return root / config.dataset / STAGE / standing.fingerprint


def _manifest(standing: Standing, config: RunConfig, root: Path) -> dict[str, Any]:
    folder = _folder(standing, config, root)
    manifest = read_manifest(folder)
    if manifest is None:
        raise MissingArtifactError(
            f"finetune.start = 'champion', but the champion's output is gone from {folder}; bring it back (its files "
            "are in the registry), or set finetune.start to 'base' for a run"
        )
    if TRAINED_EXAMPLES_NAME not in manifest["files"]:
        raise MissingArtifactError(
            f"finetune.start = 'champion', but the champion in {folder} is of an older version, which did not note its "
            "training examples; set finetune.start to 'base' until another adapter is promoted"
        )
    return manifest


def _require_fitting(config: RunConfig, folder: Path, manifest: dict[str, Any], standing: Standing) -> None:
    """Refuse settings under which the champion's weights mean something else, before anything trains."""
    contract = read_contract(folder)
    for name, then, now in _settings(config, folder, manifest, contract):
        if then != now:
            raise ConfigError(
                f"finetune.start = 'champion', but the champion {standing.fingerprint[:10]} was trained with {name} = "
                f"{then!r} and this run has {now!r}; set {name} back, or finetune.start to 'base'"
            )
    from tripletune.prompts.engine import prompt_contract

    try:
        require_same(prompt_contract(config.prompt, config.retrieve), contract)
    except ContractError as error:
        raise ConfigError(f"finetune.start = 'champion': {error}, with finetune.start = 'base'") from None


def _settings(
    config: RunConfig, folder: Path, manifest: dict[str, Any], contract: AdapterContract
) -> Iterator[tuple[str, Any, Any]]:
    """Name, the champion's value and this run's of each setting that must agree. A base model in a folder is compared
    by its bytes, when training starts."""
    ours = config.finetune
    if not ours.names_a_folder:
        yield "finetune.model", contract.base_model, ours.model
        if not ours.is_shipped and ours.model != TINY:
            yield "finetune.revision", contract.base_revision, ours.revision
    if ours.model == TINY:
        fields: dict[str, Any] = manifest["ingredients"]["fields"]
        tiny = (name for name in fields if name.startswith("finetune.tiny."))
        yield from ((name, fields[name], config.field(name)) for name in tiny)
    lora = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    yield "finetune.lora_r", lora["r"], ours.lora_r
    yield "finetune.lora_alpha", lora["lora_alpha"], ours.lora_alpha
    yield "finetune.quantization", contract.quantization, ours.quantization
    yield "finetune.objective", contract.objective, ours.objective
    yield (
        "finetune.behaviour_tokens",
        contract.behaviour.source if contract.behaviour else "none",
        ours.behaviour_tokens,
    )
