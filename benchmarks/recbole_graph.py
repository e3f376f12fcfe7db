"""Export the knowledge graph for RecBole's knowledge-aware models (KGAT, CKE), next to the likes they train on.

``write_graph`` adds two files to the folder ``likes`` of ``recbole_export.py``: ``likes.kg`` with the triples that
R-GAT reads, and ``likes.link``, which says which entity each film is. Entities are our ids, relations our names.
"""

# Shape letters in this file: M films, T triples
from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from tripletune.models.rgat.knowledge import read_knowledge

PARTS = ("train", "valid", "test")


def write_graph(knowledge: Path, likes: Path) -> dict[str, int]:
    """Write ``likes.kg`` (``head_id, relation_id, tail_id``) and ``likes.link`` (``item_id, entity_id``).

    Linked are the films of the likes that have a fact. RecBole numbers the others as entities without triples; of films
    that stand in no like it reads the facts, as ours do, but cannot rank them.

    Args:
        knowledge: output of the knowledge stage.
        likes: folder with ``likes.{train,valid,test}.inter``.

    Returns:
        Counts: ``triples`` and ``linked`` films, which ``recbole_side.py`` counts again.

    Raises:
        SystemExit: a film of the likes is not in the graph.
    """
    facts = read_knowledge(knowledge)
    parts = [pl.read_csv(likes / f"likes.{part}.inter", separator="\t")["item_id:token"] for part in PARTS]
    liked = np.unique(np.concatenate([part.to_numpy() for part in parts]))
    missing = np.setdiff1d(liked, facts.movie_ids_M)
    if len(missing):
        raise SystemExit(f"{knowledge} has no film {missing[0]}, which the split has: give the knowledge of that run")
    entity_M = facts.movie_entity_M.numpy()
    relations = pl.Series(facts.relation_names, dtype=pl.String).gather(facts.relation_T.numpy())
    heads, tails = entity_M[facts.movie_T.numpy()], facts.entity_T.numpy()
    triples = pl.DataFrame({"head_id:token": heads, "relation_id:token": relations, "tail_id:token": tails})
    triples.write_csv(likes / "likes.kg", separator="\t")
    is_linked_M = np.isin(facts.movie_ids_M, liked) & (facts.count_M.numpy() > 0)
    link = {"item_id:token": facts.movie_ids_M[is_linked_M], "entity_id:token": entity_M[is_linked_M]}
    pl.DataFrame(link).write_csv(likes / "likes.link", separator="\t")
    return {"triples": len(triples), "linked": int(is_linked_M.sum())}
