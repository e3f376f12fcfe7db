"""Write a synthetic MovieLens release with credits and planted preferences, of any size up to the real ones'.

It has the layout of the real files and their oddities: titles with commas, quotes and control tokens, two films of the
same title, films without credits, people without a name, a tag with a line break. Ratings are written in blocks of
users, so memory does not grow with their number.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from tripletune.config import SyntheticConfig
from tripletune.errors import InputError
from tripletune.store.files import write_atomically, writing_to
from tripletune.store.paths import Facts
from tripletune.synthetic.channels import build_channels
from tripletune.synthetic.ids import Ids, draw_ids
from tripletune.synthetic.imdb import write_dumps
from tripletune.synthetic.sizes import SIZES, Size, configured_size
from tripletune.synthetic.tags import BREAKING_TAG, draw_tags, spelt
from tripletune.synthetic.titles import ODD_TITLES, draw_titles
from tripletune.synthetic.truth import write_truth
from tripletune.synthetic.users import Ratings, draw_ratings, draw_users
from tripletune.synthetic.world import EPOCHS_PER_YEAR, GENRES, Catalogue, draw_catalogue

_NO_CREDITS, _NO_GENRES = 9, 12
_YEARLESS, _GENRELESS, _UNCREDITED = 0.007, 0.08, 0.1
"""Shares of films without year, genres or credits, as published; films without credits are mostly unpopular."""

Advance = Callable[[str, int], None]
"""Progress callback: table being written (``ratings`` or ``credits``) and number of rows just written."""


def synthesise(folder: Path, size: str, seed: int, *, principals: int, advance: Advance | None = None) -> Facts:
    """Write a release of a published size into a new folder, which appears when it is complete.

    Args:
        folder: new or empty.
        size: one of ``SIZES``.
        seed: determines every byte.
        principals: approximate rows of ``title.principals``, reached with other titles; ``SIZES`` has defaults.
        advance: progress callback.

    Returns:
        As ``write_release``.

    Raises:
        InputError: the folder has other files, is a file or cannot be created.
    """
    work = folder.absolute().with_name(f".{folder.absolute().name}.part")
    with writing_to(folder, "--out"):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is a file or not empty; name a new folder, or remove what is there")
        shutil.rmtree(work, ignore_errors=True)  # left by a killed run
        work.mkdir(parents=True)
    try:
        facts = write_world(work, replace(SIZES[size], principals=principals), seed, advance)
        work.replace(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return facts


def write_release(folder: Path, settings: SyntheticConfig, seed: int) -> Facts:
    """Write a preset's synthetic release: ``ratings movies tags links .csv``, ``imdb/*.tsv.gz`` and the truth.

    The truth (see ``truth.py``) has each user's preference and the generator's parameters.

    Returns:
        Counts, each named ``synthetic_...``.
    """
    return write_world(folder, configured_size(settings), seed)


def write_world(folder: Path, size: Size, seed: int, advance: Advance | None = None) -> Facts:
    """Write a release of any size; see ``write_release``."""
    advance = advance or (lambda file, rows: None)
    rng = np.random.default_rng([seed, 0x5EED])
    catalogue = draw_catalogue(size, rng)
    _plant_oddities(catalogue, size, rng)
    titles = draw_titles(catalogue, size, rng)
    channels = build_channels(catalogue, size, rng)
    viewers = draw_users(size, channels, rng)
    ids = draw_ids(catalogue, size, rng)
    (folder / "imdb").mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "movies.csv", _movies(catalogue, ids, titles.listed))
    _write_csv(folder / "links.csv", _links(ids))
    tags: list[pl.DataFrame] = []
    blocks = draw_ratings(size, catalogue, channels, viewers, seed)
    stream = _Stream(blocks, size, seed, tags, partial(advance, "ratings"))
    write_atomically(folder / "ratings.csv", lambda part: stream.write(part, ids))
    given = _tags(pl.concat(tags), ids, size)
    _write_csv(folder / "tags.csv", given)
    dumps = write_dumps(folder / "imdb", catalogue, ids, titles, size, seed, partial(advance, "credits"))
    preferences = write_truth(folder, size, catalogue, channels, viewers, ids)
    return {
        "synthetic_viewers": size.viewers,
        "synthetic_movies": size.movies,
        "synthetic_ratings": stream.ratings,
        "synthetic_likes": stream.likes,
        "synthetic_tags": given.height,
        "synthetic_preferences": preferences,
        "synthetic_dumps": dumps,
    }


def _plant_oddities(catalogue: Catalogue, size: Size, rng: np.random.Generator) -> None:
    """Plant gaps before ratings are drawn: an entity missing in the files must not attract users either."""
    for rank, (_, year) in ODD_TITLES.items():
        catalogue.year_M[rank] = year
        catalogue.released_M[rank] = max(0, (year - size.first_day.year) * EPOCHS_PER_YEAR)
    catalogue.genres_MG[_NO_GENRES] = False
    for people_M in catalogue.cast.values():
        people_M[_NO_CREDITS] = -1
    if size.as_published:
        catalogue.year_M[rng.random(size.movies) < _YEARLESS] = 0
        catalogue.genres_MG[rng.random(size.movies) < _GENRELESS] = False
        uncredited_M = rng.random(size.movies) < 2.0 * _UNCREDITED * np.arange(size.movies) / size.movies
        for people_M in catalogue.cast.values():
            people_M[uncredited_M] = -1


class _Stream:
    """Writer of rating blocks; keeps counts and the tags (small) drawn from them."""

    def __init__(
        self, blocks: Iterator[Ratings], size: Size, seed: int, tags: list[pl.DataFrame], advance: Callable[[int], None]
    ) -> None:
        self._blocks, self._size, self._seed, self._tags, self._advance = blocks, size, seed, tags, advance
        self.ratings = self.likes = 0

    def write(self, part: Path, ids: Ids) -> None:
        num_tags = 0
        with part.open("wb") as file:
            for block in self._blocks:
                self._write_block(file, block, ids)
                # a block's shortfall is carried over to the next
                due = self._size.tags * self.ratings // self._size.ratings - num_tags
                rng = np.random.default_rng([self._seed, 0x7A6, int(block.user_R[0])])
                self._tags.append(draw_tags(block, self._size, due, self._seed, rng))
                num_tags += self._tags[-1].height
                self._advance(len(block.user_R))

    def _write_block(self, file: BinaryIO, block: Ratings, ids: Ids) -> None:
        table = pl.DataFrame(
            {
                "userId": ids.user_U.gather(block.user_R),
                "movieId": ids.movie_M.gather(block.movie_R),
                "rating": block.stars_R,
                "timestamp": block.time_R,
            }
        ).sort("userId", "movieId")
        _append_csv(file, table, header=not self.ratings)
        self.ratings += table.height
        self.likes += int((block.stars_R >= 4.0).sum())


def _movies(catalogue: Catalogue, ids: Ids, titles: list[str]) -> pl.DataFrame:
    names = np.array(GENRES)
    listed = ["|".join(sorted(names[row].tolist())) or "(no genres listed)" for row in catalogue.genres_MG]
    return pl.DataFrame({"movieId": ids.movie_M, "title": titles, "genres": listed}).sort("movieId")


def _links(ids: Ids) -> pl.DataFrame:
    imdb = pl.Series(ids.imdb_M).cast(pl.String).str.zfill(7)
    tmdb = pl.when(pl.col("movieId") % 1000 > 0).then(pl.col("movieId") * 3 + 7)
    return pl.DataFrame({"movieId": ids.movie_M, "imdbId": imdb}).with_columns(tmdbId=tmdb).sort("movieId")


def _tags(given: pl.DataFrame, ids: Ids, size: Size) -> pl.DataFrame:
    """Tags as written to the file; in a small release the most popular film also gets ``BREAKING_TAG``."""
    columns = {"userId": ids.user_U, "movieId": ids.movie_M}
    table = given.select(
        userId=pl.lit(columns["userId"]).gather("viewer"),
        movieId=pl.lit(columns["movieId"]).gather("movie"),
        tag=spelt(),
        timestamp="timestamp",
    )
    if not size.as_published:
        of_film = table.filter(pl.col("movieId") == ids.movie_M[0]).unique("userId", maintain_order=True)
        table = pl.concat([table, of_film.head(4).with_columns(tag=pl.lit(BREAKING_TAG))])
    return table.sort("userId", "movieId", "tag", "timestamp")


def _write_csv(path: Path, table: pl.DataFrame) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as file:
            _append_csv(file, table, header=True)

    write_atomically(path, write)


def _append_csv(file: BinaryIO, table: pl.DataFrame, *, header: bool) -> None:
    table.write_csv(file, line_terminator="\r\n", float_precision=1, include_header=header)
