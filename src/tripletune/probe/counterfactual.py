"""Facts of other films, to put in the place of a film's own: the same form and relation, another content.

If a fact helps for what it says, a foreign one in its place must not help as much; if only the words around it do, it
will.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from tripletune.probe.inputs import Inputs
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.retrieve import CHOICES
from tripletune.stable_hash import mix, pair_hash

_SWAP = 21 << 40
"""Added to the run's seed for the choice of other films' facts."""
FACT = (*QUERY_KEY, "movie_id", "rank")
"""Key of a fact in ``CHOICES``."""


@dataclass(frozen=True, slots=True)
class FactPool:
    """The knowledge graph's facts."""

    owned: pl.DataFrame
    """``movie_id, relation, entity``: which film has which fact."""
    by_relation: Mapping[str, tuple[list[str], list[str]]]
    """Keys and names of a relation's entities, in the order of the keys."""
    seed: int

    @classmethod
    def of(cls, triples: pl.DataFrame, seed: int) -> FactPool:
        """The pool of some triples.

        Args:
            triples: of ``retrieve.triples.read_triples``.
            seed: the run's.
        """
        facts = triples.select("relation", "entity", "entity_name").unique(["relation", "entity"], keep="any")
        groups = facts.sort("relation", "entity").group_by("relation", maintain_order=True).agg(pl.all())
        by_relation = {relation: (entities, names) for relation, entities, names in groups.iter_rows()}
        return cls(triples.select("movie_id", "relation", "entity"), by_relation, seed)

    def swap(self, inputs: Inputs, only: pl.DataFrame | None = None) -> Inputs:
        """The inputs with another film's fact of the same relation in place of each fact, chosen by a stable hash.

        A fact stays where no other film has another one of its relation: then the prompt does not change.

        Args:
            inputs: of some examples.
            only: the facts to replace, with ``FACT``; None: all.
        """
        choices = inputs.choices.with_row_index("row")
        wanted = (
            choices if only is None else choices.join(only.select(FACT), on=FACT, how="semi", maintain_order="left")
        )
        schema = {"row": pl.UInt32, "entity_other": pl.String, "entity_name_other": pl.String}
        found = pl.DataFrame(self._foreign(wanted), schema=schema, orient="row")
        swapped = choices.join(found, on="row", how="left", maintain_order="left").with_columns(
            entity=pl.coalesce("entity_other", "entity"), entity_name=pl.coalesce("entity_name_other", "entity_name")
        )
        return inputs.with_changed(choices=swapped.select(CHOICES.names()))

    def _foreign(self, wanted: pl.DataFrame) -> list[tuple[int, str, str]]:
        """Row, and key and name of the entity that takes its entity's place, where there is one."""
        mine = self.owned.join(wanted, on="movie_id", how="semi").group_by("movie_id", "relation").agg("entity")
        owned = {(film, relation): set(entities) for film, relation, entities in mine.iter_rows()}
        ranked = mix(wanted["rank"].to_numpy(), self.seed + _SWAP).astype("int64")
        hashed = pair_hash(wanted["user_id"].to_numpy(), wanted["movie_id"].to_numpy() ^ ranked, self.seed + _SWAP)
        found = []
        for start, fact in zip(hashed.tolist(), wanted.iter_rows(named=True), strict=True):
            entities, names = self.by_relation.get(fact["relation"], ([], []))
            own = owned.get((fact["movie_id"], fact["relation"]), set()) | {fact["entity"]}
            steps = (place % len(entities) for place in range(start, start + len(entities)))
            other = next((place for place in steps if entities[place] not in own), None)
            if other is not None:
                found.append((fact["row"], entities[other], names[other]))
        return found
