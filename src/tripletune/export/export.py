"""Write a run's tuned model in a format that other programs load, whole or not at all.

``merged`` is a folder of transformers with the adapter in the weights, ``adapter`` one of PEFT, ``gguf`` a file for
llama.cpp. Each has a model card and the adapter's contract.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import GenerationConfig

from tripletune.answer_lines import LineTokens, Names
from tripletune.behaviour.embedding import PROJECTOR
from tripletune.chat import load_tokenizer
from tripletune.contract import AdapterContract, BaseIdentity, locate_base, read_contract, write_contract
from tripletune.errors import InputError
from tripletune.export.card import LABELS, Card, write_card
from tripletune.export.carried import not_carried, require_carried
from tripletune.export.gguf import convert, file_name, find_converter
from tripletune.rank.answerer import style_of
from tripletune.rank.merge import ADAPTER_WEIGHTS, load_base, merge_adapter, read_adapter
from tripletune.store.files import sync, write_json, writing_to
from tripletune.store.runs import RunRecord

FORMATS = ("merged", "adapter", "gguf")
_LONGEST = 256
"""Tokens of an answer of five titles, at most; greedy decoding ends before, at the end token."""
_MODEL_FILES = (".json", ".safetensors", ".jinja", ".txt", ".model")
"""Endings of the files of a base model that are copied: neither pickles nor code."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    folder: Path
    num_bytes: int
    lost: list[str]
    """Sentences on what the run serves and the export does not have."""


def export_run(
    record: RunRecord, root: Path, out: Path, form: str, *, text_only: bool = False, converter: str = ""
) -> Exported:
    """Export the tuned model of a run.

    Args:
        record: the run.
        root: the artifact root.
        out: a folder that is new or empty; it appears when everything in it is written.
        form: one of ``FORMATS``.
        text_only: export the language model alone where the run serves it with more.
        converter: for ``gguf``, see ``gguf.find_converter``.

    Raises:
        MissingArtifactError: the run has no adapter, or the converter is not there.
        ContractError: the base model has changed, or the run serves what no export carries.
        NonFiniteError: a weight of the adapter is NaN or infinite.
        InputError: the folder is not empty, or the conversion failed.
    """
    finetuned = record.paths(root).require("finetune")
    contract = read_contract(finetuned)
    if not text_only:
        require_carried(contract, record.name)
    _require_empty(out)
    script = find_converter(converter) if form == "gguf" else None
    weights = read_adapter(finetuned / "adapter")
    base = locate_base(finetuned, contract)
    tokenizer = load_tokenizer(base.source, base.hub_revision, contract.date_string)
    labels = _label_tokens(tokenizer, contract)
    with _new_folder(out) as part:
        text = part / "text"
        _write_adapter(text, finetuned / "adapter", weights, base, out)
        if form == "adapter":
            _lift(text, part)
            if base.hub_revision is None:
                _copy_model(Path(base.source), part / "base")
            _write_tokenizer(part, tokenizer, contract)
        else:
            merged = part / "merged"
            _merge(text, base, tokenizer, contract, merged)
            if script is None:
                _lift(merged, part)
            else:
                convert(script, merged, part / file_name(record.dataset, contract.dtype), contract.dtype)
                shutil.rmtree(merged)
        if labels:
            write_json(part / LABELS, labels)
        write_contract(part, contract)
        write_card(part, Card(record, root, contract, base, form, tuple(labels)))
    num_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Exported(out, num_bytes, not_carried(contract))


def _require_empty(out: Path) -> None:
    with writing_to(out, "--out"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is a file or not empty; name a new folder, or remove what is there")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A work folder next to ``out``, which takes its name at the end and is removed where something fails."""
    work = out.absolute().with_name(f".{out.absolute().name}.part")
    with writing_to(out, "--out"):
        shutil.rmtree(work, ignore_errors=True)  # left by a killed export
        work.mkdir(parents=True)
    try:
        yield work
        for path in work.rglob("*"):
            sync(path)
        work.replace(out.absolute())
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _lift(folder: Path, to: Path) -> None:
    """Move the files of a folder one up."""
    for file in folder.iterdir():
        file.rename(to / file.name)
    folder.rmdir()


def _write_adapter(to: Path, adapter: Path, weights: dict[str, Any], base: BaseIdentity, out: Path) -> None:
    """The adapter without the projector of behaviour tokens, which plain models have no place for.

    PEFT resolves a relative path of the base model against the present folder, so where the base lies in the export,
    its path is that in ``out``.
    """
    to.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base.source if base.hub_revision else str(out.absolute() / "base")
    config["revision"] = base.hub_revision
    config["modules_to_save"] = None
    write_json(to / "adapter_config.json", config)
    text = {name: weight for name, weight in weights.items() if PROJECTOR not in name.split(".")}
    save_file(text, to / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _copy_model(folder: Path, to: Path) -> None:
    to.mkdir()
    for file in sorted(folder.iterdir()):
        if file.suffix in _MODEL_FILES or file.name.startswith(("LICENSE", "NOTICE")):
            shutil.copyfile(file, to / file.name)


def _merge(adapter: Path, base: BaseIdentity, tokenizer: Any, contract: AdapterContract, to: Path) -> None:
    """Merged weights with all that belongs to them; ``adapter`` is removed."""
    model = merge_adapter(load_base(base, contract), adapter)
    shutil.rmtree(adapter)
    model.generation_config = _generation(tokenizer, contract)  # that of the base may sample
    model.save_pretrained(to)
    _write_tokenizer(to, tokenizer, contract)


def _write_tokenizer(folder: Path, tokenizer: Any, contract: AdapterContract) -> None:
    """Tokenizer, chat template with the day that training wrote, and greedy decoding up to the answer's end."""
    tokenizer.save_pretrained(str(folder))
    _generation(tokenizer, contract).save_pretrained(str(folder))


def _generation(tokenizer: Any, contract: AdapterContract) -> GenerationConfig:
    end, pad = LineTokens(tokenizer).end, tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        # after training on the first label alone, nothing ends the answer
        max_new_tokens=_LONGEST if contract.objective == "sft" else 1,
        eos_token_id=end,
        pad_token_id=end if pad is None else pad,
    )


def _label_tokens(tokenizer: Any, contract: AdapterContract) -> dict[str, int]:
    """Token id of each candidate's label, in the order shown; empty where answers are titles or a label is cut."""
    style = style_of(contract)
    if style.labels is None:
        return {}
    labels = style.labels(int(contract.prompt["num_candidates"]))
    tokens = LineTokens(tokenizer).single(Names(labels, style))
    return dict(zip(labels, tokens, strict=True)) if tokens else {}
