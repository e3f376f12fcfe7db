"""Audit rules on columns: joins of whole shards with the split's rows, without loops over examples.

A finding lists ``example_id, detail`` of all examples that break one rule in one way, each example once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import polars as pl

from tripletune.schemas.hint import EVIDENCE, NEWEST_LIKES, Hint
from tripletune.schemas.hints import HINTS, TOPIC_HINTS
from tripletune.schemas.query import ANSWER_LABEL, FIT_LABELS, FIT_OF
from tripletune.schemas.split import LIKE_LABELS

MASKED = ("candidates", "retrieved", *(hint.name for hint in HINTS if hint.masked))
"""Columns that may not hold films that the user rated before the cutoff."""
_WITHIN = {
    **{hint.name: hint.within for hint in HINTS if hint.within},
    "retrieved": ("candidates",),
    "candidates": ("retrieved",),
}
"""Column -> the columns that its films must come from."""


class Finding(NamedTuple):
    """One way of breaking a rule; ``rows`` has ``example_id`` (or another subject) and ``detail``, both strings."""

    rule: int
    kind: str
    rows: pl.DataFrame


def pair(first: str) -> pl.Expr:
    """Two 32-bit ids as one unique number, which joins several times as fast as two columns; null where one is null."""
    return pl.col(first).cast(pl.Int64) * (1 << 32) + pl.col("movie_id").cast(pl.Int64)


def listed_films(hint: Hint) -> pl.Expr:
    """Films in the column of a hint of films or triples, as a list of movie ids."""
    if hint.kind == "triples":
        return pl.col(hint.name).list.eval(pl.element().struct.field("movie_id"))
    return pl.col(hint.name)


def liked_films(trained: pl.LazyFrame) -> dict[str, pl.DataFrame]:
    """By purpose, the films that some user liked in the rows of the fit that writes its hints: ``movie_id``.

    Args:
        trained: TRAINED_ON of the specialist whose hint must name such films; of an earlier run if it is pinned.
    """
    films = {
        fit: trained.filter(pl.col("fit") == fit).select("movie_id").unique().collect(engine="streaming")
        for fit in FIT_LABELS
    }
    return {purpose: films[fit] for purpose, fit in FIT_OF.items()}


def pinned_findings(specialist: str, trained: pl.LazyFrame, asked: pl.DataFrame) -> Iterator[Finding]:
    """Rule 1 for a specialist of an earlier run: no fit was trained on an answer, or on an unseen user, of this run.

    Args:
        specialist: as in ``fit_findings``.
        trained: TRAINED_ON of all users.
        asked: answers of this run: ``example_id, user_id, unseen, fit`` (the one that writes the hints), ``movie_id``.
    """
    column = pl.lit(f"{specialist} was trained on").alias("column")
    answers = asked.with_columns(pair=pair("user_id"))
    parts = []
    for (fit,), part in answers.group_by("fit"):
        learned = trained.filter(pl.col("fit") == fit).select(pair=pair("user_id"))
        # the hash table is built from the answers, which are far fewer than the training rows
        known = learned.join(part.lazy().select("pair"), on="pair", how="semi").collect(engine="streaming")
        parts.append(part.join(known, on="pair", how="semi"))
    found = pl.concat([answers.clear(), *parts]).sort("example_id", "movie_id").with_columns(column)
    yield Finding(1, "a pinned fit was trained on the answer", _details(found))
    unseen = asked.filter("unseen")
    viewers = trained.select("user_id").join(unseen.lazy(), on="user_id", how="semi").collect(engine="streaming")
    found = unseen.join(viewers, on="user_id", how="semi").sort("example_id", "movie_id").with_columns(column)
    yield Finding(1, "a pinned fit was trained on a user marked as unseen", _details(found))


def fit_findings(specialist: str, trained: pl.DataFrame, rows: pl.DataFrame) -> Iterator[Finding]:
    """Rule 1: fit a is trained on graph likes, fit b on graph and target likes, and neither on an unseen user.

    Args:
        specialist: ``rgat``, ``lightgcn``, ``sasrec`` or ``ease``.
        trained: TRAINED_ON of some users.
        rows: the split's rows of the same users.
    """
    facts = rows.select("label", "unseen", pair=pair("user_id"))
    joined = trained.with_columns(pair=pair("user_id")).join(facts, on="pair", how="left", maintain_order="left")
    subject = pl.format(f"{specialist} fit {{}}, user {{}}", "fit", "user_id")

    def found(kind: str, condition: pl.Expr) -> Finding:
        bad = joined.filter(condition).with_columns(example_id=subject, column=pl.lit("trained on"))
        return Finding(1, kind, _details(bad))

    yield found("unknown fit", ~pl.col("fit").is_in(list(FIT_LABELS)).fill_null(False))
    yield found("trained on a row that the split does not hold", pl.col("label").is_null())
    for fit, labels in FIT_LABELS.items():
        not_its_own = (pl.col("fit") == fit) & ~pl.col("label").is_in(labels)
        yield found(f"fit {fit} trained on more than {' and '.join(labels)} likes", not_its_own)
    yield found("trained on an unseen user", pl.col("unseen"))


def read_findings(specialist: str, read: pl.DataFrame, trained: pl.DataFrame, rows: pl.DataFrame) -> Iterator[Finding]:
    """Rule 1 for a model that also reads ratings that are no likes: none after the last like that its fit trains on.

    Args:
        specialist: ``sequence``.
        read: READ_BY of some users: ratings that are no likes.
        trained: TRAINED_ON of the same users.
        rows: the split's rows of the same users.
    """
    facts = rows.select("label", "unseen", "position", pair=pair("user_id"))
    last = (
        trained.with_columns(pair=pair("user_id"))
        .join(facts, on="pair")
        .group_by("user_id", "fit")
        .agg(last=pl.col("position").max())
    )
    joined = (
        read.with_columns(pair=pair("user_id"))
        .join(facts, on="pair", how="left", maintain_order="left")
        .join(last, on=["user_id", "fit"], how="left", maintain_order="left")
    )
    subject = pl.format(f"{specialist} fit {{}}, user {{}}", "fit", "user_id")

    def found(kind: str, condition: pl.Expr) -> Finding:
        bad = joined.filter(condition).with_columns(example_id=subject, column=pl.lit("read in training"))
        return Finding(1, kind, _details(bad))

    yield found("reads a row that the split does not hold", pl.col("label").is_null())
    yield found("reads a like that it is not trained on", pl.col("label") != "other")
    yield found("reads a rating of an unseen user", pl.col("unseen"))
    yield found(
        "reads a rating after the last like of its fit",
        pl.col("label").is_not_null() & (pl.col("position") > pl.col("last")).fill_null(value=True),
    )


def column_findings(
    examples: pl.DataFrame, rows: pl.DataFrame, films: Mapping[str, Mapping[str, pl.DataFrame]], purpose: str
) -> Iterator[Finding]:
    """Rules 2 to 4 on some examples of one purpose.

    Args:
        examples: EXAMPLES; they are checked as ``purpose``, their folder, whatever their own column holds.
        rows: the split's rows of their users.
        films: ``liked_films`` by stage of the specialists whose hints must name such films.
        purpose: train, valid or test.
    """
    facts = rows.select("user_id", "movie_id", "position", "label")
    rated = facts.select("position", "label", pair=pair("user_id"))
    listed = _listed(examples).join(rated, on="pair", how="left", maintain_order="left")
    yield from _example_findings(examples, rows, purpose)
    yield from _rating_findings(examples, rows)
    yield from _order_findings(examples, listed, facts, purpose)
    yield from _topic_findings(examples, rows)
    yield from _evidence_findings(listed)
    yield from _label_findings(listed, films, purpose)


def _example_findings(examples: pl.DataFrame, rows: pl.DataFrame, purpose: str) -> Iterator[Finding]:
    """Compare an example's own columns with its folder and the split."""
    num_held_out = (pl.col("label") == ANSWER_LABEL[purpose]).sum()
    viewers = rows.group_by("user_id").agg(pl.col("unseen").max().alias("is_unseen"), num_held_out=num_held_out)
    known = examples.select("example_id", "user_id", "purpose", "cutoff", "unseen", "answers").join(
        viewers, on="user_id", how="left", maintain_order="left"
    )
    detail = pl.format("user {}", "user_id")

    def found(rule: int, kind: str, condition: pl.Expr) -> Finding:
        return Finding(rule, kind, known.filter(condition).select("example_id", detail=detail))

    yield found(0, "user without rows in the split", pl.col("is_unseen").is_null())
    has_cutoff = (pl.col("num_held_out") > 1) | (purpose == "train")
    named = pl.concat_str(["user_id", pl.col("purpose").cast(pl.String)], separator=":")
    named = pl.when(has_cutoff).then(pl.concat_str([named, "cutoff"], separator=":")).otherwise(named)
    yield found(0, "example id of another query", pl.col("example_id") != named)
    yield found(0, "unseen mark differs from the split", pl.col("unseen") != pl.col("is_unseen"))
    yield found(0, "example without an answer", pl.col("answers").list.len().fill_null(0) == 0)
    yield found(4, "example of another purpose in the folder", pl.col("purpose").cast(pl.String) != purpose)
    if purpose == "train":
        yield found(4, "unseen user in a training example", pl.col("is_unseen") | pl.col("unseen"))
    else:
        yield found(0, "more than one answer held out", pl.col("answers").list.len() > 1)


