"""Check of the base model: its files are there and whole, or the hub gives them, before the shards are made for it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from tripletune.config import FinetuneConfig
from tripletune.doctor.check import Check, Part
from tripletune.errors import UserError
from tripletune.finetune.shipped import find_weights

PATIENCE = 5.0
"""Seconds that the hub has to answer."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def check_model(settings: FinetuneConfig, parts: Collection[Part]) -> Check:
    """Whether the base model can be read: of a machine that makes shards alone, the tokenizer."""
    if settings.model == "tiny":
        return Check("model", "ok", "tiny, which is built in the run")
    if settings.is_shipped:
        try:
            return Check("model", "ok", f"{settings.model}: {find_weights().name}")
        except UserError as error:
            return Check("model", "fail", str(error))
    with_weights = bool({"finetune", "rank"} & set(parts))
    if settings.names_a_folder:
        return _check_folder(Path(settings.model), with_weights=with_weights)
    return _check_hub(settings.model, settings.revision, with_weights=with_weights)


def _check_folder(folder: Path, *, with_weights: bool) -> Check:
    advice = "give finetune.model a whole folder of transformers, or a Hugging Face id"
    try:
        # one of the files in which the libraries look for a tokenizer; the last has no JSON
        tokenizers = [name for name in ("tokenizer.json", "vocab.json", "tokenizer.model") if (folder / name).is_file()]
        for name in ("config.json", *(tokenizers or ["tokenizer.json"])[:1]):
            if name.endswith(".json"):
                json.loads((folder / name).read_text(encoding="utf-8"))
        files = sorted(folder.glob("*.safetensors")) if with_weights else []
        if with_weights and not files:
            return Check("model", "fail", f"{folder} has no *.safetensors", advice)
        for file in files:
            require_whole(file)
        if with_weights and (folder / INDEX).is_file():
            missing = set(_weight_files(folder / INDEX)) - {file.name for file in files}
            if missing:
                return Check("model", "fail", f"{folder} lacks {', '.join(sorted(missing))}", advice)
    except OSError as error:
        return Check("model", "fail", f"{error.filename}: {error.strerror}", advice)
    except ValueError as error:
        return Check("model", "fail", f"{folder}: {error}", advice)
    return Check("model", "ok", str(folder))


def require_whole(file: Path) -> None:
    """Raise ValueError for a safetensors file whose end does not lie where its header says; no weight is read."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        size = file.stat().st_size
        if not 0 < length <= size - 8:
            raise ValueError(f"{file.name} is no safetensors file")
        header = json.loads(opened.read(length))
    end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    if 8 + length + end != size:
        raise ValueError(f"{file.name} has {size:,} bytes in place of {8 + length + end:,}")


def _weight_files(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def _check_hub(model: str, revision: str, *, with_weights: bool) -> Check:
    """Whether a pinned model is in the cache, or the hub would give it to us."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(model, name, revision=revision)
        return found if isinstance(found, str) else None

    is_there = bool(cached("config.json") and cached("tokenizer.json"))
    if is_there and with_weights:
        index = cached(INDEX)
        is_there = all(cached(name) for name in (_weight_files(Path(index)) if index else [WEIGHTS]))
    if is_there:
        return Check("model", "ok", f"{model} in the cache")
    advice = "log in (hf auth login) and accept its licence, or download it: hf download"
    try:
        get_hf_file_metadata(hf_hub_url(model, "config.json", revision=revision), timeout=PATIENCE)
    except Exception as error:  # the hub's library has many; whichever it is, the run would meet it hours later
        reason = str(error).strip().splitlines() or [type(error).__name__]
        said = f"{model} is not in the cache, nor to be had from the hub ({reason[0]})"
        return Check("model", "fail", said, f"{advice} {model}")
    return Check("model", "ok", f"{model} is not in the cache yet, and the hub gives it")
