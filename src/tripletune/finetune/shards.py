"""What a training reads of the generate stage: its examples, by use, and the retriever's prior over places."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from tripletune.config import FinetuneConfig
from tripletune.contract import Ensemble
from tripletune.errors import InputError
from tripletune.finetune.job import columns_read
from tripletune.judges import judges
from tripletune.residual import calibrate_prior
from tripletune.schemas.generate import EXAMPLES
from tripletune.stable_hash import mix
from tripletune.store.read import scan_parquet
from tripletune.store.shards import shard_files


class Examples(NamedTuple):
    """Examples of a training, by what they are for."""

    train: list[Path]
    """Shards, in order; at least one example."""
    evaluation: pl.DataFrame
    """Valid examples to evaluate on while training."""
    select: pl.DataFrame
    """Valid examples that set the weight of the model's scores; none for an objective that scores no labels."""


@dataclass(frozen=True, slots=True)
class FurtherForms:
    """Training examples of the short forms, and how all forms become one order."""

    folder: Path
    """Of the forms stage."""
    ensemble: Ensemble

    @property
    def files(self) -> list[Path]:
        """Files with an example at least."""
        files = shard_files(self.folder / "train")
        return [path for path in files if scan_parquet(path).select(pl.len()).collect().item()]


def read_examples(shards: Path, settings: FinetuneConfig, seed: int, *, weighs: bool = True) -> Examples:
    """The examples of a training, from the generate stage's folder.

    Args:
        shards: the folder.
        settings, seed: of the training.
        weighs: whether the model's scores get a weight next to the retriever's, which examples of valid set.

    Raises:
        InputError: there is none to train on, or none to evaluate on where an evaluation chooses the step.
    """
    weighs = weighs and settings.scores_labels
    found = Examples(
        _train_shards(shards),
        valid_examples(shards, settings.max_eval_examples, settings, seed),
        valid_examples(
            shards, settings.max_select_examples if weighs and settings.scores_labels else 0, settings, seed
        ),
    )
    _require_evaluation(shards, found.evaluation, settings)
    return found


def _train_shards(shards: Path) -> list[Path]:
    train = shard_files(shards / "train")
    if not train or not scan_parquet(train).select(pl.len()).collect().item():
        raise InputError(
            f"{shards / 'train'}: no training examples; more users, a larger retrieve.num_candidates "
            "or a smaller split.min_graph would give some"
        )
    return train


def valid_examples(shards: Path, limit: int, settings: FinetuneConfig, seed: int) -> pl.DataFrame:
    """Valid examples that can be answered (the like is a candidate) of users who select: the first by hash of user, and
    of a user by cutoff. Empty where ``limit`` is 0 or there are none.
    """
    columns = columns_read(settings)
    valid = shard_files(shards / "valid")
    if not valid or not limit:
        return pl.DataFrame(schema={name: EXAMPLES[name] for name in columns})
    answerable = scan_parquet(valid).filter(pl.col("candidates").list.contains(pl.col("answers").list.first()))
    queries = answerable.select("user_id", "cutoff").collect()
    queries = queries.filter(~judges(queries["user_id"], seed))
    order = pl.Series("order", mix(queries["user_id"].to_numpy(), seed))
    chosen = queries.with_columns(order).sort("order", "user_id", "cutoff").head(limit)
    rows = answerable.join(chosen.lazy(), on=["user_id", "cutoff"], how="inner").sort("order", "user_id", "cutoff")
    return rows.select(columns).collect()


def _require_evaluation(shards: Path, evaluation: pl.DataFrame, settings: FinetuneConfig) -> None:
    """Refuse to choose a step by evaluations where there is no example to evaluate on."""
    if len(evaluation) or (settings.keep == "last" and not settings.patience):
        return
    raise InputError(
        f"{shards / 'valid'}: no example to evaluate on, which finetune.keep = {settings.keep!r} with "
        f"finetune.patience = {settings.patience} needs; set keep to 'last' and patience to 0, or take more users"
    )


def prior_of(train: list[Path], num_candidates: int) -> tuple[float, ...]:
    """The retriever's log-score by place, calibrated on the training examples. Shape ``(num_candidates,)``."""
    rows = scan_parquet(train).select("answers", "retrieved").with_row_index("row")
    places = (
        rows.with_columns(place=pl.int_ranges(pl.col("retrieved").list.len()))
        .explode("retrieved", "place")
        .filter(pl.col("retrieved").is_in(pl.col("answers")))
        .group_by("row", maintain_order=True)
        .agg("place")
        .collect()
    )
    return tuple(round(float(value), 6) for value in calibrate_prior(places["place"].to_list(), num_candidates))
