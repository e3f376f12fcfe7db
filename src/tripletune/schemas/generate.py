"""Columns of the generate stage's files: the examples, and the audit's record of them."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns
from tripletune.schemas.hint import EVIDENCE
from tripletune.schemas.hints import HINTS, SPECIALISTS, written_by
from tripletune.schemas.query import PURPOSES

MESSAGE = pl.Struct({"role": pl.String, "content": pl.String})
SHORTENED = pl.Struct(dict.fromkeys((*EVIDENCE, *(hint.name for hint in HINTS if hint.shortened)), pl.Int16))
_PURPOSE = pl.col("purpose").cast(pl.String)
EXAMPLE_ID = (
    pl.when((pl.col("purpose") == "train") | (pl.len().over("user_id", "purpose") > 1))
    .then(pl.format("{}:{}:{}", "user_id", _PURPOSE, "cutoff"))
    .otherwise(pl.format("{}:{}", "user_id", _PURPOSE))
    .alias("example_id")
)
"""``<user>:<purpose>:<cutoff>``; of a valid or test query that is the user's only one ``<user>:<purpose>``. Unique, and
for users whose examples are all rendered together the same whichever others are: a training id does not depend on the
user's other examples, and of valid and test either all of a user's queries are reused or none."""
LEFT_OUT = {f"left_out_{name}": pl.col("shortened").struct.field(name) for name in SHORTENED.to_schema()}
"""Metric name -> number of films or facts dropped from a list of an example."""
PROMPT_CHARS, COMPLETION_CHARS = (
    pl.col(messages).list.eval(pl.element().struct.field("content").str.len_chars()).list.sum()
    for messages in ("prompt", "completion")
)
"""Characters of an example's prompt and of its completion, all messages together."""
EXAMPLES = columns(
    {
        "example_id": pl.String,
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "unseen": pl.Boolean,
        "cutoff": pl.Int32,
        "prompt": pl.List(MESSAGE),
        "completion": pl.List(MESSAGE),
        "answers": pl.List(pl.Int32),
        "answer_ratings": pl.List(pl.Float32),
        "candidates": pl.List(pl.Int32),
        "candidate_titles": pl.List(pl.String),
        "candidate_letters": pl.List(pl.String),
        "retrieved": pl.List(pl.Int32),
        "liked": pl.List(pl.Int32),
        "disliked": pl.List(pl.Int32),
        **{hint.name: hint.dtype for hint in HINTS},
        "worked": pl.List(pl.String),
        "num_tokens": pl.Int32,
        "shortened": SHORTENED,
        "template_id": pl.String,
        "template_sha256": pl.String,
        **{specialist.stage: pl.String for specialist in SPECIALISTS},
    }
)
"""generate/<purpose>/shard-NNN.parquet, the product, sorted by user; column by column in ``EXAMPLE_COLUMNS``."""
EXAMPLE_COLUMNS = {
    "example_id": "`<user>:<purpose>:<cutoff>`, without the cutoff for a user's only valid or test query; unique",
    "user_id": "the user, as in the release",
    "purpose": "train, valid or test, as the folder",
    "unseen": "the user is in no fit and in no training example",
    "cutoff": "position of the first answer among the user's rows in order of time, from 0; the likes and dislikes "
    "shown come before it",
    "prompt": "chat messages: system and user",
    "completion": "chat message: five of the candidates, the answers first, then others in an order that the prompt "
    "shows: the retriever's where candidates' lines show their place in it, else that of `ranking`, then that of the "
    "candidates",
    "answers": "train: the target likes (from the cutoff on) among the candidates, best rated first, then in the "
    "retriever's order, five at most, as in the completion; valid and test: the one held-out like, also when it is not "
    "a candidate",
    "answer_ratings": "the user's ratings of the answers, in their order; no prompt shows them",
    "candidates": "films to choose from, in the order shown",
    "candidate_titles": "their titles exactly as in the prompt, distinct within it",
    "candidate_letters": "the candidates' labels, by which an answer names them; empty where answers are titles",
    "retrieved": "the candidates in the retriever's order",
    "liked": "liked films shown, newest first; like the dislikes and the hints, empty where the template does not show "
    "them; a hint that candidates' lines show is about candidates alone",
    "disliked": "disliked films shown, newest first",
    **{hint.name: f"hint {hint.number}: {hint.meaning}" for hint in HINTS},
    "worked": "ids of the worked examples in the prompt, in their order; the same in all examples of a run",
    "num_tokens": "tokens of prompt and completion under the model's chat template; null for the tiny model, whose "
    "tokenizer is trained on the prompts",
    "shortened": "films and facts dropped from each list to keep within `prompt.max_tokens`",
    "template_id": "name of the template",
    "template_sha256": "hash of the template's content",
    **{one.stage: f"fingerprint of the {one.label} that wrote {written_by(one)}" for one in SPECIALISTS},
}
"""Meaning of each column of ``EXAMPLES``, for the data card."""

PROVEN = columns(
    {"group": pl.String, "example_id": pl.String, "example": pl.UInt64, "viewer": pl.UInt64, "clear": pl.Boolean}
)
"""generate/audit/proven.parquet, in the order of the shards: record of the audited examples, for later runs; the audit
found no leak in any.

Columns:
    group: first of the shards that were audited together
    example_id: as in EXAMPLES
    example: digest of the whole row
    viewer: digest of the user's rows in the split
    clear: in this group each candidate has one title, and no other film has it
"""
