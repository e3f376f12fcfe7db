"""Files of a registered version, below MLflow's own: the adapter, what its prompts are made with, and film vectors."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tripletune.config import RunConfig
from tripletune.config.base import is_path
from tripletune.config.presets import explain
from tripletune.contract import CONTRACT, read_contract
from tripletune.errors import ContractError, InputError, MissingArtifactError
from tripletune.prompts.template import FOLDER, load_template
from tripletune.store.files import write_json
from tripletune.store.paths import MANIFEST, damaged_files

ADAPTER, PROMPTS, FILMS = "finetuned", "prompts", "films"
"""MLflow's artifacts of a version: a finetuned folder, the settings and the template of its prompts, and the files of
the film vectors that its behaviour tokens are made of, where it has some."""
SETTINGS = "settings.json"
_OF_FILM_VECTORS = (
    *("movies.parquet", "entities.parquet", "attention.parquet"),
    *("model.json", "pooling.json", "fit_b.safetensors"),
)
"""What the models behind behaviour tokens are read from; each has some of them."""


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """Folders of a version. Versions that older packages registered have the adapter alone."""

    adapter: Path
    prompts: Path | None = None

    @classmethod
    def find(cls, folder: Path) -> VersionFiles:
        """The folders of a downloaded version."""
        found = sorted((folder / "artifacts").glob(f"*/{CONTRACT}"))  # MLflow keeps the name of the folder it was given
        prompts = folder / "artifacts" / PROMPTS
        return cls(found[0].parent if found else folder, prompts if prompts.is_dir() else None)

    def settings(self) -> RunConfig:
        """Settings of the run that trained it, whose template is the copy that lies here.

        Raises:
            MissingArtifactError: there are none, as in versions of older packages. InputError: they cannot be read.
        """
        path = self.prompts and self.prompts / SETTINGS
        if not path or not path.is_file():
            raise MissingArtifactError("it was registered without the settings that its prompts are made with")
        try:
            settings = RunConfig.model_validate(json.loads(path.read_bytes()))
        except ValueError as error:
            reason = explain(error, RunConfig) if isinstance(error, ValidationError) else str(error)
            raise InputError(f"{path} is none of this package's settings ({reason})") from None
        prompt = settings.prompt.model_copy(update={"template": str(template_file(path.parent))})
        return settings.model_copy(update={"prompt": prompt})


def template_file(prompts: Path) -> Path:
    """The copy of the template in the folder ``PROMPTS``.

    Raises:
        MissingArtifactError: there is none.
    """
    found = sorted(prompts.glob("*.txt"))
    if len(found) != 1:
        raise MissingArtifactError(f"{prompts} holds {len(found)} templates, and a version has one; register it again")
    return found[0]


def write_prompts(folder: Path, config: RunConfig) -> None:
    """Write the settings of a run and its template: what makes an adapter's prompts again, whatever changes later."""
    folder.mkdir(parents=True)
    name = config.prompt.template
    source = Path(name) if is_path(name) else FOLDER / f"{name}.txt"
    load_template(name)  # refuses one that is gone or not valid
    shutil.copyfile(source, folder / source.name)
    write_json(folder / SETTINGS, config.model_dump(mode="json"))


def copy_film_vectors(stage: Path, folder: Path) -> None:
    """Copy what a trained model's film vectors are read from."""
    folder.mkdir(parents=True)
    for name in _OF_FILM_VECTORS:
        if (stage / name).is_file():
            shutil.copyfile(stage / name, folder / name)


def require_whole(adapter: Path) -> None:
    """Refuse a finetuned folder whose files have other bytes than its manifest states.

    Raises:
        MissingArtifactError: it has no manifest. InputError: a file is gone or damaged. ContractError: no contract.
    """
    try:
        damaged = damaged_files(adapter)
    except (OSError, ValueError, KeyError, TypeError):
        raise MissingArtifactError(
            f"{adapter / MANIFEST} is missing or damaged, so nothing says whether the model is whole; download the "
            "version again, or serve another one: tripletune rollback"
        ) from None
    if damaged:
        raise InputError(
            f"{adapter / damaged[0]} is damaged: its bytes do not have the SHA-256 of {MANIFEST}; download the version "
            "again, or serve another one: tripletune rollback"
        )
    read_contract(adapter)


def require_same_template(prompts: Path, adapter: Path) -> None:
    """Refuse a template that this package reads in another way than the one that wrote the adapter's prompts.

    Raises:
        ContractError: it does.
    """
    template, contract = load_template(str(template_file(prompts))), read_contract(adapter)
    then = str(contract.prompt["template_sha256"])
    if template.sha256 != then:
        raise ContractError(
            f"{template_file(prompts)} gives the template {template.sha256[:12]}, and the adapter was trained with "
            f"{then[:12]}; load the version with the package that registered it"
        )