def _rating_findings(examples: pl.DataFrame, rows: pl.DataFrame) -> Iterator[Finding]:
    """Compare the ratings of the answers with the split's; a training may weigh the answers by them."""
    ragged = pl.col("answers").list.len().ne_missing(pl.col("answer_ratings").list.len())
    detail = pl.lit("answer_ratings").alias("detail")
    yield Finding(0, "answers and ratings differ in number", examples.filter(ragged).select("example_id", detail))
    stated = (
        examples.filter(~ragged)
        .select("example_id", "user_id", movie_id="answers", stated="answer_ratings")
        .explode("movie_id", "stated", empty_as_null=False)
    )
    # an answer that the user never rated breaks rule 4
    known = stated.with_columns(pair=pair("user_id"), column=pl.lit("answer")).join(
        rows.select("rating", pair=pair("user_id")), on="pair", maintain_order="left"
    )
    wrong = known.filter(pl.col("stated").ne_missing(pl.col("rating")))
    yield Finding(0, "rating of an answer differs from the split", _details(wrong))


def _order_findings(
    examples: pl.DataFrame, listed: pl.DataFrame, facts: pl.DataFrame, purpose: str
) -> Iterator[Finding]:
    """Rule 2: all evidence of an example precedes its first answer, for any of the user's cutoffs; and the answer of a
    valid or test example stands at the cutoff: a later one would have hidden evidence, or answer two examples."""
    held_out = facts.filter(pl.col("label") == ANSWER_LABEL[purpose]).select("user_id", cutoff="position")
    stray = examples.join(held_out, on=["user_id", "cutoff"], how="anti", maintain_order="left")
    yield Finding(
        2, "no held-out like at the cutoff", stray.select("example_id", detail=pl.format("cutoff {}", "cutoff"))
    )
    position = pl.col("position")
    before = position < pl.col("cutoff")
    evidence, masked = pl.col("column").is_in(EVIDENCE), pl.col("column").is_in(MASKED)
    answer = pl.col("column") == "answers"
    yield Finding(2, "answer before the cutoff", _details(listed.filter(answer & before)))
    if purpose != "train":
        yield Finding(2, "answer after the cutoff", _details(listed.filter(answer & (position > pl.col("cutoff")))))
    yield Finding(2, "evidence that does not precede the cutoff", _details(listed.filter(evidence & ~before)))
    yield Finding(2, "evidence that the user never rated", _details(listed.filter(evidence & position.is_null())))
    yield Finding(2, "shown film was rated before the cutoff", _details(listed.filter(masked & before)))
    yield from _membership_findings(listed)


