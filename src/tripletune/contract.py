"""The adapter's contract: the prompt format, tokenizer and base model it was trained with, and its lineage.

``contract.json`` lies in the adapter's folder, so that ranking refuses other prompts, naming the field, instead of
answering nonsense. The specialists change with every run: their fingerprints stand in the contract as lineage, never
as a condition.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tripletune.chat import DATE
from tripletune.config import SHIPPED
from tripletune.errors import ContractError, InputError, MissingArtifactError
from tripletune.flatten import flatten
from tripletune.forms import FormTexts
from tripletune.store.files import write_json
from tripletune.store.fingerprint import sha256_file, sha256_json

CONTRACT = "contract.json"
TINY = "tiny"
"""Name of the base model that the finetune stage builds itself, in ``base/`` of the adapter's folder, where the shipped
one lies as well."""


class Residual(BaseModel):
    """What is added to a model's scores of the candidates, see ``tripletune.residual``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prior: tuple[float, ...]
    """Log-score of each place in the retriever's order."""
    weight: float
    """Weight of the model's centred logits."""


class Ensemble(BaseModel):
    """The forms that an adapter is asked in, and how their answers become one order; see ``tripletune.forms``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: dict[str, float]
    """Weight of each form's utility, of the list's under ``listwise``; each utility lies between 0 and 1."""
    texts: FormTexts
    """Of the template that the adapter was trained with."""

    @property
    def forms(self) -> tuple[str, ...]:
        """The short forms."""
        return tuple(name for name in self.weights if name != "listwise")


class BehaviourSpace(BaseModel):
    """The film vectors that an adapter's behaviour tokens are made of, see ``tripletune.behaviour``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    """Stage whose model they come from."""
    space: str
    """SHA-256 of those that the projector was trained on; others are turned into their space first."""
    columns: tuple[str, ...]
    """Columns that list the films of the prompt's lines, in the order of the lines."""


class AdapterContract(BaseModel):
    """Prompt format, tokenizer and base model of an adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: dict[str, Any]
    """Template, answer style, candidate, retriever and hint settings: must equal those of the prompts it answers."""
    tokenizer_sha256: str
    base_model: str
    """``tiny``, ``smollm2-135m``, a Hugging Face id, or a local folder."""
    base_revision: str
    """Commit on the hub, or the SHA-256 of a local folder's weights and config."""
    date_string: str = DATE
    """The day that the chat template writes, where it writes one."""
    dtype: str = "float32"
    """Number format of the base model's weights, in training and in ranking."""
    quantization: str = "none"
    """``finetune.quantization`` of the base model's weights, in training and in ranking."""
    objective: str = "sft"
    """``finetune.objective``: an answer is written line by line, or read from the labels' scores."""
    residual: Residual | None = None
    """What is served is the sum of the model's scores and the retriever's; None: the model's order alone."""
    behaviour: BehaviourSpace | None = None
    """None: prompts are text alone."""
    ensemble: Ensemble | None = None
    """None: an answer is read from the list's prompt alone."""
    lineage: dict[str, str] = {}
    """Fingerprints of the stages behind the training shards; not compared."""


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """Where a base model is loaded from, and the revision and tokenizer that identify it."""

    source: str
    """Local folder or Hugging Face id, for ``from_pretrained``."""
    hub_revision: str | None
    """Commit for ``from_pretrained``; None for a local folder."""
    revision: str
    tokenizer_sha256: str


