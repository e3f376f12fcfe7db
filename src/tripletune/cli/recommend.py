"""Recommend: to a user of the data, to a list of liked titles, or to all users.

The same retriever, the same prompt function and the same constrained decoding as the shards and the ranking, on all of
the user's rows: no vector is looked up by user, so a user whom no fit has seen is served in the same way.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.config import RunConfig
from tripletune.contract import read_contract
from tripletune.errors import InputError
from tripletune.pipeline.answering import Answering
from tripletune.probe.explain import Reliance, explain_answer
from tripletune.prompts.explain import TripleKey, explain_lines
from tripletune.prompts.template import load_template
from tripletune.rank.predict import answer_examples
from tripletune.retrieve.histories import read_rows
from tripletune.schemas.answers import NUM_ANSWERS
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.split import SPLIT
from tripletune.serve.batch import Batch, facts_of, recommend_all, titles_of
from tripletune.serve.prompting import Prompter, queries_of_today, tokenizer_of_adapter
from tripletune.serve.run_prompts import RunPrompts
from tripletune.store.paths import RunPaths
from tripletune.store.read import read_parquet, scan_parquet
from tripletune.store.shards import shard_files, split_files

NOBODY = -1
"""User id of a user who is only a list of films; no release has it."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One film and the fact that explains it."""

    title: str
    reason: str
    """The triple that matters most to this user, or a note that the film has none."""
    relied: Reliance | None = None
    """Of the first film, where asked for: what the language model relied on."""


def recommend_to_user(who: Answering, user: int, *, why: bool = False) -> list[Recommendation]:
    """Top five for a user of the data, from all of the user's ratings.

    Args:
        who: answers, see ``pipeline.answering``.
        user: id.
        why: whether to measure what the first answer relied on.

    Raises:
        InputError: no such user; the message gives the range of ids.
    """
    rows = read_rows(list(split_files(who.paths.require("split")).values()))
    mine = rows.filter(pl.col("user_id") == user).collect()
    if mine.is_empty():
        raise InputError(f"--user {user}: no ratings of this user; ids in this run are such as {_ids_near(user, rows)}")
    return _recommend(who, mine, why=why)


def _ids_near(user: int, rows: pl.LazyFrame) -> str:
    """The three ids in ``rows`` that are nearest to one that is not there."""
    ids = rows.select(pl.col("user_id").unique()).collect()["user_id"].to_list()
    return ", ".join(map(str, sorted(sorted(ids, key=lambda one: (abs(one - user), one))[:3])))


def recommend_to_stranger(who: Answering, liked: Sequence[str], *, why: bool = False) -> list[Recommendation]:
    """Top five for a user the system has never seen.

    Args:
        who: answers, see ``pipeline.answering``.
        liked: titles as in the release, oldest first; case and surrounding spaces do not matter.
        why: whether to measure what the first answer relied on.

    Raises:
        InputError: a title is unknown (the nearest ones are named) or belongs to several films.
    """
    movies = read_parquet(who.paths.require("ingest") / "movies.parquet", columns=["movie_id", "title"])
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
    return _recommend(who, pl.DataFrame(data, schema=columns), why=why)


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


def _recommend(who: Answering, rows: pl.DataFrame, *, why: bool) -> list[Recommendation]:
    from tripletune.rank.answerer import Answerer  # imports torch and transformers

    prompter = Prompter.load(who.paths, who.config, _tokenizer(who))
    examples = prompter.prompts(rows, queries_of_today(rows))
    answerer = Answerer.load(who.adapter, who.paths.require)
    ranked = answer_examples(examples, answerer, constrained=True, batch_size=1)
    example = examples.row(0, named=True)
    titles, facts = titles_of(example), facts_of(example)
    best = ranked["answers"][0].to_list()[:NUM_ANSWERS]
    found = [Recommendation(titles[movie], facts.get(movie, "no fact is known")) for movie in best]
    if why:
        relied = explain_answer(examples, answerer, prompter.frame, batch_size=who.config.rank.batch_size)
        found[0] = replace(found[0], relied=relied)
    return found


