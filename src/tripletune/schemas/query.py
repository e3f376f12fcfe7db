"""Queries (user, purpose, cutoff): labels of their answers, and the fit used for each purpose."""

from __future__ import annotations

import polars as pl

PURPOSES = pl.Enum(["train", "valid", "test"])
ANSWER_LABEL = {"train": "target", "valid": "valid", "test": "test"}
"""Label of the likes that are the answers of each purpose."""
QUERY_KEY = ("user_id", "purpose", "cutoff")
"""Key of a query: user, purpose and cutoff, the position before which the user's rows are evidence. A user has at most
``split.held_out`` queries each for valid and test, and at most ``retrieve.train_cutoffs`` for train."""
IS_ANSWER = (
    pl.when(pl.col("purpose") == "train")
    .then(pl.col("position") >= pl.col("cutoff"))
    .otherwise(pl.col("position") == pl.col("cutoff"))
)
"""Whether a like with the label of the query's purpose is one of its answers; train: those from the cutoff on; valid
and test: the one at the cutoff, whatever others are held out."""
FIT_OF = {"train": "a", "valid": "b", "test": "b"}
"""Fit used for the hints of each purpose; fit a is trained without the ``target`` likes, the answers of training
examples."""
FIT_LABELS = {"a": ("graph",), "b": ("graph", "target")}
"""Labels of the likes that each fit is trained on."""
