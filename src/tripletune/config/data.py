"""Settings of ingest, split and knowledge."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from tripletune.config.base import Positive, PositiveFloat, Section, Share

Credit = Literal["director", "writer", "actor", "cinematographer", "composer", "producer", "editor"]


class FeedColumns(Section):
    """Column names of the feed."""

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
    """Ratings in separate files."""

    ratings: tuple[str, ...] = ()
    """CSV (with a header) or Parquet files, local or ``s3://``; ``*`` stands for any name. They replace the
    release's ratings; movies, tags and links still come from ``source.movielens``."""
    columns: FeedColumns = FeedColumns()


class SourceConfig(Section):
    """Sources of ratings and facts."""

    movielens: str = ""
    """A MovieLens release: a zip or a folder. Empty: a synthetic release is generated."""
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
    """Mean ratings per user; no user has fewer than 20, as in the real releases."""
    preference_strength: PositiveFloat = 2.5
    """Log-odds that a planted preference adds to liking a film with the preferred entity, and for the average user to
    watching it; at most three in ten viewings come from it."""


class IngestConfig(Section):
    """Valid ratings and the limit of rejected rows."""

    rating_min: float = 0.5
    """A rating below this is rejected."""
    rating_max: float = 5.0
    """A rating above this is rejected."""
    earliest: date = date(1995, 1, 1)
    """A rating before this day (UTC) is rejected; MovieLens began in that year."""
    latest: date = date(2100, 1, 1)
    """A rating on or after this day (UTC) is rejected; most often its time is in milliseconds."""
    as_of: date | None = None
    """Ratings and tags from this day (UTC) on do not exist for the run, as if it ran on that day; what has no date
    (films, links, users, credits) is taken as it is now. Such a run is never promoted. None: everything is read."""
    max_reject_share: Share = 0.05
    """The stage stops when a larger share of a table's rows is rejected; 0 stops at the first."""

    @model_validator(mode="after")
    def _ranges(self) -> IngestConfig:
        if not self.rating_min < self.rating_max:
            raise ValueError(f"rating_min = {self.rating_min} must be below rating_max = {self.rating_max}")
        if not self.earliest < self.latest:
            raise ValueError(f"earliest = {self.earliest} must be before latest = {self.latest}")
        if self.as_of and not self.earliest < self.as_of <= self.latest:
            raise ValueError(f"as_of = {self.as_of} must be after earliest = {self.earliest}, and not after latest")
        return self


class SplitConfig(Section):
    """Protocol of the split: likes for training, valid and test, and unseen users."""

    protocol: Literal["leave_one_out", "global_time", "ratio"] = "leave_one_out"
    """leave_one_out: each user's newest like is test; global_time: one date separates past and future for all users;
    ratio: a share of each user's likes is held out, for retrieval benchmarks only."""
    held_out: Positive = 1
    """Likes of a user that become valid answers, and as many test answers, each the answer of a query of its own. A
    user's metric is the mean over these. leave_one_out: users with too few likes have no query; global_time: at most
    this many from each period; ratio: 1."""
    tie_order: Literal["hash", "movie_id", "file"] = "hash"
    """Order of a user's ratings with the same timestamp. ``movie_id`` and ``file``, the order of the release, leak part
    of the answer to sequence models and exist only to reproduce published numbers."""
    min_interactions: Annotated[int, Field(ge=0)] = 0
    """Users and films with fewer ratings than this are dropped, as public benchmarks do with 5; 0 keeps all."""
    valid_from: date | None = None
    """global_time: likes from this day (UTC) on are not used in training."""
    test_from: date | None = None
    """global_time: a user's first ``held_out`` likes from this day (UTC) on are test."""
    ratio_order: Literal["random", "chronological"] = "random"
    """ratio: whether the held-out likes are drawn at random, or are the newest."""
    valid_share: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """ratio: share of a user's likes for valid."""
    test_share: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """ratio: share of a user's likes for test."""
    like: float = 4.0
    """A rating of this or more is a like."""
    dislike: float = 3.0
    """A rating below this is a dislike."""
    min_graph: Positive = 3
    """Likes that stay in ``graph`` before any becomes ``target``."""
    max_target: Positive = 5
    """Latest likes before valid and test that become answers of training examples."""
    unseen_share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05
    """Share of users excluded from both fits and from all training examples."""
    shards: Annotated[int, Field(ge=1, le=999)] = 8
    """Files the users are spread over, by a seeded hash of the user; prompt shards follow them."""
    frozen: str = ""
    """File that ``tripletune freeze`` wrote: only its valid and test queries are evaluated, with the same cutoffs, so
    that metrics of nightly runs are of the same queries. Empty: all users are evaluated, on this run's ratings."""

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
        if self.protocol == "ratio" and self.held_out != 1:
            raise ValueError(
                f"held_out = {self.held_out} needs protocol = 'leave_one_out' or 'global_time', not 'ratio'"
            )
        if self.protocol == "ratio" and self.frozen:
            raise ValueError("frozen needs protocol = 'leave_one_out' or 'global_time', not 'ratio'")
        if self.protocol != "global_time" and (self.valid_from or self.test_from):
            raise ValueError(f"valid_from and test_from need protocol = 'global_time', not {self.protocol!r}")
        return self


class KnowledgeConfig(Section):
    """Facts that become triples."""

    credits: tuple[Credit, ...] = get_args(Credit)
    """Credits of the films that are used."""
    max_year_gap: Annotated[int, Field(ge=0)] = 1
    """Years by which the release and IMDb's title.basics may differ on a film; festival and cinema release are often a
    year apart. Links that differ by more are counted."""
    drop_year_disagreements: bool = False
    """Whether the credits of films whose years differ by more are dropped. They are kept by default: a wrong year does
    not prove that the link is wrong."""
    hub_films: Positive = 1000
    """An entity with more films than this is counted as a hub. Hubs stay in the graph."""
    tag_min_viewers: Positive = 3
    """A film gets a tag that at least this many different users gave it."""
    max_actors: Positive = 5
    """Top-billed actors per film."""
    max_credits: Positive = 3
    """Directors, writers, cinematographers, composers, producers and editors per film, each."""
