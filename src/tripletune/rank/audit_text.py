"""The audit's look at the text itself: what the model reads and learns must say what the columns say.

Columns without a leak prove nothing if the text was rendered from something else. Only titles are looked for, so the
audit knows no template.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from tripletune.rank.audit_rules import Finding


def text_findings(examples: pl.DataFrame, purpose: str) -> Iterator[Finding]:
    """Titles in prompts and completions of one shard.

    Args:
        examples: EXAMPLES.
        purpose: train, valid or test: in ``train`` the completion must name the answers, in their order; elsewhere it
            may name no candidate but the answer.
    """
    texts = examples.select(
        "example_id",
        "answers",
        "candidates",
        titles="candidate_titles",
        prompt=_joined("prompt"),
        completion=_joined("completion"),
    )
    ragged = pl.col("candidates").list.len() != pl.col("titles").list.len()
    yield Finding(
        0, "candidates and titles differ in number", texts.filter(ragged).select("example_id", detail=pl.lit("columns"))
    )
    whole = texts.filter(~ragged)
    repeated = pl.col("titles").list.n_unique() < pl.col("titles").list.len()
    yield Finding(
        0, "two candidates share a title", whole.filter(repeated).select("example_id", detail=pl.lit("titles"))
    )
    shown = whole.select("example_id", "prompt", "titles").explode("titles", empty_as_null=False)
    absent = shown.filter(~pl.col("prompt").str.contains(pl.col("titles"), literal=True))
    yield Finding(
        0,
        "candidate's title is not in the prompt",
        absent.group_by("example_id", maintain_order=True).agg(detail=pl.col("titles").str.join(", ")),
    )
    yield from _completion_findings(whole, purpose)


def _completion_findings(texts: pl.DataFrame, purpose: str) -> Iterator[Finding]:
    """Rule 3: what is learnt, or compared with, is the answers' titles and no other candidate's."""
    pairs = texts.select("example_id", movie_id="candidates", title="titles").explode("movie_id", "title")
    wanted = (
        texts.select("example_id", movie_id="answers")
        .explode("movie_id", empty_as_null=False)
        .join(pairs, on=["example_id", "movie_id"], how="left", maintain_order="left")
        .group_by("example_id", maintain_order=True)
        .agg(wanted=pl.col("title").drop_nulls(), num_outside=pl.col("title").is_null().sum())
    )
    # longest first: where one title begins like another, the longer one is meant
    longest = pairs.sort(pl.col("title").str.len_bytes(), descending=True, maintain_order=True)
    patterns = longest.group_by("example_id", maintain_order=True).agg(patterns="title")
    found = (
        texts.select("example_id", "completion")
        .join(patterns, on="example_id", maintain_order="left")
        .join(wanted, on="example_id", maintain_order="left")
        .with_columns(found=pl.col("completion").str.extract_many("patterns", leftmost=True))
    )
    detail = pl.format("says: {}", pl.col("completion").str.replace_all("\n", " | "))
    if purpose == "train":
        outside = found.filter(pl.col("num_outside") > 0)
        yield Finding(3, "answer of a training example is no candidate", outside.select("example_id", detail=detail))
        differs = pl.col("found") != pl.col("wanted")
    else:
        differs = pl.col("found").list.set_difference(pl.col("wanted")).list.len() > 0
    yield Finding(3, "completion does not say the answers", found.filter(differs).select("example_id", detail=detail))


def _joined(messages: str) -> pl.Expr:
    """The text of all messages of a chat, one after the other."""
    return pl.col(messages).list.eval(pl.element().struct.field("content")).list.join("\n")
