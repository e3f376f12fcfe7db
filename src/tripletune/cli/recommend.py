"""Recommend to one user: a user of the data, or a list of liked titles.

The same retriever, the same prompt function and the same constrained decoding as the shards and the ranking, on all of
the user's rows: no vector is looked up by user, so a user whom no fit has seen is served in the same way.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from tripletune.config import RunConfig
from tripletune.contract import read_contract, require_same
from tripletune.errors import InputError
from tripletune.pipeline.stages import tokenizer_of
from tripletune.probe.explain import Reliance, explain_answer
from tripletune.prompts.engine import Frame, build_examples, prompt_contract
from tripletune.prompts.evidence import collect_evidence
from tripletune.prompts.explain import TripleKey, explain_lines
from tripletune.prompts.template import load_template
from tripletune.rank.predict import rank_examples
from tripletune.retrieve.histories import find_history, find_seen, read_rows
from tripletune.retrieve.retriever import Retriever
from tripletune.schemas.answers import NUM_ANSWERS
from tripletune.schemas.hints import SPECIALISTS
from tripletune.schemas.query import PURPOSES, QUERY_KEY
from tripletune.schemas.split import SPLIT
from tripletune.store.paths import RunPaths
from tripletune.store.shards import shard_files, split_files

NOBODY = -1
"""User id of a user who is only a list of films; no release has it."""
TODAY = "test"
"""Purpose whose fit (b, on everything up to valid) and hints serve a live recommendation."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One film and the fact that explains it."""

    title: str
    reason: str
    """The triple that matters most to this user, or a note that the film has none."""
    relied: Reliance | None = None
    """Of the first film, where asked for: what the language model relied on."""


def recommend_to_user(paths: RunPaths, config: RunConfig, user: int, *, why: bool = False) -> list[Recommendation]:
    """Top five for a user of the data, from all of the user's ratings.

    Args:
        paths, config: of the run whose specialists and adapter answer.
        user: id of the user.
        why: whether to measure what the first answer relied on.

    Raises:
        InputError: no such user; the message gives the range of ids.
    """
    rows = read_rows(list(split_files(paths.require("split")).values()))
    mine = rows.filter(pl.col("user_id") == user).collect()
    if mine.is_empty():
        span = rows.select(low=pl.col("user_id").min(), high=pl.col("user_id").max()).collect().row(0)
        raise InputError(f"--user {user}: no ratings of this user; ids in this run are {span[0]} to {span[1]}")
    return _recommend(paths, config, mine, why=why)


def recommend_to_stranger(
    paths: RunPaths, config: RunConfig, liked: Sequence[str], *, why: bool = False
) -> list[Recommendation]:
    """Top five for a user the system has never seen.

    Args:
        paths, config: of the run whose specialists and adapter answer.
        liked: titles as in the release, oldest first; case and surrounding spaces do not matter.
        why: whether to measure what the first answer relied on.

    Raises:
        InputError: a title is unknown (the nearest ones are named) or belongs to several films.
    """
    movies = pl.read_parquet(paths.require("ingest") / "movies.parquet", columns=["movie_id", "title"])
    films = list(dict.fromkeys(_find_film(title, movies) for title in liked))
    data = {
        "user_id": [NOBODY] * len(films),
        "movie_id": films,
        "rating": [5.0] * len(films),
        "timestamp": [0] * len(films),
        "position": range(len(films)),
        "label": ["graph"] * len(films),
        "unseen": [True] * len(films),
    }
    columns = {name: SPLIT[name] for name in data}
    return _recommend(paths, config, pl.DataFrame(data, schema=columns), why=why)


def _find_film(title: str, movies: pl.DataFrame) -> int:
    wanted = title.strip().casefold()
    titles = [text.casefold() for text in movies["title"]]
    found = [index for index, text in enumerate(titles) if text == wanted]
    if len(found) == 1:
        return int(movies["movie_id"][found[0]])
    if found:
        ids = ", ".join(str(movies["movie_id"][index]) for index in found)
        raise InputError(f"--like {title!r}: several films have this title (movie ids {ids}); name another film")
    near = difflib.get_close_matches(wanted, titles, n=3, cutoff=0.5)
    names = ", ".join(repr(movies["title"][titles.index(text)]) for text in near)
    raise InputError(
        f"--like {title!r}: no such film; " + (f"did you mean {names}?" if near else "titles end in a year")
    )


