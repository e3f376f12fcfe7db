"""Order of the candidates that is served: the tuned model's scores and the retriever's, added up."""

from __future__ import annotations

import polars as pl

from tripletune.contract import Residual


def add_retriever(answered: pl.DataFrame, retrieved: pl.Series, residual: Residual) -> pl.DataFrame:
    """Answers and scores under ``tripletune.residual``; the other columns stay.

    Args:
        answered: with ``answers``, all candidates of an example, and ``scores``, the model's logit of each.
        retrieved: the candidates of the same examples in the retriever's order.
        residual: of the adapter's contract.
    """
    rows = answered.with_columns(retrieved=retrieved).with_row_index("row")
    places = rows.select("row", answers="retrieved", place=pl.int_ranges(pl.col("retrieved").list.len())).explode(
        "answers", "place", empty_as_null=False
    )
    priors = pl.DataFrame({"prior": residual.prior}).with_columns(place=pl.int_range(pl.len()))
    logits = rows.select("row", "answers", logit="scores").explode("answers", "logit", empty_as_null=False)
    centred = pl.col("logit").cast(pl.Float64) - pl.col("logit").cast(pl.Float64).mean().over("row")
    summed = (
        logits.join(places, on=["row", "answers"], how="left", validate="1:1", maintain_order="left")
        .join(priors, on="place", how="left", maintain_order="left")
        .with_columns(scores=residual.weight * centred + pl.col("prior"))
        .sort("row", "scores", "place", descending=[False, True, False])
        .group_by("row", maintain_order=True)
        .agg("answers", pl.col("scores").cast(pl.Float32))
    )
    kept = rows.drop("answers", "scores", "retrieved")
    return kept.join(summed, on="row", how="left", maintain_order="left").drop("row").select(answered.columns)
