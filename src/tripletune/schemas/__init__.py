"""Column names and dtypes of every Parquet file that one stage writes and another reads.

A file is read through its schema, so a stage that writes something else fails at the border, by name.
Movie ids, user ids and times are MovieLens's own; ``position`` counts a viewer's rows in time order from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time

import polars as pl


def midnight(day: date) -> int:
    """How the beginning of a day (UTC) stands in a column ``timestamp``: whole seconds since 1970."""
    return int(datetime.combine(day, time.min, UTC).timestamp())


def _columns(columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.Schema:
    return pl.Schema(columns)


RATINGS = _columns({"user_id": pl.Int32, "movie_id": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64})
"""ingest/ratings.parquet: one row per kept rating, sorted by user and movie; seconds since 1970 UTC."""

MOVIES = _columns({"movie_id": pl.Int32, "title": pl.String, "year": pl.Int16, "genres": pl.List(pl.String)})
"""ingest/movies.parquet: ``title`` as in the release; ``year`` from its closing brackets, null if none;
``genres`` is empty for "(no genres listed)"."""

TAGS = _columns({"user_id": pl.Int32, "movie_id": pl.Int32, "tag": pl.String, "timestamp": pl.Int64})
LINKS = _columns({"movie_id": pl.Int32, "imdb_id": pl.String})
"""ingest/links.parquet: ``imdb_id`` as in IMDb's dumps: ``tt`` and at least seven digits."""

USERS = _columns({"user_id": pl.Int32, "gender": pl.String, "age": pl.Int32, "occupation": pl.String, "zip": pl.String})
"""ingest/users.parquet: demographics, which ml-1m (codes) and ml-100k (words) have; empty for the other releases."""

REJECTS = _columns({"file": pl.String, "line": pl.Int64, "column": pl.String, "value": pl.String, "reason": pl.String})
"""ingest/rejects.parquet: rows that were refused; ``line`` counts from 1, the header included."""

LIKE_LABELS = ("graph", "target", "valid", "test", "later")
SPLIT_LABELS = pl.Enum([*LIKE_LABELS, "other"])
SPLIT = _columns(
    {
        "user_id": pl.Int32,
        "movie_id": pl.Int32,
        "rating": pl.Float32,
        "timestamp": pl.Int64,
        "position": pl.Int32,
        "label": SPLIT_LABELS,
        "unseen": pl.Boolean,
    }
)
"""split/shard=NNN/part.parquet, sorted by user and position. ``LIKE_LABELS`` are the labels of likes: ``graph`` and
``target`` are learned from, ``valid`` and ``test`` are asked, ``later`` (protocol global_time) is neither, and evidence
of questions about later likes only. Every rating below the like threshold is ``other``. ``unseen`` viewers are in no
fit and no training example."""

ASKED = "asked.json"
"""In the split's folder where ``split.frozen`` is given: ``users``, whom valid and test questions are asked; without it
everybody who has such a like."""

FROZEN = _columns(
    {
        "user_id": pl.Int32,
        "purpose": pl.Enum(["valid", "test"]),
        "movie_id": pl.Int32,
        "timestamp": pl.Int64,
        "position": pl.Int32,
        "evidence": pl.UInt64,
    }
)
"""The file that ``tripletune freeze`` writes, sorted by user and purpose: an answer, its place in the viewer's order of
time, and a hash of the viewer's rows up to it."""

ENTITY_KINDS = pl.Enum(["movie", "genre", "decade", "tag", "person", "other"])
ENTITIES = _columns({"entity_id": pl.Int32, "key": pl.String, "kind": ENTITY_KINDS, "name": pl.String})
"""knowledge/entities.parquet: dense ids in order of kind and key; ``key`` such as ``movie:1``, ``genre:Drama``,
``person:nm0000116`` is stable across nights; ``name`` is null where the sources give none."""

RELATIONS = _columns({"relation_id": pl.Int16, "name": pl.String})
RELATION_NAMES = (
    "genre",
    "decade",
    "tag",
    "director",
    "writer",
    "actor",
    "cinematographer",
    "composer",
    "producer",
    "editor",
)
"""Relation ids 0..9; names from extra triples follow in alphabetical order."""

TRIPLES = _columns({"head": pl.Int32, "relation": pl.Int16, "tail": pl.Int32})
"""knowledge/triples.parquet: entity id of a movie, relation id, entity id; unique, sorted."""

COVERAGE = _columns(
    {
        "relation": pl.String,
        "triples": pl.Int64,
        "movies": pl.Int64,
        "share_of_movies": pl.Float64,
        "share_of_ratings": pl.Float64,
    }
)

TRAINED_ON = _columns({"user_id": pl.Int32, "movie_id": pl.Int32, "fit": pl.String})
"""rgat|lightgcn|sasrec|ease/trained_on.parquet: the likes each fit (``a`` or ``b``) was really trained on; the audit
reads it. Sorted by fit and user; of what is trained by steps a user's likes stand oldest first, and those of lightgcn
make the similar viewers."""