def _membership_findings(listed: pl.DataFrame) -> Iterator[Finding]:
    """Rule 2: hints are about films that the prompt shows; the retriever's order is a permutation of the candidates."""
    for column, within in _WITHIN.items():
        inside = listed.filter(pl.col("column").is_in(within)).select("shown")
        outside = listed.filter(pl.col("column") == column).join(inside, on="shown", how="anti", maintain_order="left")
        yield Finding(2, f"{column} name a film outside {' and '.join(within)}", _details(outside))


def _topic_findings(examples: pl.DataFrame, rows: pl.DataFrame) -> Iterator[Finding]:
    """Rule 2: topics count likes before the cutoff, of which there are at least as many; that they are the right ones
    is for ``requeried`` to show."""
    if not TOPIC_HINTS:
        return
    before = examples.select("example_id", "user_id", "cutoff").join(
        rows.filter(pl.col("label").is_in(LIKE_LABELS)), on="user_id"
    )
    likes = before.filter(pl.col("position") < pl.col("cutoff")).group_by("example_id").len("likes")
    for hint in TOPIC_HINTS:
        shown = examples.select("example_id", topic=hint.name).explode("topic", empty_as_null=False).unnest("topic")
        known = shown.join(likes, on="example_id", how="left", maintain_order="left").with_columns(
            pl.col("likes").fill_null(0)
        )
        films, recent = pl.col("films"), pl.col("recent")
        wrong = (
            (films < 1) | (films > pl.col("likes")) | (recent < 0) | (recent > pl.min_horizontal(films, NEWEST_LIKES))
        )
        detail = pl.format("{} {}: {} of {} likes, {} recent", "relation", "entity", "films", "likes", "recent")
        bad = known.filter(wrong | (pl.struct("example_id", "relation", "entity").is_duplicated()))
        by_example = bad.group_by("example_id", maintain_order=True).agg(detail=detail.str.join(", "))
        yield Finding(2, f"{hint.name} that the likes before the cutoff cannot have", by_example)


