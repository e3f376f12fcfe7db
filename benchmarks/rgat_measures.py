"""The measurements of ``rgat_choice.py``, where they are defined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks.synthetic_oracle import Oracle
from tripletune.models.rgat.serve import RgatFit, load_rgat
from tripletune.models.serving.catalogue import Likes
from tripletune.retrieve.histories import find_answers, find_history, find_questions, read_rows
from tripletune.retrieve.profiles import RelationTable, build_profiles
from tripletune.retrieve.triples import Choice, Scorer, TripleTable, choose_triples, read_triples
from tripletune.schemas.query import FIT_OF
from tripletune.store.shards import split_files

# Shape letters in this file: U users, B draws of the bootstrap
MODES: tuple[Choice, ...] = ("personal", "published", "most-shared", "random")
SEED, DRAWS, MATCHED = 7, 1000, 20
USERS_AT_ONCE = 2000
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Users with a query of one purpose and their liked films before the cutoff, numbered from 0."""

    viewers: pl.DataFrame
    """``user_id, unseen, cutoff``, row = user."""
    likes: pl.DataFrame
    """``viewer, movie_id, age``, sorted by user and age."""
    rows: pl.DataFrame
    """All rows of the split."""
    rgat: RgatFit
    table: TripleTable

    @classmethod
    def read(cls, folders: dict[str, Path], purpose: str) -> Questions:
        rows = read_rows(list(split_files(folders["split"]).values())).collect()
        asked = find_questions(rows).filter(pl.col("purpose") == purpose).sort("user_id")
        numbers = asked.select("user_id").with_row_index("viewer").cast({"viewer": pl.Int64})
        likes = find_history(rows, asked).join(numbers, on="user_id").select("viewer", "movie_id", "age")
        rgat = load_rgat(folders["rgat"], SEED, [FIT_OF[purpose]])[FIT_OF[purpose]]
        table = TripleTable.build(rgat, read_triples(folders["knowledge"]), SEED)
        viewers = asked.select("user_id", "unseen", "cutoff")
        return cls(viewers=viewers, likes=likes.sort("viewer", "age"), rows=rows, rgat=rgat, table=table)

    def blocks(self) -> Iterator[tuple[int, pl.DataFrame, Likes]]:
        """First user, likes with users numbered from there, and the same as arrays: all at once are many rows."""
        for start in range(0, len(self.viewers), USERS_AT_ONCE):
            block = self.likes.filter(pl.col("viewer").is_between(start, start + USERS_AT_ONCE - 1))
            block = block.with_columns(pl.col("viewer") - start)
            yield start, block, Likes(*(block[name].to_numpy().astype(np.int64) for name in block.columns))

    def choices(self, mode: Choice, scorer: Scorer | None = None) -> pl.DataFrame:
        """One fact per liked film: ``viewer, movie_id, relation, entity``; ``scorer`` of the mode ``learned``."""
        parts = []
        for start, block, likes in self.blocks():
            users_U = self.viewers["user_id"].slice(start, USERS_AT_ONCE).to_numpy().astype(np.int64)
            pairs = likes.user_E, likes.movie_E
            chosen = choose_triples(
                self.table, self.rgat, likes, users_U, *pairs, mode=mode, num=1, seed=SEED, scorer=scorer
            )
            named = chosen.select("relation", "entity")
            part = block.select(pl.col("viewer") + start, "movie_id")[chosen["pair"].to_numpy()]
            parts.append(part.hstack(named))
        return pl.concat(parts)

    def profiles(self) -> pl.DataFrame:
        table = RelationTable.build(self.table, self.rgat)
        parts = [
            build_profiles(table, self.rgat, likes, min(USERS_AT_ONCE, len(self.viewers) - start)).with_columns(
                pl.col("viewer").cast(pl.Int64) + start
            )
            for start, _, likes in self.blocks()
        ]
        return pl.concat(parts)


