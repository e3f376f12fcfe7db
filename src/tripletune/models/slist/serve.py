"""SLIST as a retriever: EASE's list with SLIST's weights and its own recency."""

from __future__ import annotations

from pathlib import Path

from tripletune.models.ease.serve import EaseRanker, load_ease
from tripletune.models.serving.catalogue import read_tensors
from tripletune.models.serving.retriever import RetrieverSpec, Serving


def load(folder: Path, serving: Serving) -> dict[str, EaseRanker]:
    """Read the fits; InputError as in ``load_ease``."""
    fits = load_ease(folder, serving.catalogue, serving.fits, "slist")
    ages = {name: read_tensors(folder / f"fit_{name}.safetensors", ("history_age",))["history_age"] for name in fits}
    return {name: EaseRanker(fit, float(ages[name])) for name, fit in fits.items()}


RETRIEVER = RetrieverSpec(name="slist", lists=("slist",), load=load)