def _tokenizer(who: Answering) -> tuple[str, str] | None:
    """Model and revision of the tokenizer that counts the tokens of what is answered."""
    return tokenizer_of_adapter(who.adapter, read_contract(who.adapter))


def read_users(path: Path) -> pl.Series:
    """Ids of a text file, one on each line; empty lines and repeated ids count for nothing.

    Raises:
        InputError: there is no such file, or a line is no id.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--users {path}: cannot be read ({error}); give a text file with an id on each line"
        ) from None
    ids: list[int] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            if not (line.strip().isascii() and line.strip().isdigit() and int(line) < 2**31):
                raise InputError(
                    f"--users {path}, line {number}: {line.strip()!r} is no user id; write one on each line"
                )
            ids.append(int(line))
    if not ids:
        raise InputError(f"--users {path}: no user id in it; write one on each line")
    return pl.Series("user_id", ids, dtype=SPLIT["user_id"]).unique().sort()


def recommend_to_all(who: Answering, out: Path, *, users: Path | None = None, workers: int = 0) -> int:
    """Recommend to all users of the data, or to those of a file; returns their number.

    Args:
        who: answers, see ``pipeline.answering``.
        out: the Parquet file, see ``serve.batch``.
        users: see ``read_users``; None: all.
        workers: processes that answer; 0: as ``rank.workers`` has it.

    Raises:
        UserError: as ``serve.batch.recommend_all`` and ``read_users``.
    """
    config = who.config
    if workers:
        config = config.model_copy(update={"rank": config.rank.model_copy(update={"workers": workers})})
    batch = Batch(
        paths=who.paths,
        config=config,
        adapter=who.adapter,
        answered_by=who.described(),
        tokenizer=_tokenizer(who),
        users=read_users(users) if users else None,
    )
    return recommend_all(batch, out)


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
    found = scan_parquet(shards).filter(pl.col("user_id") == user).collect()
    if found.is_empty():
        why = "users with too few likes have none"
        if purpose == "train":
            why += ", nor have unseen ones and those whose answers retrieval missed"
        other = "" if purpose == "test" else "--purpose test, or "
        near = _ids_near(user, scan_parquet(shards))
        raise InputError(f"--user {user}: no {purpose} example; {why}; try {other}a user who has one, such as {near}")
    asked = found if cutoff is None else found.filter(pl.col("cutoff") == cutoff)
    if asked.is_empty():
        there = ", ".join(map(str, found["cutoff"]))
        raise InputError(f"--cutoff {cutoff}: no such {purpose} example of user {user}; there are {there}")
    example, template = asked.row(0, named=True), load_template(config.prompt.template)
    worked = RunPrompts(paths, config).worked()
    if worked:
        template = template.with_worked(worked.text)
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
        worked=worked.text if worked else "",
    )
    answer = [(line, "completion") for line in example["completion"][0]["content"].split("\n")]
    truth = ", ".join(map(str, example["answers"]))
    return [*system, *lines, *answer, (f"held-out likes: {truth}", f"answers, from position {example['cutoff']} on")]


def _positions(paths: RunPaths, user: int) -> dict[int, int]:
    rows = read_rows(list(split_files(paths.require("split")).values())).filter(pl.col("user_id") == user)
    return dict(rows.select("movie_id", "position").collect().iter_rows())


def _scores(paths: RunPaths, example: Mapping[str, Any]) -> Mapping[TripleKey, float]:
    choices = scan_parquet(shard_files(paths.require("retrieve") / "choices"))
    mine = choices.filter(pl.col(name) == example[name] for name in QUERY_KEY)
    rows = mine.select("movie_id", "relation", "entity", "score").collect().iter_rows()
    return {(movie, relation, entity): score for movie, relation, entity, score in rows}