def identify_base(model: str, hub_revision: str) -> BaseIdentity:
    """Pin a base model: find its files and hash weights, config and tokenizer.

    Args:
        model: a local folder, or a Hugging Face id.
        hub_revision: commit of a Hugging Face id; unused for a folder.

    Raises:
        InputError: the folder lacks a file, or the id and commit are neither cached nor reachable.
    """
    folder = Path(model)
    if not folder.is_dir():
        tokenizer = _hub_file(model, hub_revision, "tokenizer.json")
        config = _hub_file(model, hub_revision, "tokenizer_config.json")
        template = _hub_file(model, hub_revision, "chat_template.jinja", optional=True)
        return BaseIdentity(model, hub_revision, hub_revision, _tokenizer_sha256(tokenizer, config, template))
    weights = sorted(folder.glob("*.safetensors"))
    needed = [folder / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json")]
    missing = [path.name for path in needed if not path.is_file()] + ([] if weights else ["*.safetensors"])
    if missing:
        raise InputError(f"{folder}: not a model folder, {', '.join(missing)} is missing; give a folder in HF layout")
    revision = sha256_json({path.name: sha256_file(path) for path in [needed[0], *weights]})
    return BaseIdentity(
        str(folder), None, revision, _tokenizer_sha256(needed[1], needed[2], folder / "chat_template.jinja")
    )


def _hub_file(model: str, revision: str, name: str, *, optional: bool = False) -> Path | None:
    from transformers.utils import cached_file  # transformers takes seconds to import, and a folder needs none of it

    try:
        found = cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=not optional)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"finetune.model = {model!r} at revision {revision!r} cannot be read: {reason} "
            "(name a local folder, or fill the Hugging Face cache on a machine with network)"
        ) from None
    return Path(found) if found else None


def _tokenizer_sha256(tokenizer: Path | None, config: Path | None, template: Path | None) -> str:
    """Hash of the tokenizer's own file and of its chat template, wherever the release keeps the latter."""
    digest = hashlib.sha256(tokenizer.read_bytes() if tokenizer else b"")
    if template is not None and template.is_file():
        text = template.read_text(encoding="utf-8")
    else:
        text = json.loads(config.read_text(encoding="utf-8")).get("chat_template") or "" if config else ""
    digest.update(json.dumps(text).encode())
    return digest.hexdigest()


def write_contract(folder: Path, contract: AdapterContract) -> None:
    """Write ``contract.json`` into the folder of a finetune stage."""
    write_json(folder / CONTRACT, contract.model_dump(mode="json"))


def read_contract(folder: Path) -> AdapterContract:
    """Read ``contract.json`` of a finetuned folder.

    Raises:
        MissingArtifactError: there is none. ContractError: it cannot be read.
    """
    path = folder / CONTRACT
    try:
        return AdapterContract.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise MissingArtifactError(
            f"{path} is missing: {folder} holds no finished adapter; produce it with: tripletune finetune"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ContractError(f"{path}: {where}: {first['msg']}; run the finetune stage again") from None


def require_same(prompts: Mapping[str, Any], adapter: AdapterContract) -> None:
    """Refuse prompts that the adapter was not trained for.

    Args:
        prompts: the prompt contract of the shards at hand, plain data.
        adapter: what the adapter was trained with.

    Raises:
        ContractError: names up to three fields that differ, with both values.
    """
    theirs, ours = _as_json(adapter.prompt), _as_json(prompts)
    differing = [name for name in sorted(theirs | ours) if theirs.get(name) != ours.get(name)]
    if not differing:
        return
    shown = "; ".join(
        f"{name}: the adapter has {_show(theirs, name)}, the prompts have {_show(ours, name)}" for name in differing[:3]
    )
    more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
    raise ContractError(
        f"the adapter was trained on other prompts: {shown}{more}; "
        "generate the prompts with the adapter's settings, or run the finetune stage on these"
    )


def locate_base(finetuned: Path, contract: AdapterContract) -> BaseIdentity:
    """The base model an adapter stands on, checked against its contract.

    Raises:
        ContractError: weights, config or tokenizer are no longer those the adapter was trained over.
    """
    model = str(finetuned / "base") if contract.base_model in (TINY, SHIPPED) else contract.base_model
    base = identify_base(model, contract.base_revision)
    for field, now, then in (
        ("base_revision", base.revision, contract.base_revision),
        ("tokenizer_sha256", base.tokenizer_sha256, contract.tokenizer_sha256),
    ):
        if now != then:
            raise ContractError(
                f"{finetuned / CONTRACT}: {field} is {then[:12]} but {model} now has {now[:12]}; "
                "restore that model, or run the finetune stage again"
            )
    return base


def _as_json(prompt: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names to canonical JSON, so that a tuple and the list it becomes in a file are the same."""
    return {name: json.dumps(value, sort_keys=True) for name, value in flatten(prompt).items()}


def _show(rows: Mapping[str, str], name: str) -> str:
    text = rows.get(name, "nothing")
    return text if len(text) <= 40 else f"{text[:37]}..."