def measure_planted(
    folders: dict[str, Path], release: Path, learned: Callable[[Questions], Mapping[str, Scorer]] | None = None
) -> dict[str, Any]:
    """Shares of right entities and right top relations by mode, for warm and unseen users; ``learned`` gives further
    choices by name."""
    asked = Questions.read(folders, "valid")
    truth = pl.read_parquet(release / "truth.parquet").with_columns(pl.col("kind").cast(pl.String))
    viewers = asked.viewers.with_row_index("viewer").cast({"viewer": pl.Int64}).join(truth, on="user_id")
    posterior = _posterior(asked, folders["split"], release).join(viewers.select("user_id", "viewer"), on="user_id")
    carried = viewers.join(read_triples(folders["knowledge"]), left_on=["kind", "key"], right_on=["relation", "entity"])
    carried = carried.select("viewer", "movie_id", "key").join(asked.likes, on=["viewer", "movie_id"], how="semi")

    def right_entities(choices: pl.DataFrame) -> pl.DataFrame:
        told = carried.join(choices, on=["viewer", "movie_id"])
        return told.group_by("viewer").agg(right=(pl.col("entity") == pl.col("key")).sum(), films=pl.len())

    def right_relations(tops: pl.DataFrame) -> pl.DataFrame:
        told = viewers.filter(pl.col("kind") != "none").join(tops, on="viewer")
        return told.select("viewer", right=(pl.col("relation") == pl.col("kind")).cast(pl.Int64), films=pl.lit(1))

    chosen: dict[str, pl.DataFrame] = {mode: asked.choices(mode) for mode in MODES}
    scorers = learned(asked) if learned else {}
    chosen |= {name: asked.choices("learned", scorer) for name, scorer in scorers.items()}
    profiles = {mode: _counted(choices) for mode, choices in chosen.items()} | {"personal": asked.profiles()}
    entities = {mode: right_entities(choices) for mode, choices in chosen.items()}
    entities["optimal"] = right_entities(_likeliest(asked, carried, posterior))
    by_kind = (
        posterior.filter(pl.col("kind") != "none")
        .group_by("viewer", relation="kind")
        .agg(mass=pl.col("probability").sum())
    )
    relations = {mode: right_relations(_top(profile, "lift")) for mode, profile in profiles.items()}
    relations["personal, plain mass"] = right_relations(_top(profiles["personal"], "mass"))
    relations["optimal"] = right_relations(_top(by_kind, "mass"))
    groups = {"warm": viewers.filter(~pl.col("unseen")), "unseen": viewers.filter("unseen")}
    return {
        "viewers": {name: len(group) for name, group in groups.items()},
        "entity": {name: _placed(entities, group) for name, group in groups.items()},
        "relation": {name: _placed(relations, group) for name, group in groups.items()},
        "claims": {
            name: _claims(_top(profile, column), viewers, column)
            for name, profile, column in (("personal", profiles["personal"], "lift"), ("optimal", by_kind, "mass"))
        },
    }


def _posterior(asked: Questions, split: Path, release: Path) -> pl.DataFrame:
    rows = pl.read_parquet(list(split_files(split).values()), hive_partitioning=False)
    before = rows.join(asked.viewers, on="user_id").filter(pl.col("position") < pl.col("cutoff"))
    found = Oracle(release).posterior(before.sort("user_id", "position"))
    return found.with_columns(pl.col("kind").cast(pl.String))


def _likeliest(asked: Questions, carried: pl.DataFrame, posterior: pl.DataFrame) -> pl.DataFrame:
    """Of each film's facts the one with the highest probability of being the preference."""
    films = pl.DataFrame(
        {"movie_id": np.repeat(asked.table.films, np.diff(asked.table.offsets)).astype(np.int32)}
    ).hstack(asked.table.text.select("relation", "entity"))
    facts = carried.select("viewer", "movie_id").join(films, on="movie_id")
    likely = facts.join(
        posterior.select("viewer", relation="kind", entity="key", probability="probability"),
        on=["viewer", "relation", "entity"],
    )
    return likely.sort("probability").unique(["viewer", "movie_id"], keep="last").drop("probability")


def _counted(choices: pl.DataFrame) -> pl.DataFrame:
    """A profile of a mode that chooses without a posterior: the share of its choices by relation."""
    shares = choices.group_by("viewer", "relation").agg(mass=pl.len().cast(pl.Float64))
    return shares.with_columns(pl.col("mass") / pl.col("mass").sum().over("viewer"))


def _top(profile: pl.DataFrame, column: str) -> pl.DataFrame:
    """Each user's top relation: ``viewer, relation`` and the column it is top in."""
    total = pl.col("mass").sum().over("relation") / profile["viewer"].n_unique()
    ordered = profile.with_columns(lift=pl.col("mass") / total).sort("viewer", column, "relation")
    return ordered.unique("viewer", keep="last", maintain_order=True).select("viewer", "relation", column)


def _claims(tops: pl.DataFrame, viewers: pl.DataFrame, column: str) -> dict[str, float]:
    """Share of users without a preference whose top is as high as the median one of users with one."""
    told = viewers.join(tops, on="viewer")
    bar = told.filter(pl.col("kind") != "none")[column].median()
    return {"bar": bar, "claimed": told.filter(pl.col("kind") == "none").select((pl.col(column) >= bar).mean()).item()}


