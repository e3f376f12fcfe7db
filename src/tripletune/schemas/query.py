"""What a query is: a user, a purpose and a cutoff; which likes answer it, and which fit may see it."""

from __future__ import annotations

import polars as pl

PURPOSES = pl.Enum(["train", "valid", "test"])
ANSWER_LABEL = {"train": "target", "valid": "valid", "test": "test"}
"""Label of the likes that are the answers of each purpose."""
QUESTION = ("user_id", "purpose", "cutoff")
"""What identifies an example: a viewer, a purpose and the position up to which the viewer's rows are known. Valid and
test ask a viewer once, train as often as ``retrieve.train_cutoffs`` says."""
FIT_OF = {"train": "a", "valid": "b", "test": "b"}
"""Fit that writes the hints of each purpose: fit a never saw the ``target`` likes, the answers of training examples."""
FIT_LABELS = {"a": ("graph",), "b": ("graph", "target")}
"""Labels of the likes that each fit is trained on."""