def _evidence_findings(listed: pl.DataFrame) -> Iterator[Finding]:
    """Rule 3: an answer is never in the evidence."""
    answers = listed.filter(pl.col("column") == "answers").select("shown")
    evidence = listed.filter(pl.col("column").is_in(EVIDENCE))
    yield Finding(3, "answer in the evidence", _details(evidence.join(answers, on="shown", how="semi")))


def _label_findings(
    listed: pl.DataFrame, films: Mapping[str, Mapping[str, pl.DataFrame]], purpose: str
) -> Iterator[Finding]:
    """Rule 4: answers have the label of their purpose, and no test like is used for another purpose."""
    answer = pl.col("column") == "answers"
    wrong = listed.filter(answer, pl.col("label").ne_missing(ANSWER_LABEL[purpose]))
    yield Finding(4, f"answer of a {purpose} example is not a {ANSWER_LABEL[purpose]} like", _details(wrong))
    if purpose != "test":
        own = listed.filter(answer | pl.col("column").is_in(EVIDENCE), pl.col("label") == "test")
        yield Finding(4, f"test like in a {purpose} example", _details(own))
    for hint in HINTS:
        if hint.liked_in_fit:
            liked = films[hint.specialist.stage][purpose]
            strange = listed.filter(pl.col("column") == hint.name).join(liked, on="movie_id", how="anti")
            yield Finding(4, f"{hint.liked_in_fit} that nobody liked in the rows of the fit", _details(strange))


def _listed(examples: pl.DataFrame) -> pl.DataFrame:
    """One row per film and column of an example: ``example_id, row, cutoff, column, movie_id`` and two join keys:
    ``pair`` of user and film, ``shown`` of example and film."""
    films = {name: pl.col(name) for name in ("answers", *EVIDENCE, "candidates", "retrieved")}
    films |= {hint.name: listed_films(hint) for hint in HINTS if hint.kind != "topics"}
    names = pl.Enum(list(films))
    numbered = examples.with_row_index("row")
    parts = [
        numbered.select(
            "example_id", "row", "user_id", "cutoff", pl.lit(name, names).alias("column"), movie_id=expression
        )
        .explode("movie_id", empty_as_null=False)
        .with_columns(pl.col("movie_id").cast(pl.Int32))
        for name, expression in films.items()
    ]
    return pl.concat(parts).with_columns(pair=pair("user_id"), shown=pair("row"))


def _details(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per example, with the columns and films that break the rule."""
    return (
        rows.with_columns(detail=pl.format("{} {}", "column", "movie_id"))
        .group_by("example_id", maintain_order=True)
        .agg(pl.col("detail").unique(maintain_order=True).str.join(", "))
    )