def _recommend(paths: RunPaths, config: RunConfig, rows: pl.DataFrame, *, why: bool) -> list[Recommendation]:
    adapter = paths.require("finetune")
    require_same(prompt_contract(config.prompt, config.retrieve), read_contract(adapter))
    queries = rows.group_by("user_id").agg(
        pl.lit(TODAY, dtype=PURPOSES).alias("purpose"), pl.col("unseen").first(), cutoff=pl.col("position").max() + 1
    )
    retriever = Retriever.load(
        paths.require("knowledge"),
        {stage: paths.require(stage) for stage in ("lightgcn", "rgat", *config.retrieve.lists)},
        config.retrieve,
        num_liked_triples=config.prompt.triples_for_liked,
        seed=config.seed,
        fits=("b",),
        fusion=paths.require("fusion") if config.retrieve.learns_weights else None,
        ingest=paths.require("ingest") if config.retrieve.similar_people else None,
        selector=paths.require("selector") if config.retrieve.learns_triples else None,
    )
    nothing = pl.DataFrame(
        schema={
            "user_id": pl.Int32,
            "purpose": PURPOSES,
            "cutoff": pl.Int32,
            "movie_id": pl.Int32,
            "rating": pl.Float32,
        }
    )
    retrieved, choices = retriever.retrieve_users(
        queries, find_history(rows, queries), find_seen(rows, queries), nothing
    )
    evidence = collect_evidence(
        rows,
        retrieved,
        dislike=config.split.dislike,
        max_liked=config.prompt.max_liked,
        max_disliked=config.prompt.max_disliked,
    )
    specialists = {one.stage: paths.fingerprints[one.stage] for one in SPECIALISTS}
    frame = Frame.load(paths.require("ingest"), config.prompt, specialists, config.seed, tokenizer_of(paths, config))
    examples = build_examples(retrieved, choices, evidence, nothing, frame)
    ranked = rank_examples(examples, adapter, tuned=True, constrained=True, batch_size=1, folder_of=paths.require)
    found = _explain(examples, ranked["answers"][0].to_list()[:NUM_ANSWERS])
    if why:
        batch_size = config.rank.batch_size
        relied = explain_answer(examples, adapter, frame, batch_size=batch_size, folder_of=paths.require)
        found[0] = replace(found[0], relied=relied)
    return found


def _explain(examples: pl.DataFrame, answers: list[int]) -> list[Recommendation]:
    example = examples.row(0, named=True)
    titles = dict(zip(example["candidates"], example["candidate_titles"], strict=True))
    facts: dict[int, str] = {}
    for triple in example["triples"]:
        facts.setdefault(triple["movie_id"], f"{triple['relation']}: {triple['entity_name']}")
    return [Recommendation(titles[movie], facts.get(movie, "no fact is known")) for movie in answers]


def explain_prompt(
    paths: RunPaths, config: RunConfig, user: int, purpose: str, cutoff: int | None = None
) -> list[tuple[str, str]]:
    """A user's prompt as it stands in the shards, each line with its origin, then the held-out answer.

    Args:
        paths, config, user, purpose: the run, the user and the purpose of the example.
        cutoff: of the example; None: the user's earliest.

    Raises:
        InputError: the user has no example of this purpose, or none at this cutoff.
    """
    shards = shard_files(paths.require("generate") / purpose)
    found = pl.scan_parquet(shards).filter(pl.col("user_id") == user).collect()
    if found.is_empty():
        why = "users with too few likes have none"
        if purpose == "train":
            why += ", nor have unseen ones and those whose answers retrieval missed"
        other = "another id" if purpose == "test" else "--purpose test or another id"
        raise InputError(f"--user {user}: no {purpose} example; {why}; try {other}")
    asked = found if cutoff is None else found.filter(pl.col("cutoff") == cutoff)
    if asked.is_empty():
        there = ", ".join(map(str, found["cutoff"]))
        raise InputError(f"--cutoff {cutoff}: no such {purpose} example of user {user}; there are {there}")
    example, template = asked.row(0, named=True), load_template(config.prompt.template)
    if template.sha256 != example["template_sha256"]:
        raise InputError(
            f"prompt.template = {config.prompt.template!r} is no longer what these prompts were made with; restore it, "
            "or generate prompts with it as it is"
        )
    system = [(line, "template, system message") for line in example["prompt"][0]["content"].split("\n")]
    lines = explain_lines(
        example,
        template,
        positions=_positions(paths, user),
        scores=_scores(paths, example),
    )
    answer = [(line, "completion") for line in example["completion"][0]["content"].split("\n")]
    truth = ", ".join(map(str, example["answers"]))
    return [*system, *lines, *answer, (f"held-out likes: {truth}", f"answers, from position {example['cutoff']} on")]


def _positions(paths: RunPaths, user: int) -> dict[int, int]:
    rows = read_rows(list(split_files(paths.require("split")).values())).filter(pl.col("user_id") == user)
    return dict(rows.select("movie_id", "position").collect().iter_rows())


def _scores(paths: RunPaths, example: Mapping[str, Any]) -> Mapping[TripleKey, float]:
    choices = pl.scan_parquet(shard_files(paths.require("retrieve") / "choices"))
    mine = choices.filter(pl.col(name) == example[name] for name in QUERY_KEY)
    rows = mine.select("movie_id", "relation", "entity", "score").collect().iter_rows()
    return {(movie, relation, entity): score for movie, relation, entity, score in rows}
