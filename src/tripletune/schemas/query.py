"""Queries (user, purpose, cutoff): labels of their answers, and the fit used for each purpose."""

from __future__ import annotations

import polars as pl

PURPOSES = pl.Enum(["train", "valid", "test"])
ANSWER_LABEL = {"train": "target", "valid": "valid", "test": "test"}
"""Label of the likes that are the answers of each purpose."""
QUERY_KEY = ("user_id", "purpose", "cutoff")
"""Key of a query: user, purpose and cutoff, the position before which the user's rows are evidence. A user has at most
one query each for valid and test, and at most ``retrieve.train_cutoffs`` for train."""
FIT_OF = {"train": "a", "valid": "b", "test": "b"}
"""Fit used for the hints of each purpose; fit a is trained without the ``target`` likes, the answers of training
examples."""
FIT_LABELS = {"a": ("graph",), "b": ("graph", "target")}
"""Labels of the likes that each fit is trained on."""
