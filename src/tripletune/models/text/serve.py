"""Film texts for retrieval: films whose text is near those of the newest likes, whether anyone has rated them or not.

A user is the mean of the text vectors of the likes, weighted by recency; a film's score is the product with its vector.
No number of ratings or likes is used, so a film that nobody has rated ranks as any other.
"""

# Shape letters in this file: M films, X columns
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tripletune.errors import InputError
from tripletune.models.serving.catalogue import Catalogue, Fit, read_table, read_tensors
from tripletune.models.serving.retriever import Histories, RetrieverSpec, Serving
from tripletune.models.serving.topk import Ints, product_blocks, top_columns

HALF_LIFE = 3.0
"""Age, in likes, at which a like has half weight in a user's vector; as LightGCN's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRanker(Fit):
    """Text vectors in the catalogue's order, for both fits."""

    def top(self, name: str, histories: Histories, depth: int) -> Ints:
        """``Ranker.top``: films by cosine with the user's vector; by the order of ties for a user without likes."""
        users_UX = self.pool(histories.likes, histories.num_users)
        blocks = product_blocks(users_UX, self.pool_vectors_MD)
        return top_columns(blocks, histories.num_users, histories.seen, depth)[0]


def read_text_vectors(folder: Path, catalogue: Catalogue) -> Tensor:
    """Text vectors (M, X) of the films of the stage, in the catalogue's order.

    Raises:
        InputError: a file is missing, damaged or not finite, or the catalogue has other films.
    """
    column_M = catalogue.columns(read_table(folder / "movies.parquet").sort("row")["movie_id"].to_numpy())
    path = folder / "films.safetensors"
    stored_MX = read_tensors(path, ("text",))["text"]
    if not len(column_M) == len(stored_MX) == len(catalogue) or (column_M < 0).any():
        raise InputError(f"{folder} has other films than the other models; pin all to one run, or none")
    text_MX = torch.empty_like(stored_MX)
    text_MX[torch.from_numpy(column_M)] = stored_MX
    return text_MX


def _load_rankers(folder: Path, serving: Serving) -> dict[str, TextRanker]:
    ranker = TextRanker(
        catalogue=serving.catalogue,
        pool_vectors_MD=read_text_vectors(folder, serving.catalogue),
        bias_M=torch.zeros(len(serving.catalogue)),
        half_life=HALF_LIFE,
        power=1.0,
    )
    return dict.fromkeys(serving.fits, ranker)


RETRIEVER = RetrieverSpec(name="text", lists=("text",), load=_load_rankers)
