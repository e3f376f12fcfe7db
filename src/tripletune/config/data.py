"""Settings of ingest, split and knowledge."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from tripletune.config.base import Positive, PositiveFloat, Section, Share

Credit = Literal["director", "writer", "actor", "cinematographer", "composer", "producer", "editor"]


class FeedColumns(Section):
    """What the columns of the feed are called."""

    user_id: str = "userId"
    """Column of the user's id."""
    movie_id: str = "movieId"
    """Column of the film's id, as in ``movies.csv`` of the release."""
    rating: str = "rating"
    """Column of the rating."""
    timestamp: str = "timestamp"
    """Column of the time: whole seconds since 1970, or dates and times in Parquet."""

    @model_validator(mode="after")
    def _four_columns(self) -> FeedColumns:
        names = list(self.model_dump().values())
        if len(set(names)) < len(names):
            raise ValueError(f"two columns have one name ({', '.join(names)}); name four different ones")
        return self


class FeedConfig(Section):
    """Ratings that arrive as files of their own."""

    ratings: tuple[str, ...] = ()
    """CSV (with a header) or Parquet files, local or ``s3://``; ``*`` stands for any name. They take the place of the
    release's ratings; movies, tags and links still come from ``source.movielens``."""
    columns: FeedColumns = FeedColumns()


class SourceConfig(Section):
    """Where ratings and facts come from."""

    movielens: str = ""
    """A MovieLens release: a zip or a folder. Empty: the synthetic generator makes one."""
    feed: FeedConfig = FeedConfig()
    imdb: str = ""
    """Folder with IMDb's title.crew, title.principals and name.basics (.tsv.gz). Empty: no credits."""
    extra_triples: tuple[str, ...] = ()
    """Further ``head relation tail`` TSV files; head is a MovieLens movie id."""

    @model_validator(mode="after")
    def _feed_has_films(self) -> SourceConfig:
        if self.feed.ratings and not self.movielens:
            raise ValueError("feed.ratings needs movielens, the release that names the films; give both")
        return self


class SyntheticConfig(Section):
    """Size and signal of the generated release."""

    viewers: Positive = 500
    """Users of the generated release."""
    movies: Annotated[int, Field(ge=50)] = 400
    """Films of the generated release."""
    mean_ratings: Annotated[int, Field(ge=20)] = 60
    """Mean ratings per viewer; nobody has fewer than 20, as in the real releases."""
    preference_strength: PositiveFloat = 2.5
    """Log-odds a planted preference adds to liking a film that carries the preferred entity, and for the average viewer
    to watching it; at most three in ten viewings come of it."""


class IngestConfig(Section):
    """What counts as a rating."""

    rating_min: float = 0.5
    """A rating below this is refused."""
    rating_max: float = 5.0
    """A rating above this is refused."""
    earliest: date = date(1995, 1, 1)
    """A rating before this day (UTC) is refused; MovieLens began in that year."""
    latest: date = date(2100, 1, 1)
    """A rating on or after this day is refused: a clock in milliseconds, most often."""
    max_reject_share: Share = 0.05
    """The stage stops when a larger share of a table's rows is rejected; 0 stops at the first."""

    @model_validator(mode="after")
    def _ranges(self) -> IngestConfig:
        if not self.rating_min < self.rating_max:
            raise ValueError(f"rating_min = {self.rating_min} must be below rating_max = {self.rating_max}")
        if not self.earliest < self.latest:
            raise ValueError(f"earliest = {self.earliest} must be before latest = {self.latest}")
        return self


class SplitConfig(Section):
    """What is learned from, what is asked, and who is kept out."""

    protocol: Literal["leave_one_out", "global_time", "ratio"] = "leave_one_out"
    """leave_one_out: each viewer's newest like is asked; global_time: what comes after a date is the future for
    everyone; ratio: a share of each viewer's likes, for retrieval benchmarks alone."""
    tie_order: Literal["hash", "movie_id"] = "hash"
    """Order of a viewer's ratings of one second. ``movie_id`` leaks part of the answer to sequence models and exists
    only to reproduce published numbers."""
    valid_from: date | None = None
    """global_time: likes from this day (UTC) on are not learned from."""
    test_from: date | None = None
    """global_time: likes from this day (UTC) on are asked for test."""
    ratio_order: Literal["random", "chronological"] = "random"
    """ratio: whether the likes that are kept back are drawn, or the newest."""
    valid_share: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """ratio: share of a viewer's likes for valid."""
    test_share: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """ratio: share of a viewer's likes for test."""
    like: float = 4.0
    """A rating of this or more is a like."""
    dislike: float = 3.0
    """A rating below this is a dislike."""
    min_graph: Positive = 3
    """Likes that stay in ``graph`` before any becomes ``target``."""
    max_target: Positive = 5
    """Latest likes before valid and test that become answers of training examples."""
    unseen_share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05
    """Share of viewers kept out of both fits and of all training examples."""
    shards: Annotated[int, Field(ge=1, le=999)] = 8
    """Files the users are spread over, by a seeded hash of the user; prompt shards follow them."""
    frozen: str = ""
    """File that ``tripletune freeze`` wrote: its valid and test questions are asked, with the same cutoffs, and no
    others, so that nightly metrics are of the same questions. Empty: everybody is asked, up to tonight."""

    @model_validator(mode="after")
    def _like_above_dislike(self) -> SplitConfig:
        if self.dislike > self.like:
            raise ValueError(f"dislike = {self.dislike} must not exceed like = {self.like}")
        return self

    @model_validator(mode="after")
    def _dates_in_order(self) -> SplitConfig:
        if self.protocol == "global_time" and not (
            self.valid_from and self.test_from and self.valid_from < self.test_from
        ):
            raise ValueError("protocol = 'global_time' needs valid_from and test_from, the first before the second")
        if self.protocol == "ratio" and self.frozen:
            raise ValueError("frozen needs protocol = 'leave_one_out' or 'global_time', not 'ratio'")
        if self.protocol != "global_time" and (self.valid_from or self.test_from):
            raise ValueError(f"valid_from and test_from need protocol = 'global_time', not {self.protocol!r}")
        return self


class KnowledgeConfig(Section):
    """Which facts become triples."""

    credits: tuple[Credit, ...] = get_args(Credit)
    """Which credits of the films are used."""
    max_year_gap: Annotated[int, Field(ge=0)] = 1
    """Years by which the release and IMDb's title.basics may differ on a film; festival and cinema are often a year
    apart. Links that differ by more are counted."""
    drop_year_disagreements: bool = False
    """Whether the credits of films whose years differ by more are left out. They stay by default: a wrong year does not
    prove that the link is wrong."""
    hub_films: Positive = 1000
    """An entity of more films than this is counted as a hub. Hubs stay in the graph."""
    tag_min_viewers: Positive = 3
    """A tag counts for a film when at least this many different viewers gave it."""
    max_actors: Positive = 5
    """Top-billed actors per film."""
    max_credits: Positive = 3
    """Directors, writers, cinematographers, composers, producers and editors per film, each."""
