"""The three layouts of published MovieLens releases, recognised by file name."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tripletune.config import FeedConfig
from tripletune.data.release.tables import TextTable
from tripletune.errors import InputError

RATING_FIELDS = ("userId", "movieId", "rating", "timestamp")
GENRES_100K = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""Genres in the order of the flags at the end of a line of u.item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Tables of one release layout; ``tags``, ``links`` and ``users`` may be absent."""

    name: str
    tables: Mapping[str, TextTable] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files, one a table."""
        return tuple(table.file for table in self.tables.values())


def _dat(file: str, *columns: str) -> TextTable:
    return TextTable(file=file, columns=columns, separator="::", header=False, encoding="latin-1")


LAYOUTS = (
    Layout(
        name="csv",
        tables={
            "ratings": TextTable(file="ratings.csv", columns=RATING_FIELDS, quoted=True),
            "movies": TextTable(file="movies.csv", columns=("movieId", "title", "genres"), quoted=True),
            "tags": TextTable(file="tags.csv", columns=("userId", "movieId", "tag", "timestamp"), quoted=True),
            "links": TextTable(file="links.csv", columns=("movieId", "imdbId", "tmdbId"), quoted=True),
        },
    ),
    Layout(
        name="dat",
        tables={
            "ratings": _dat("ratings.dat", *RATING_FIELDS),
            "movies": _dat("movies.dat", "movieId", "title", "genres"),
            "tags": _dat("tags.dat", "userId", "movieId", "tag", "timestamp"),
            "users": _dat("users.dat", "userId", "gender", "age", "occupation", "zip"),
        },
    ),
    Layout(
        name="100k",
        tables={
            "ratings": TextTable(file="u.data", columns=RATING_FIELDS, separator="\t", header=False),
            "movies": TextTable(
                file="u.item",
                columns=("movieId", "title", "released", "released_video", "url", *GENRES_100K),
                separator="|",
                header=False,
                encoding="latin-1",
            ),
            "users": TextTable(
                file="u.user",
                columns=("userId", "age", "gender", "occupation", "zip"),
                separator="|",
                header=False,
                encoding="latin-1",
            ),
        },
    ),
)
"""csv: ml-latest*, ml-20m, ml-25m, ml-32m; dat: ml-1m, ml-10m; 100k: ml-100k."""

KNOWN_FILES = frozenset(file for layout in LAYOUTS for file in layout.files)


def files_read(feed: FeedConfig) -> frozenset[str]:
    """Names of the files that ingest reads in a release: the ratings only when no feed replaces them."""
    return KNOWN_FILES - (frozenset(layout.tables["ratings"].file for layout in LAYOUTS) if feed.ratings else set())


def has_users(release: Path) -> bool:
    """Whether a release, a folder or a zip of one, has a table of its users."""
    wanted = {layout.tables["users"].file for layout in LAYOUTS if "users" in layout.tables}
    if release.is_dir():
        return any(found.name in wanted for pattern in ("*", "*/*") for found in release.glob(pattern))
    if not zipfile.is_zipfile(release):
        return False
    with zipfile.ZipFile(release) as members:
        return any(PurePosixPath(name).name in wanted for name in members.namelist())


def find_layout(folder: Path, shown_as: Path, *, told_by: str = "ratings") -> tuple[Layout, Path]:
    """Find the layout of a release, in the folder or in one of its direct subfolders.

    Args:
        folder: where to look.
        shown_as: its name in messages (the zip it was unpacked from).
        told_by: the table whose file name identifies the layout: ``ratings``, or ``movies`` where a feed replaces the
            ratings.

    Raises:
        InputError: no file name of any layout, more than one release, or ratings without movies.
    """
    for places in ([folder], sorted(path for path in folder.iterdir() if path.is_dir())):
        found = [
            (layout, place) for place in places for layout in LAYOUTS if (place / layout.tables[told_by].file).is_file()
        ]
        if len(found) > 1:
            names = ", ".join(f"{place.name}/{layout.tables[told_by].file}" for layout, place in found)
            raise InputError(f"{shown_as} holds more than one release ({names}); name the folder of one of them")
        if found:
            layout, place = found[0]
            movies = layout.tables["movies"].file
            if not (place / movies).is_file():
                raise InputError(f"{shown_as} has {layout.tables['ratings'].file} but no {movies} next to it; add it")
            return found[0]
    looked_for = ", ".join(layout.tables[told_by].file for layout in LAYOUTS)
    raise InputError(
        f"{shown_as} is not a MovieLens release: looked for {looked_for} in it and one folder down; name another folder"
    )
