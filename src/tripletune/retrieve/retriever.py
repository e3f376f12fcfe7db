# Shape letters in this file:
#   U queries (a user, a purpose and a cutoff), K places, F similar users' films, E rated films
"""Retrieval for the prompts of any user: candidates, hint 1 and hint 2, from a history and a mask.

``retrieved`` (the default) takes the retriever's top films and inserts no answer: an inserted answer that retrieval
missed would always be the film missing from hint 1, and the model would learn just that. ``kerag`` is the published
recipe, see ``kerag.py``. One ``Retriever`` serves the shards and an ad-hoc user given by a list of films.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tripletune.config import LISTED_FILMS, RetrieveConfig
from tripletune.models.lightgcn.serve import LightGCNFit, load_lightgcn
from tripletune.models.rgat.serve import RgatFit, load_rgat
from tripletune.models.serving.retriever import Histories, Serving
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.first_stage import FirstStage, Lists, load_first_stages
from tripletune.retrieve.further_hints import HintInputs, compute_hints
from tripletune.retrieve.fusion import read_fusion
from tripletune.retrieve.histories import number_histories, rated_columns, read_fit_likes
from tripletune.retrieve.kerag import best_answers, put_in
from tripletune.retrieve.learned import Selector, read_weights
from tripletune.retrieve.people import People
from tripletune.retrieve.profiles import RelationTable
from tripletune.retrieve.rankings import FilmEvidence, as_lists, as_rows, rank_by_popularity, rank_by_rgat
from tripletune.retrieve.similar import Neighbours
from tripletune.retrieve.topics import TopicTable
from tripletune.retrieve.triple_features import TripleFeatures
from tripletune.retrieve.triples import Exploration, TripleTable, choose_triples, read_triples
from tripletune.schemas.base import conform
from tripletune.schemas.hint import TOPICS
from tripletune.schemas.query import FIT_OF, QUERY_KEY
from tripletune.schemas.retrieve import CHOICES, RANKINGS, RETRIEVED
from tripletune.store.request_time import reading_request_time


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """The queries of one fit, numbered from 0, and the retrievers' lists."""

    fit: str
    queries: pl.DataFrame
    rated: pl.DataFrame
    """Columns ``viewer``, ``movie_id``, ``rating``, ``timestamp``, ``like``: the events and the mask."""
    lists: Lists

    def of(self, users: pl.Series) -> _Batch:
        """The queries of some users."""
        is_asked = self.queries["user_id"].is_in(users.implode())
        user_S = np.flatnonzero(is_asked.to_numpy())
        numbers = pl.DataFrame({"viewer": user_S, "number": np.arange(len(user_S))}).cast(pl.UInt32)
        return _Batch(
            fit=self.fit,
            queries=self.queries.filter(is_asked),
            rated=self.rated.join(numbers, on="viewer", maintain_order="left").select(
                pl.exclude("viewer", "number"), viewer="number"
            ),
            lists=self.lists.of(user_S),
        )

    @property
    def histories(self) -> Histories:
        return self.lists.histories

    @property
    def users_U(self) -> Ints:
        return self.queries["user_id"].to_numpy().astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retriever:
    """Trained models, this run's triples and the similar users, loaded for queries of any user.

    Load once, query often: ``retrieve_users`` serves shards and ad-hoc users alike.
    """

    settings: RetrieveConfig
    num_liked_triples: int
    seed: int
    lightgcn: dict[str, LightGCNFit]
    rgat: dict[str, RgatFit]
    tables: dict[str, TripleTable]
    neighbours: dict[str, Neighbours]
    first_stages: dict[str, FirstStage]
    evidence: dict[str, FilmEvidence]
    relations: dict[str, RelationTable]
    topics: dict[str, TopicTable]
    """Empty where no topics are looked for."""
    selectors: dict[str, Selector]
    """Of ``triple_choice = "learned"``, by fit; empty: the choice is ``personal``."""
    reads_request_time: bool = False
    """Whether a list reads when its query is asked; the queries have ``asked_at`` then."""

    @classmethod
    def load(
        cls,
        knowledge: Path,
        trained: Mapping[str, Path],
        settings: RetrieveConfig,
        *,
        num_liked_triples: int,
        seed: int,
        fits: tuple[str, ...] = ("a", "b"),
        fusion: Path | None = None,
        ingest: Path | None = None,
        selector: Path | None = None,
    ) -> Retriever:
        """Read stage outputs; this run's split is not among them, since the trained models may be pinned.

        Args:
            knowledge: folder of that stage.
            trained: folders of the trained models' stages, by name: ``lightgcn``, ``rgat``, and at least the
                retrievers that make the candidates.
            settings: of candidates, hints and triples.
            num_liked_triples: newest liked films that get triples as well as the candidates.
            seed: the run's.
            fits: names of the fits to load; ``("b",)`` is enough for valid, test and ad-hoc queries.
            fusion: folder of that stage; None: the weights of the config.
            ingest: folder of that stage, for the users' attributes; None: similarity is by LightGCN alone.
            selector: folder of that stage; None or one that was refused: a learned choice of triples is ``personal``.

        Raises:
            InputError: a specialist's file is missing, damaged or inconsistent with the others.
        """
        films = load_lightgcn(trained["lightgcn"], seed, fits)
        people = People.read(ingest, settings.similar_people) if ingest and settings.similar_people else None

        def build_neighbours(fit: str) -> Neighbours:
            """The similar users of a fit."""
            likes = read_fit_likes(trained["lightgcn"], fit)
            return Neighbours.build(films[fit], likes, seed, exact_users=settings.similar_exact_users, people=people)

        with ThreadPoolExecutor(1) as pool:  # building the similar users takes as long as all the rest
            neighbours = pool.submit(lambda: {fit: build_neighbours(fit) for fit in fits})
            facts, triples = load_rgat(trained["rgat"], seed, fits), read_triples(knowledge)
            catalogue = films[fits[0]].catalogue
            serving = Serving(catalogue=catalogue, lightgcn=films, seed=seed, settings=settings)
            stages = load_first_stages(trained, serving, read_fusion(fusion, settings) if fusion else None)
            tables = {fit: TripleTable.build(facts[fit], triples, seed) for fit in fits}
            evidence = {fit: FilmEvidence.build(facts[fit]) for fit in fits}
            relations = {fit: RelationTable.build(table, facts[fit]) for fit, table in tables.items()}
            weights = read_weights(selector) if selector else None
            features = {
                fit: TripleFeatures.build(
                    tables[fit], facts[fit], relations[fit], read_fit_likes(trained["lightgcn"], fit)
                )
                for fit in (fits if weights is not None else ())
            }
        found = neighbours.result()
        topics = {}
        if settings.num_topics:
            movie_M = catalogue.movie_ids(np.arange(len(catalogue)))
            topics = {fit: TopicTable.build(tables[fit], movie_M, found[fit].like_counts_M) for fit in fits}
        return cls(
            settings=settings,
            num_liked_triples=num_liked_triples,
            seed=seed,
            lightgcn=films,
            rgat=facts,
            tables=tables,
            neighbours=found,
            first_stages=stages,
            evidence=evidence,
            relations=relations,
            topics=topics,
            selectors={fit: Selector(table, weights or {}) for fit, table in features.items()},
            reads_request_time=bool(reading_request_time(trained)),
        )

    def retrieve_users(
        self, queries: pl.DataFrame, history: pl.DataFrame, seen: pl.DataFrame, answers: pl.DataFrame
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Candidates, hints and chosen triples.

        Args:
            queries: ``user_id, purpose, unseen, cutoff`` (and ``asked_at``), unique by ``QUERY_KEY``, whose columns
                the other frames have too. An ad-hoc user is a user id outside every fit (say -1) with purpose
                ``test``, and has no answers.
            history: likes before the cutoff, ``user_id, purpose, cutoff, movie_id, age`` (newest 0).
            seen: everything rated before the cutoff, oldest first within a query, ``user_id, purpose, cutoff,
                movie_id, rating, timestamp, like``.
            answers: ``user_id, purpose, cutoff, movie_id, rating``; used by ``kerag`` alone, may be empty.

        Returns:
            Frames of ``schemas.RETRIEVED`` and ``schemas.CHOICES``, sorted by query (and film and rank).
        """
        retrieved, choices, _ = self._run(queries, history, seen, answers, rank=False)
        return retrieved, choices

    def retrieve_and_rank(
        self,
        queries: pl.DataFrame,
        history: pl.DataFrame,
        seen: pl.DataFrame,
        answers: pl.DataFrame,
        ranked: pl.Series | None = None,
    ) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """As ``retrieve_users``, and the first-stage rankings (``schemas.RANKINGS``) of valid and test queries.

        Args:
            ranked: ids of the users whose queries are ranked; None: all users.
        """
        return self._run(queries, history, seen, answers, rank=True, ranked=ranked)

    def _run(
        self,
        queries: pl.DataFrame,
        history: pl.DataFrame,
        seen: pl.DataFrame,
        answers: pl.DataFrame,
        *,
        rank: bool,
        ranked: pl.Series | None = None,
    ) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        retrieved, choices, rankings = [RETRIEVED.to_frame()], [CHOICES.to_frame()], [RANKINGS.to_frame()]
        for batch in self._batches(queries, history, seen):
            found = self._with_topics(self._find_films(batch, answers), batch.fit, history)
            retrieved.append(conform(found, RETRIEVED))
            choices.append(
                conform(self._choose(batch, films_to_explain(found, history, self.num_liked_triples)), CHOICES)
            )
            if rank and batch.fit != FIT_OF["train"]:
                rankings.append(conform(self._rank(batch if ranked is None else batch.of(ranked), answers), RANKINGS))
        return (
            pl.concat(retrieved).sort(QUERY_KEY),
            pl.concat(choices).sort(*QUERY_KEY, "movie_id", "rank"),
            pl.concat(rankings),
        )

    def _batches(self, queries: pl.DataFrame, history: pl.DataFrame, seen: pl.DataFrame) -> Iterator[_Batch]:
        for name, fit in self.lightgcn.items():
            purposes = [purpose for purpose, of_fit in FIT_OF.items() if of_fit == name]
            asked = queries.filter(pl.col("purpose").is_in(purposes)).sort(QUERY_KEY)
            if asked.is_empty():
                continue
            rated, histories = number_histories(asked, history, seen, fit)
            asked = asked.drop("asked_at", strict=False)
            yield _Batch(fit=name, queries=asked, rated=rated, lists=self.first_stages[name].ask(histories))

    def _find_films(self, batch: _Batch, answers: pl.DataFrame) -> pl.DataFrame:
        settings, fit, users_UD = self.settings, self.lightgcn[batch.fit], batch.histories.lightgcn_UD
        films_UK = batch.lists.top(settings.retriever, settings.depth)
        if settings.candidates == "kerag":
            films_UK = put_in(best_answers(answers, batch.queries, fit), films_UK, users_UD, fit)
        else:
            films_UK = films_UK[:, : settings.num_candidates]
        is_in_order = settings.retriever == "lightgcn" or settings.candidates == "kerag"
        ordered_UK = films_UK if is_in_order else fit.in_order(films_UK, users_UD)
        similar_UF = np.empty((len(batch.queries), 0), dtype=np.int64)
        if settings.similar_films:
            similar_UF = self.neighbours[batch.fit].films(
                users_UD, batch.users_U, batch.histories.seen, settings.similar_viewers, settings.similar_films
            )
        inputs = HintInputs(
            candidates_UK=films_UK,
            histories=batch.histories,
            lightgcn=fit,
            neighbours=self.neighbours[batch.fit],
            settings=settings,
        )
        columns = {"candidates": films_UK, "ranking": ordered_UK[:, : settings.hint_films], "similar": similar_UF}
        columns |= compute_hints(inputs)
        lists = [as_lists(fit.catalogue.movie_ids(films)).alias(name) for name, films in columns.items()]
        return batch.queries.with_columns(lists)

    def _with_topics(self, found: pl.DataFrame, fit: str, history: pl.DataFrame) -> pl.DataFrame:
        if fit not in self.topics:
            return found.with_columns(topics=pl.lit([], dtype=TOPICS))
        return found.with_columns(self.topics[fit].find(found, history, self.settings.num_topics).alias("topics"))

    def _rank(self, batch: _Batch, answers: pl.DataFrame) -> pl.DataFrame:
        fit, evidence, num = self.lightgcn[batch.fit], self.evidence[batch.fit], len(batch.queries)
        catalogue = evidence.rgat.catalogue
        popular_UK = rank_by_popularity(self.neighbours[batch.fit].like_counts_M, batch.histories.seen, num)
        told_UK = rank_by_rgat(evidence, batch.histories.likes, rated_columns(batch.rated, catalogue, num), num)
        tops = {
            "popularity": fit.catalogue.movie_ids(popular_UK),
            "rgat": catalogue.movie_ids(told_UK),
            **{
                name: fit.catalogue.movie_ids(batch.lists.top(name, LISTED_FILMS))
                for name in self.first_stages[batch.fit].names
            },
        }
        return pl.concat(as_rows(batch.queries, answers, name, as_lists(top)) for name, top in tops.items())

    def _choose(self, batch: _Batch, pairs: pl.DataFrame) -> pl.DataFrame:
        settings, cutoff_U = self.settings, batch.queries["cutoff"].to_numpy().astype(np.int64)
        explores = settings.explore_triples > 0 and batch.fit == FIT_OF["train"]
        numbered = batch.queries.select(*QUERY_KEY).with_row_index("viewer")
        pairs = pairs.join(numbered, on=QUERY_KEY, maintain_order="left")
        chosen = choose_triples(
            self.tables[batch.fit],
            self.rgat[batch.fit],
            batch.histories.likes,
            batch.users_U,
            pairs["viewer"].to_numpy().astype(np.int64),
            pairs["movie_id"].to_numpy().astype(np.int64),
            mode=settings.triple_choice,
            num=settings.triples_per_film,
            seed=self.seed,
            scorer=self.selectors.get(batch.fit),
            exploration=Exploration(settings.explore_triples, cutoff_U) if explores else None,
        )
        of_pair = pairs[chosen["pair"].to_numpy()].select(*QUERY_KEY, "movie_id")
        return pl.concat([of_pair, chosen.drop("pair")], how="horizontal")


def films_to_explain(retrieved: pl.DataFrame, history: pl.DataFrame, num_liked: int) -> pl.DataFrame:
    """The (query, film) pairs that hint 2 is chosen for: candidates and the newest liked films."""
    candidates = retrieved.select(*QUERY_KEY, movie_id="candidates").explode("movie_id")
    asked = retrieved.select(*QUERY_KEY)
    liked = (
        history.filter(pl.col("age") < num_liked).join(asked, on=QUERY_KEY, how="semi").select(*QUERY_KEY, "movie_id")
    )
    return pl.concat([candidates.cast({"movie_id": pl.Int32}), liked]).unique().sort(*QUERY_KEY, "movie_id")
