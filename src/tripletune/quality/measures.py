"""Measures of the shards, taken in one pass, a file at a time: one row of numbers per example is kept, and no text.

Popularity is the quantile of ``store.popularity``, so that films drawn in proportion to their likes spread evenly over
the ten tenths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.quality.text import find_flaws
from tripletune.schemas.generate import COMPLETION_CHARS, EXAMPLES, LEFT_OUT, PROMPT_CHARS
from tripletune.schemas.query import PURPOSES
from tripletune.store.parquet import joined, parquet_files, read_rows

TENTHS = 10
PLACES = ("purpose", "num_candidates", "place")
POPULARITY = ("purpose", "role", "tenth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Measures of all shards of one run."""

    examples: pl.DataFrame
    """One row per example: ``example_id, purpose, unseen, template``; counts: ``chars, num_tokens, liked, history``
    (rows before the cutoff), ``num_candidates, bare`` (candidates without a triple), ``answers, retrieved`` (answers
    among the candidates), ``LEFT_OUT``; ``more_popular``: the share of the other candidates with fewer likes than a
    retrieved answer, ties half, mean over the answers, null without one; ``prompt_hash``."""
    places: pl.DataFrame
    """``PLACES, count``: answers by their place among the candidates shown, from 0."""
    popularity: pl.DataFrame
    """``POPULARITY, count, likes``: candidates and answers (``role``) by tenth of their quantile, with the sum of their
    likes."""
    relations: pl.DataFrame
    """``relation, count`` of the triples shown."""
    flaws: pl.DataFrame
    """``example_id, kind, line`` from ``text.find_flaws``; empty where the text was not read."""
    titles: pl.DataFrame
    """``count, other_script`` of the candidates' titles: all, and those with a letter outside the Latin script."""


def measure_shards(generate: Path, popularity: Mapping[str, pl.DataFrame], *, read_text: bool) -> Measures:
    """Read every shard once.

    Args:
        generate: folder of the stage.
        popularity: result of ``film_popularity``; the same for two runs that are compared, so that a difference is due
            to the choice of films.
        read_text: whether to look for flaws line by line; the lengths are counted in any case.

    Raises:
        InputError: there are no shards, or one has other columns than ``EXAMPLES``.
    """
    files = [(purpose, path) for purpose in PURPOSES.categories for path in parquet_files(generate, purpose)]
    parts = [_measure(read_rows(path, EXAMPLES), popularity[purpose], read_text=read_text) for purpose, path in files]
    return Measures(
        examples=pl.concat([part.examples for part in parts]),
        places=_summed([part.places for part in parts], PLACES),
        popularity=_summed([part.popularity for part in parts], POPULARITY),
        relations=_summed([part.relations for part in parts], ("relation",)),
        flaws=pl.concat([part.flaws for part in parts]),
        titles=pl.concat([part.titles for part in parts]).sum(),
    )


def _summed(parts: list[pl.DataFrame], keys: tuple[str, ...]) -> pl.DataFrame:
    return pl.concat(parts).group_by(keys).sum().sort(keys)


def _measure(examples: pl.DataFrame, popularity: pl.DataFrame, *, read_text: bool) -> Measures:
    texts = examples.select("example_id", prompt=joined("prompt"), completion=joined("completion"))
    shown = _shown(examples, popularity)
    titles = examples.select(title="candidate_titles").explode("title", empty_as_null=False)
    triples = examples.select(relation=_within("triples", "relation")).explode("relation", empty_as_null=False)
    return Measures(
        examples=_counted(examples, texts, shown),
        places=shown.filter("is_answer").group_by(PLACES).agg(count=pl.len()),
        popularity=pl.concat([_by_tenth(shown, "candidates"), _by_tenth(_answers(examples, popularity), "answers")]),
        relations=triples.group_by("relation").agg(count=pl.len()),
        flaws=find_flaws(texts if read_text else texts.clear()),
        titles=titles.select(count=pl.len(), other_script=pl.col("title").str.contains(r"[\p{L}&&[^\p{Latin}]]").sum()),
    )


def _counted(examples: pl.DataFrame, texts: pl.DataFrame, shown: pl.DataFrame) -> pl.DataFrame:
    with_triple = _within("triples", "movie_id")
    ahead = shown.filter("is_answer").group_by("example_id").agg(more_popular=pl.col("less_liked").mean())
    counted = examples.select(
        "example_id",
        "purpose",
        "unseen",
        template=pl.format("{} {}", "template_id", pl.col("template_sha256").str.head(8)),
        num_tokens="num_tokens",
        liked=pl.col("liked").list.len(),
        history="cutoff",
        num_candidates=pl.col("candidates").list.len(),
        bare=pl.col("candidates").list.set_difference(with_triple).list.len(),
        answers=pl.col("answers").list.len(),
        retrieved=pl.col("answers").list.set_intersection("candidates").list.len(),
        chars=PROMPT_CHARS + COMPLETION_CHARS,
        **LEFT_OUT,
    )
    counted = counted.with_columns(texts["prompt"].hash().alias("prompt_hash"))
    return counted.join(ahead, on="example_id", how="left", maintain_order="left")


def _shown(examples: pl.DataFrame, popularity: pl.DataFrame) -> pl.DataFrame:
    """One row per candidate: its place, likes and tenth, whether it is an answer, and ``less_liked``, the share of the
    example's other candidates that have fewer likes, ties half."""
    num_candidates = pl.col("candidates").list.len()
    answers = examples.select("example_id", movie_id="answers").explode("movie_id", empty_as_null=False)
    flat = (
        examples.select(
            "example_id",
            "purpose",
            movie_id="candidates",
            num_candidates=num_candidates,
            place=pl.int_ranges(num_candidates),
        )
        .explode("movie_id", "place", empty_as_null=False)
        .join(answers.with_columns(is_answer=pl.lit(True)), on=["example_id", "movie_id"], how="left")
        .with_columns(pl.col("is_answer").fill_null(False))
    )
    known = _with_likes(flat, popularity)
    order = pl.col("likes").rank("average").over("example_id")
    # undefined for a single candidate: NaN becomes null
    return known.with_columns(less_liked=((order - 1) / (pl.col("num_candidates").cast(pl.Int64) - 1)).fill_nan(None))


def _answers(examples: pl.DataFrame, popularity: pl.DataFrame) -> pl.DataFrame:
    """One row per answer, including answers that are not candidates."""
    flat = examples.select("purpose", movie_id="answers").explode("movie_id", empty_as_null=False)
    return _with_likes(flat, popularity)


def _with_likes(films: pl.DataFrame, popularity: pl.DataFrame) -> pl.DataFrame:
    known = films.join(popularity, on="movie_id", how="left", maintain_order="left").fill_null(0)
    return known.with_columns(tenth=(pl.col("quantile") * TENTHS).floor().clip(0, TENTHS - 1).cast(pl.Int8))


def _by_tenth(films: pl.DataFrame, role: str) -> pl.DataFrame:
    counts = films.group_by("purpose", "tenth").agg(count=pl.len(), likes=pl.col("likes").sum())
    return counts.select("purpose", pl.lit(role).alias("role"), "tenth", "count", "likes")


def _within(structs: str, field: str) -> pl.Expr:
    return pl.col(structs).list.eval(pl.element().struct.field(field))
