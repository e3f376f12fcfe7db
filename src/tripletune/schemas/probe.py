"""Columns of the probe stage's files: what changes in the answers when one thing in the prompt changes.

``system`` is ``tuned``, the language model alone, or ``tuned+retriever``, what is served where the contract says how.
Log-probabilities are in nats and among the prompt's candidates. Of several right answers (training examples) the mean
of their log-probabilities counts, as in the loss over labels.
"""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns
from tripletune.schemas.query import PURPOSES

_KEY: dict[str, pl.DataType | type[pl.DataType]] = {
    "example_id": pl.String,
    "user_id": pl.Int32,
    "purpose": PURPOSES,
    "cutoff": pl.Int32,
    "system": pl.String,
}
_CHANGED: dict[str, pl.DataType | type[pl.DataType]] = {
    "before": pl.Float64,
    "change": pl.Float64,
    "distance": pl.Float64,
    "first_changed": pl.Boolean,
}

CONTROL = "nothing"
"""Name of the part, and of the perturbation, under which a prompt stays as it is and is scored again."""

RELIANCE_NAME = "reliance.parquet"
RELIANCE = columns({**_KEY, "part": pl.String, **_CHANGED})
"""probe/reliance.parquet, sorted by example, system and part: one part of the prompt is not rendered, or every fact of
hint 2 is another film's. Only examples with an answer among the candidates, and parts that the prompt has.

Columns:
    example_id: as in EXAMPLES
    system: tuned, or tuned+retriever
    part: likes, dislikes, hint 1, hint 2, the retriever's places, other films' facts (in place of those of hint 2), or
        nothing, the whole prompt scored again
    before: the right answer's log-probability under the whole prompt
    change: of the right answer's log-probability by the part, with it minus without it; above 0: the part helps
    distance: between the candidates' probabilities with and without the part, total variation, 0 to 1
    first_changed: the first answer is another film without the part
"""

FACT_CHANGES_NAME = "facts.parquet"
FACT_CHANGES = columns(
    {
        **_KEY,
        "movie_id": pl.Int32,
        "relation": pl.String,
        "entity": pl.String,
        "how": pl.Enum(["without", "swapped"]),
        "share": pl.Float64,
        **_CHANGED,
    }
)
"""probe/facts.parquet, sorted by example, system and fact: one fact of hint 2 is not rendered, or is another film's.
Of each example a stable draw of its facts. Rows whose ``purpose`` is not train must not train or tune anything.

Columns:
    example_id: as in EXAMPLES
    system: tuned, or tuned+retriever
    movie_id: the film that the fact is about
    relation: name of the relation
    entity: key of the entity
    how: without the fact, or with another film's fact of the same relation in its place
    share: probability with which the fact was drawn from those of its example
    before: the right answer's log-probability under the whole prompt
    change: of the right answer's log-probability by the fact, with it minus without it; above 0: the fact helps
    distance: between the candidates' probabilities with and without the fact, total variation, 0 to 1
    first_changed: the first answer is another film without the fact
"""

STABILITY_NAME = "stability.parquet"
STABILITY = columns(
    {
        **_KEY,
        "perturbation": pl.String,
        "tau": pl.Float64,
        "tau_by_place": pl.Float64,
        "kept": pl.Float64,
        "first_changed": pl.Boolean,
    }
)
"""probe/stability.parquet, sorted by example, system and perturbation: the prompt says the same in another way, or
nearly the same; ``system`` may also be retriever, whose list is computed again from the perturbed history.

Columns:
    example_id: as in EXAMPLES
    system: tuned, tuned+retriever or retriever
    perturbation: what was changed, or nothing
    tau: Kendall's tau-b between the two orders of the films that are candidates in both; null with fewer than two
    tau_by_place: the same between the scores of the places shown, whatever film stands there; of candidates that are
        shown in another order: near 1 where the model scores places and not films, else null
    kept: share of the candidates that are candidates after the change too; 1 but for the retriever
    first_changed: the first answer is another film
"""

PROBED_NAME = "summary.parquet"
PROBED = columns(
    {
        "purpose": PURPOSES,
        "system": pl.String,
        "kind": pl.Enum(["part", "relation", "stability"]),
        "name": pl.String,
        "measure": pl.String,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "num_users": pl.Int64,
        "num_examples": pl.Int64,
    }
)
"""probe/summary.parquet: means over users of the columns above, with intervals over users: bootstrap, and exact for the
share of changed first answers where each user has one prompt.

Columns:
    system: tuned, tuned+retriever or retriever
    kind: of name: a part of the prompt, a relation of hint 2's facts, or a perturbation
    name: the part, the relation (after "swapped " where the fact was another film's), or the perturbation
    measure: a column of the logs: change, distance, first_changed, tau, tau_by_place or kept
    value: mean over users, of whom each one's value is the mean over the user's rows
    low: of the interval; null with fewer than two users
    high: of the interval; null with fewer than two users
    num_users: users with a value
    num_examples: rows of the log, of one system
"""