EASE_FILMS = _columns({"fit": pl.String, "row": pl.Int32, "movie_id": pl.Int32})
"""ease/movies.parquet: the film of each row and column of a fit's weights."""

CURVE = _columns({"fit": pl.String, "step": pl.Int32, "loss": pl.Float64, "valid_ndcg_at_10": pl.Float64})
"""rgat|lightgcn|sasrec/curve.parquet: one row per evaluation; ``valid_ndcg_at_10`` is null for fit a, which must not
look."""

ATTENTION = _columns(
    {"fit": pl.String, "movie_id": pl.Int32, "relation": pl.String, "entity": pl.String, "alpha": pl.Float32}
)
"""rgat/attention.parquet: weight of each real triple of a film, renormalised so that a film's sum to one."""

PURPOSES = pl.Enum(["train", "valid", "test"])
ANSWER_LABEL = {"train": "target", "valid": "valid", "test": "test"}
"""Label of the likes that are the answers of each purpose."""
QUESTION = ("user_id", "purpose", "cutoff")
"""What identifies an example: a viewer, a purpose and the position up to which the viewer's rows are known. Valid and
test ask a viewer once, train as often as ``retrieve.train_cutoffs`` says."""
RETRIEVED = _columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "unseen": pl.Boolean,
        "cutoff": pl.Int32,
        "candidates": pl.List(pl.Int32),
        "ranking": pl.List(pl.Int32),
        "similar": pl.List(pl.Int32),
    }
)
"""retrieve/retrieved/shard=NNN.parquet, sorted by question. Everything is computed from the viewer's rows with
``position < cutoff``, the position of the first answer. ``candidates`` in the retriever's order (shown shuffled),
``ranking`` is hint 1 (the first of the candidates in LightGCN's order, whoever retrieved them), ``similar`` what
similar viewers liked."""

SAMPLE = _columns({"user_id": pl.Int32, "likes": pl.Int32, "decile": pl.Int8, "cluster": pl.Int16, "draws": pl.Int32})
"""retrieve/sample.parquet, where ``sample.method`` is not ``all``: every viewer whom a training question can be asked,
sorted by user. ``likes`` before the cutoff, their ``decile`` among these viewers (0 the fewest), the ``cluster`` (null
where the method makes none), and how often the viewer was drawn: 0 is not asked for training."""

CHOICES = _columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "cutoff": pl.Int32,
        "movie_id": pl.Int32,
        "rank": pl.Int8,
        "relation": pl.String,
        "entity": pl.String,
        "entity_name": pl.String,
        "score": pl.Float32,
    }
)
"""retrieve/choices/shard=NNN.parquet: the triples chosen for a viewer's candidates and liked films; rank from 0."""

PROFILES = _columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "cutoff": pl.Int32,
        "relation": pl.String,
        "films": pl.Int32,
        "mass": pl.Float32,
        "attention": pl.Float32,
    }
)
"""retrieve/profiles/shard-NNN.parquet, sorted by question and relation: the viewer's preference profile.
``films``: liked films before the cutoff of which a fact is known, the same in each row of a question; ``mass``: the
R-GAT's posterior over a film's triples for this viewer, summed by relation, mean over the films; ``attention``: the
same without the viewer, alpha alone. Both sum to one over a question's rows; relations that no such film has are left
out."""

COUNTS = _columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "cutoff": pl.Int32,
        "answers": pl.Int32,
        "hits": pl.Int32,
        "pairs": pl.Int32,
        "told": pl.Int32,
    }
)
"""retrieve/counts/shard-NNN.parquet, sorted by question, for the manifest: held-out likes, how many of them are
candidates, films that hint 2 is chosen for, and how many of them have a triple."""

VIEWERS = _columns({"user_id": pl.Int32, "ratings": pl.Int32, "films": pl.UInt64, "rows": pl.UInt64})
"""retrieve/viewers/shard-NNN.parquet, sorted by user: what the questions of a viewer can see, by which a later night
finds whom it must ask again. ``ratings`` up to the last answer; sums of the hashes of their films, and of whole rows
(film, rating, position, label, unseen)."""

RANKINGS = _columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "cutoff": pl.Int32,
        "unseen": pl.Boolean,
        "retriever": pl.String,
        "answer": pl.Int32,
        "top": pl.List(pl.Int32),
    }
)
"""retrieve/rankings.parquet: full-catalogue top films of each of ``RETRIEVERS`` for valid and test, same mask."""
RETRIEVERS = ("popularity", "lightgcn", "rgat")
"""Retrievers that every run ranks by."""
FURTHER_RETRIEVERS = ("ease-plain", "ease", "sasrec", "fused")
"""Retrievers that a run may rank by besides. ``ease`` weighs a viewer's history by recency, ``ease-plain`` does not;
both are there when the catalogue fits ``retrieve.ease_max_films`` or when candidates come of EASE. ``sasrec`` is there
where it was trained, ``fused`` where it is the retriever."""

