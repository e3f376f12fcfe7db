"""Biases of the film texts' vectors: does order, length or spelling decide which films are near?

    python benchmarks/text_biases.py --text artifacts/DATASET/text/FINGERPRINT [--model wordllama]

Every film's text is changed in one way, embedded, and its vector compared with those of all unchanged texts, centred as
by the stage. ``cosine``: with the film's own vector, mean and 5 % quantile. ``finds itself``: films whose own vector is
the nearest of the whole catalogue (the first of equal ones counts; films with the same text as another are left out).
Below: the correlation (Spearman) of a text's length in characters with how often the film is among the 20 nearest of
another, and the largest number of films that one film is near to, of directions as embedded and centred. Without
a bias by length the correlation is 0, and each film is near to 20 on average.
"""

# Shape letters in this file: M films, X columns, B films of a block
from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from tripletune.models.text.directions import centre
from tripletune.models.text.embed import Embed, load_embedder

REPORT = Path(__file__).with_suffix(".md")
NEAREST, BLOCK = 20, 512


def reversed_facts(text: str) -> str:
    """What follows the title, in reverse."""
    title, *facts = text.split(". ")
    return ". ".join([title, *reversed(facts)])


def title_last(text: str) -> str:
    """The title after the facts."""
    title, *facts = text.split(". ")
    return ". ".join([*facts, title])


def twice(text: str) -> str:
    """The text, and again."""
    return f"{text}. {text}"


def title_alone(text: str) -> str:
    """Without facts."""
    return text.split(". ", maxsplit=1)[0]


def plain_letters(text: str) -> str:
    """Accents removed."""
    return "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))


def article_first(text: str) -> str:
    """``Matrix, The (1999)`` as ``The Matrix (1999)``."""
    return re.sub(r"^(.*), (The|A|An|Les?|La|Das|Der|Die|El|Il)( \(|$)", r"\2 \1\3", text)


def family_name_first(text: str) -> str:
    """Facts of two words, which are mostly names of people, as ``Mann, Michael``."""
    title, *facts = text.split(". ")
    swap = re.compile(r"(^|, )(\w+) (\w+)(?=,|$)")
    return ". ".join([title, *(swap.sub(r"\1\3, \2", fact) for fact in facts)])


CHANGES: dict[str, Callable[[str], str]] = {
    "facts in reverse order": reversed_facts,
    "title last": title_last,
    "everything twice": twice,
    "title alone": title_alone,
    "lower case": str.lower,
    "no accents": plain_letters,
    "article before the title": article_first,
    "family name first": family_name_first,
}


def changed_vectors(embed: Embed, texts: list[str], change: Callable[[str], str], mean_X: Tensor) -> Tensor:
    """Directions of changed texts from the mean of the unchanged ones."""
    return functional.normalize(directions(embed([change(text) for text in texts])) - mean_X, dim=1)


def directions(vectors_MX: Tensor) -> Tensor:
    """Of length one, float64."""
    return functional.normalize(vectors_MX.double(), dim=1)


def measure(texts: list[str], embed: Embed) -> list[str]:
    """Both tables, in Markdown."""
    frame = pl.DataFrame({"text": texts}).with_row_index("film").filter(pl.col("text") != "")
    kept = frame.filter(pl.col("text").is_unique())["text"].to_list()
    raw_MX = directions(embed(kept))
    mean_X, centred_MX = raw_MX.mean(dim=0), centre(embed(kept)).double()
    lines = ["| change | texts changed | cosine | 5 % | finds itself |", "|---|--:|--:|--:|--:|"]
    for name, change in CHANGES.items():
        is_changed = torch.tensor([change(text) != text for text in kept])
        if not bool(is_changed.any()):
            continue
        changed_MX = changed_vectors(embed, kept, change, mean_X)
        cosine_M = (changed_MX * centred_MX).sum(dim=1)[is_changed].numpy()
        own_M = torch.arange(len(kept))
        is_own_M = nearest(changed_MX, centred_MX, 1, None)[:, 0] == own_M
        lines.append(
            f"| {name} | {int(is_changed.sum()):,} | {cosine_M.mean():.3f} | {np.quantile(cosine_M, 0.05):.3f} | "
            f"{is_own_M[is_changed].double().mean():.1%} |"
        )
    lines += ["", "| vectors | correlation of length and nearness | most films near to one |", "|---|--:|--:|"]
    length_M = np.array([len(text) for text in kept])
    for name, vectors_MX in (("as embedded", raw_MX), ("centred", centred_MX)):
        near_ME = nearest(vectors_MX, vectors_MX, min(NEAREST, len(kept) - 1), torch.arange(len(kept)))
        count_M = torch.bincount(near_ME.flatten(), minlength=len(kept)).numpy()
        lines.append(f"| {name} | {spearmanr(length_M, count_M).statistic:+.2f} | {count_M.max():,} |")
    return [f"{len(kept):,} films with a text of their own.", "", *lines]


def nearest(asked_MX: Tensor, films_MX: Tensor, num: int, own_M: Tensor | None) -> Tensor:
    """Films nearest to each asked vector, without its own film where that is given."""
    found = []
    for start in range(0, len(asked_MX), BLOCK):
        score_BM = asked_MX[start : start + BLOCK] @ films_MX.T
        if own_M is not None:
            score_BM[torch.arange(len(score_BM)), own_M[start : start + BLOCK]] = -torch.inf
        found.append(score_BM.topk(num, dim=1).indices)
    return torch.cat(found)


def main() -> None:
    """Print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of a text stage")
    parser.add_argument("--model", default="wordllama", help="as text.model")
    parser.add_argument("--out", type=Path, default=REPORT)
    given = parser.parse_args()
    texts = pl.read_parquet(given.text / "texts.parquet")["text"].to_list()
    lines = ["# Biases of film texts", "", "What is measured and how: the head of `text_biases.py`.", ""]
    counted, *tables = measure(texts, load_embedder(given.model))
    lines += [f"Model: {given.model}. {counted}", *tables]
    given.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
