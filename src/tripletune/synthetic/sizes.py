"""Sizes of synthetic releases and strength of their signal: the published releases by name, or any small size."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from tripletune.config import SyntheticConfig
from tripletune.schemas.ingest import midnight

MIN_RATINGS = 20
"""Minimum ratings per user, as in the MovieLens releases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Totals of a release, its period, and whether it has the gaps of real data."""

    viewers: int
    movies: int
    ratings: int
    """Exact; at least ``MIN_RATINGS`` per user."""
    tags: int
    principals: int = 0
    """Rows of ``title.principals`` to reach with titles that are not in the release; 0 adds none."""
    first_day: date
    last_day: date
    """No rating is before the first or after the last day, and no film comes out later."""
    spread: float
    """Standard deviation of the logarithm of a user's ratings beyond ``MIN_RATINGS``."""
    entities: int
    """Entities per kind that users may prefer."""
    strength: float
    """Log-odds that a planted preference adds; see ``users.py``."""
    as_published: bool = True
    """Ids without gaps, gaps in credits and names, films without genres or year, as in the real releases; else each
    oddity once, so that a small run contains it."""

    @property
    def start(self) -> int:
        """Seconds since 1970 at the start of ``first_day``."""
        return midnight(self.first_day)

    @property
    def end(self) -> int:
        """Seconds since 1970 at the start of ``last_day``."""
        return midnight(self.last_day)


SIZES = {
    "ml-32m": Size(
        viewers=200_948,
        movies=87_585,
        ratings=32_000_204,
        tags=2_000_072,
        principals=20_000_000,
        first_day=date(1995, 1, 9),
        last_day=date(2023, 10, 13),
        spread=1.45,
        entities=12,
        strength=1.5,
    ),
    "ml-25m": Size(
        viewers=162_541,
        movies=62_423,
        ratings=25_000_095,
        tags=1_093_360,
        principals=14_000_000,
        first_day=date(1995, 1, 9),
        last_day=date(2019, 11, 21),
        spread=1.45,
        entities=12,
        strength=1.5,
    ),
    "ml-1m": Size(
        viewers=6_040,
        movies=3_883,
        ratings=1_000_209,
        tags=20_000,
        principals=200_000,
        first_day=date(2000, 4, 25),
        last_day=date(2003, 2, 28),
        spread=1.15,
        entities=8,
        strength=1.5,
    ),
    "small": Size(
        viewers=610,
        movies=9_742,
        ratings=100_836,
        tags=3_683,
        first_day=date(1996, 3, 29),
        last_day=date(2018, 9, 24),
        spread=1.45,
        entities=8,
        strength=1.5,
    ),
}
"""Counts of the published releases; ml-1m in the csv layout and with tags, unlike the real one."""


def configured_size(settings: SyntheticConfig) -> Size:
    """Size for a preset's ``[synthetic]`` section.

    No user rates more than 60 % of the films (but at least ``MIN_RATINGS``), so the mean may be below ``mean_ratings``.
    """
    most = max(MIN_RATINGS, int(MAX_SHARE * settings.movies))
    mean = min(settings.mean_ratings, (MIN_RATINGS + most) // 2)
    ratings = settings.viewers * mean
    return Size(
        viewers=settings.viewers,
        movies=settings.movies,
        ratings=ratings,
        tags=ratings // 28,
        first_day=date(2010, 1, 1),
        last_day=date(2019, 12, 31),
        spread=1.0,
        entities=4,
        strength=settings.preference_strength,
        as_published=False,
    )


MAX_SHARE = 0.6
"""Upper limit of a user's ratings, as a share of the films that are out on the first day."""