MESSAGE = pl.Struct({"role": pl.String, "content": pl.String})
SHORTENED = pl.Struct({"liked": pl.Int16, "disliked": pl.Int16, "similar": pl.Int16, "triples": pl.Int16})
EXAMPLE_ID = (
    pl.when(pl.col("purpose") == "train")
    .then(pl.format("{}:train:{}", "user_id", "cutoff"))
    .otherwise(pl.format("{}:{}", "user_id", pl.col("purpose").cast(pl.String)))
    .alias("example_id")
)
"""``<user>:valid`` and ``<user>:test``, of which a viewer has one each, and ``<user>:train:<cutoff>``: unique, and made
of the question alone, so that an example keeps its id however many others its viewer has."""
PROMPT_CHARS = pl.col("prompt").list.eval(pl.element().struct.field("content").str.len_chars()).list.sum()
"""Characters of an example's prompt, all messages together."""
TRIPLE = pl.Struct({"movie_id": pl.Int32, "relation": pl.String, "entity": pl.String, "entity_name": pl.String})
EXAMPLES = _columns(
    {
        "example_id": pl.String,
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "unseen": pl.Boolean,
        "cutoff": pl.Int32,
        "prompt": pl.List(MESSAGE),
        "completion": pl.List(MESSAGE),
        "answers": pl.List(pl.Int32),
        "candidates": pl.List(pl.Int32),
        "candidate_titles": pl.List(pl.String),
        "candidate_letters": pl.List(pl.String),
        "retrieved": pl.List(pl.Int32),
        "liked": pl.List(pl.Int32),
        "disliked": pl.List(pl.Int32),
        "ranking": pl.List(pl.Int32),
        "similar": pl.List(pl.Int32),
        "triples": pl.List(TRIPLE),
        "num_tokens": pl.Int32,
        "shortened": SHORTENED,
        "template_id": pl.String,
        "template_sha256": pl.String,
        "lightgcn": pl.String,
        "rgat": pl.String,
    }
)
"""generate/<purpose>/shard-NNN.parquet, the product, sorted by user; column by column in ``EXAMPLE_COLUMNS``."""
EXAMPLE_COLUMNS = {
    "example_id": "`<user>:train:<cutoff>`, `<user>:valid` or `<user>:test`, unique",
    "user_id": "the viewer, as in the release",
    "purpose": "train, valid or test, as the folder",
    "unseen": "the viewer is in no fit and in no training example",
    "cutoff": "place of the first answer in the viewer's order of time, from 0; all that is shown comes from before",
    "prompt": "chat messages: system and user",
    "completion": "chat message: the answer, five of the candidates",
    "answers": "train: the target likes (from the cutoff on) among the candidates, best rated first, then in the "
    "retriever's order, five at most, as in the completion; valid and test: the one held-out like, also when it is not "
    "a candidate",
    "candidates": "films to choose from, in the order shown",
    "candidate_titles": "their titles exactly as in the prompt, distinct within it",
    "candidate_letters": "the labels before them that an answer names them by; empty where answers are titles",
    "retrieved": "the candidates in the retriever's order",
    "liked": "liked films shown, newest first; like the next four, empty where the template has no such section",
    "disliked": "disliked films shown, newest first",
    "ranking": "hint 1: the first of the candidates in LightGCN's order",
    "similar": "hint 1: films that similar viewers liked",
    "triples": "hint 2: the facts shown, as chosen by the R-GAT",
    "num_tokens": "tokens of prompt and completion under the model's chat template; null for the tiny model, whose "
    "tokenizer is trained on the prompts",
    "shortened": "films and facts left out of each list to keep within `prompt.max_tokens`",
    "template_id": "name of the template",
    "template_sha256": "hash of what the template says",
    "lightgcn": "fingerprint of the LightGCN that wrote hint 1",
    "rgat": "fingerprint of the R-GAT that wrote hint 2",
}
"""What each column of ``EXAMPLES`` means, as the data card says it."""

PROVEN = _columns(
    {"group": pl.String, "example_id": pl.String, "example": pl.UInt64, "viewer": pl.UInt64, "clear": pl.Boolean}
)
"""generate/audit/proven.parquet, in the order of the shards: the audit's notes of the examples, for a later night; it
found a leak in none. ``group`` is the first of the shards that were audited together; ``example`` is a digest of the
whole row, ``viewer`` of all its viewer's rows in the split; ``clear``: in this group each of its candidates has one
title, which no other has."""

SYSTEMS = ("random", "retriever", "untuned", "tuned")
PREDICTIONS = _columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "system": pl.String,
        "constrained": pl.Boolean,
        "answers": pl.List(pl.Int32),
        "valid": pl.Boolean,
        "text": pl.String,
    }
)
"""rank/predictions.parquet: five films per viewer. ``answers`` are the distinct candidates read from ``text``, in
order; ``valid`` says that the text held exactly the asked number of distinct candidates and nothing else."""


def conform(frame: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    """Select and cast the columns of ``schema``, in its order.

    Raises:
        polars.exceptions.ColumnNotFoundError, InvalidOperationError: a column is missing or a value does not fit.
    """
    return frame.select(pl.col(name).cast(dtype, strict=True) for name, dtype in schema.items())