def _placed(counts: dict[str, pl.DataFrame], group: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Share right of each mode, and its place between random and optimal, with intervals."""
    numbers = group.select("viewer").sort("viewer")
    filled = {
        mode: numbers.join(count, on="viewer", how="left", maintain_order="left").fill_null(0).select("right", "films")
        for mode, count in counts.items()
    }
    draws_BU = np.random.default_rng(0).integers(len(numbers), size=(DRAWS, len(numbers)), dtype=np.int32)
    drawn = {mode: np.stack([_share(count.to_numpy()[draw]) for draw in draws_BU]) for mode, count in filled.items()}
    shares = {mode: _share(count.to_numpy()) for mode, count in filled.items()}
    low, high, low_B, high_B = shares["random"], shares["optimal"], drawn["random"], drawn["optimal"]
    return {
        mode: {
            "share": float(share),
            "place": float((share - low) / (high - low)),
            "interval": np.quantile((drawn[mode] - low_B) / (high_B - low_B), [0.025, 0.975]).tolist(),
        }
        for mode, share in shares.items()
    }


def _share(counts_U2: npt.NDArray[Any]) -> Any:
    right, films = counts_U2.sum(axis=0)
    return right / films


def measure_real(folders: dict[str, Path], purpose: str) -> dict[str, Any]:
    """Lift by mode, and what the choices look like."""
    asked = Questions.read(folders, purpose)
    numbers = asked.viewers.with_row_index("viewer").cast({"viewer": pl.Int64})
    queries = numbers.select("user_id", pl.lit(purpose).alias("purpose").cast(pl.Enum(list(FIT_OF))), "cutoff")
    answers = find_answers(asked.rows, queries).join(numbers, on="user_id").select("viewer", "movie_id")
    rated = asked.rows.join(numbers, on="user_id").select("viewer", "movie_id")
    matched = _as_popular(asked, answers, rated)
    facts = read_triples(folders["knowledge"])
    films_of = facts.group_by("entity").agg(films=pl.col("movie_id").n_unique())
    held = _carrying(answers.with_columns(weight=1.0), facts)
    other = _carrying(matched, facts)
    likes = _carrying(asked.likes.select("viewer", "movie_id", weight=1.0), facts)
    by_mode = {}
    for mode in MODES:
        chosen = asked.choices(mode).join(answers, on="viewer", how="semi")
        shares = chosen
        for name, table in (("held", held), ("matched", other), ("liked", likes)):
            shares = shares.join(table.rename({"share": name}), on=["viewer", "entity"], how="left")
        shares = shares.join(films_of, on="entity").with_columns(pl.col("held", "matched").fill_null(0.0))
        counts = asked.likes.group_by("viewer").agg(likes=pl.len())
        described = shares.join(counts, on="viewer").select(
            only_this_film=(pl.col("films") == 1).mean(),
            no_other_like=(pl.col("liked") * pl.col("likes") < 1.5).mean(),
        )
        means = shares.group_by("viewer").agg(pl.col("held", "matched").mean()).sort("viewer")
        by_mode[mode] = means, described.row(0, named=True)
    draws_BU = np.random.default_rng(0).integers(len(means), size=(DRAWS, len(means)))
    lifts_B = {
        mode: _lift(means.select("held", "matched").to_numpy()[draws_BU]) for mode, (means, _) in by_mode.items()
    }
    return {
        "viewers": len(means),
        "answers": len(answers),
        "modes": {
            mode: {
                "lift": float(_lift(means.select("held", "matched").to_numpy())),
                "interval": np.quantile(lifts_B[mode], [0.025, 0.975]).tolist(),
                "personal_minus": np.quantile(lifts_B["personal"] - lifts_B[mode], [0.025, 0.975]).tolist(),
                **means.select(pl.col("held", "matched").mean()).row(0, named=True),
                **described,
            }
            for mode, (means, described) in by_mode.items()
        },
    }


def _lift(shares_U2: Doubles) -> Doubles:
    held, matched = np.moveaxis(shares_U2.sum(axis=-2), -1, 0)
    lift: Doubles = held / matched
    return lift


def _carrying(films: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """Share of a user's (weighted) films that have each entity: ``viewer, entity, share``."""
    total = films.group_by("viewer").agg(total=pl.col("weight").sum())
    having = films.join(facts.select("movie_id", "entity").unique(), on="movie_id")
    sums = having.group_by("viewer", "entity").agg(share=pl.col("weight").sum()).join(total, on="viewer")
    return sums.select("viewer", "entity", pl.col("share") / pl.col("total"))


def _as_popular(asked: Questions, answers: pl.DataFrame, rated: pl.DataFrame) -> pl.DataFrame:
    """For each answer the films nearest in popularity that its user did not rate: ``viewer, movie_id, weight``."""
    likes = asked.rows.filter(pl.col("label").is_in(["graph", "target"])).group_by("movie_id").len()
    films = pl.DataFrame({"movie_id": asked.table.films.astype(np.int32)}).join(likes, on="movie_id", how="left")
    order = films.with_columns(pl.col("len").fill_null(0)).sort("len", "movie_id")["movie_id"].to_numpy()
    place = {int(movie): index for index, movie in enumerate(order)}
    seen = {viewer: set(movies) for viewer, movies in rated.group_by("viewer").agg("movie_id").iter_rows()}
    rows = []
    for viewer, movie in answers.iter_rows():
        middle = place.get(movie)
        if middle is None:
            continue  # the film has no triples, so no entity of it can be matched either
        near = sorted(
            range(max(0, middle - 10 * MATCHED), min(len(order), middle + 10 * MATCHED)), key=lambda i: abs(i - middle)
        )
        found = [int(order[index]) for index in near if int(order[index]) not in seen[viewer]][:MATCHED]
        rows += [(viewer, film, 1.0 / max(1, len(found))) for film in found]
    return pl.DataFrame(rows, {"viewer": pl.Int64, "movie_id": pl.Int32, "weight": pl.Float64}, orient="row")
