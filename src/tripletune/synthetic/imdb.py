"""Write IMDb's four dumps for a synthetic release: its films among many other titles, in blocks, without time stamp."""

# Shape letters in this file: I titles of a block, R credits of a block, M films of the release
from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from tripletune.store.files import write_atomically
from tripletune.synthetic.ids import FIRST_PERSON, Ids, numbered
from tripletune.synthetic.sizes import Size
from tripletune.synthetic.titles import Titles, person_names
from tripletune.synthetic.world import ALL_ROLES, GENRES, Catalogue, IntArray, planted_entities

CATEGORIES = (*ALL_ROLES, "actress", "self")
_OTHER_SHARES = {
    **{"actor": 0.26, "actress": 0.2, "self": 0.14, "director": 0.09, "writer": 0.11, "producer": 0.09},
    **{"cinematographer": 0.04, "composer": 0.03, "editor": 0.04},
}
_BLOCK = 100_000
_PEOPLE_BLOCK = 400_000
_LEVEL = 1  # of gzip; the dumps are read once
_KNOWN_ELSEWHERE = 0.02  # share of other titles' credits that go to people of the release's films
_OFF_BY_ONE, _NAMELESS, _REPEATED = 0.02, 0.02, 0.002
_OTHER_TYPES = ("tvEpisode", "short", "movie", "tvSeries", "video", "tvMovie")
_OTHER_TYPE_PERCENT = (72, 9, 8, 4, 4, 3)

Frames = Iterator[pl.DataFrame]


def write_dumps(
    folder: Path,
    catalogue: Catalogue,
    ids: Ids,
    titles: Titles,
    size: Size,
    seed: int,
    advance: Callable[[int], None],
) -> dict[str, int]:
    """Write ``title.basics title.crew title.principals name.basics .tsv.gz``; ``advance`` gets the credits written.

    Returns:
        Rows of each dump, by its name.
    """

    def credits() -> Iterator[tuple[slice, pl.DataFrame]]:
        for first in range(0, len(ids.title_I), _BLOCK):
            block = slice(first, first + _BLOCK)
            yield block, _credits(catalogue, ids, block, np.random.default_rng([seed, 0x13DB, first]))

    rows = {}
    crew = _Dump(folder / "title.crew.tsv.gz")

    def principals() -> Frames:
        for block, frame in credits():
            crew.add(_crew(frame, ids.title_I[block]))
            advance(frame.height)
            yield _principals(frame)

    rows["title.principals"] = _write(folder / "title.principals.tsv.gz", principals())
    rows["title.crew"] = crew.close()
    rows["title.basics"] = _write(folder / "title.basics.tsv.gz", _basics(catalogue, ids, titles, size, seed))
    rows["name.basics"] = _write(folder / "name.basics.tsv.gz", _people(catalogue, ids, size, seed))
    return rows


class _Dump:
    """A ``.tsv.gz`` written frame by frame: tab-separated, ``\\N`` for missing, no quoting. Renamed when closed."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self._part = path.with_name(f".{path.name}.part")
        self._file = self._part.open("wb")
        self._gzip = zlib.compressobj(_LEVEL, wbits=31)
        self._header = True

    def add(self, frame: pl.DataFrame) -> None:
        text = io.BytesIO()
        frame.write_csv(text, separator="\t", null_value="\\N", quote_style="never", include_header=self._header)
        self._file.write(self._gzip.compress(text.getbuffer()))
        self.rows += frame.height
        self._header = False

    def close(self) -> int:
        self._file.write(self._gzip.flush())
        self._file.close()
        write_atomically(self.path, lambda part: None)  # already written; flush and rename it
        return self.rows


def _write(path: Path, frames: Frames) -> int:
    dump = _Dump(path)
    for frame in frames:
        dump.add(frame)
    return dump.close()


def _credits(catalogue: Catalogue, ids: Ids, block: slice, rng: np.random.Generator) -> pl.DataFrame:
    """Columns title and person (numbers) and category, in order of title and billing."""
    title_I, film_I = ids.title_I[block], ids.film_I[block]
    parts = [*_own_credits(catalogue, ids, title_I[film_I >= 0], film_I[film_I >= 0])]
    if ids.others:
        parts.append(_other_credits(ids, title_I[film_I < 0], rng))
    title_R, category_R, person_R, place_R = (np.concatenate(column) for column in zip(*parts, strict=True))
    order_R = np.lexsort((place_R, title_R))
    frame = pl.DataFrame(
        {"title": title_R[order_R], "category": category_R[order_R].astype(np.uint32), "person": person_R[order_R]}
    )
    names = pl.lit(pl.Series(CATEGORIES))
    played = pl.col("category") == CATEGORIES.index("actor")
    woman = pl.when(played & (pl.col("person") % 2 == 1)).then(CATEGORIES.index("actress")).otherwise("category")
    return frame.with_columns(category=names.gather(woman))


def _own_credits(catalogue: Catalogue, ids: Ids, title_I: IntArray, film_I: IntArray) -> Iterator[tuple[IntArray, ...]]:
    place = 0
    for role in ("actor", *(role for role in ALL_ROLES if role != "actor")):
        for person_I in catalogue.cast[role][film_I].T:
            there_I = np.flatnonzero(person_I >= 0)
            category_R = np.full(len(there_I), CATEGORIES.index(role))
            yield (
                title_I[there_I],
                category_R,
                ids.first_person[role] + person_I[there_I],
                np.full(len(there_I), place),
            )
            place += 1


def _other_credits(ids: Ids, title_I: IntArray, rng: np.random.Generator) -> tuple[IntArray, ...]:
    length_I = 1 + rng.poisson(8.0, len(title_I))
    title_R = np.repeat(title_I, length_I)
    codes = np.array([CATEGORIES.index(name) for name in _OTHER_SHARES])
    percent = np.repeat(codes, np.rint(100 * np.array(list(_OTHER_SHARES.values()))).astype(int))
    category_R = percent[rng.integers(len(percent), size=len(title_R), dtype=np.int8)]
    person_R = FIRST_PERSON + ids.num_people + (rng.random(len(title_R)) ** 2 * ids.others).astype(np.int64)
    known_R = np.flatnonzero(rng.random(len(title_R), dtype=np.float32) < _KNOWN_ELSEWHERE)
    person_R[known_R] = FIRST_PERSON + rng.integers(ids.num_people, size=len(known_R))
    return title_R, category_R, person_R, np.arange(len(title_R))


def _principals(credits: pl.DataFrame) -> pl.DataFrame:
    # written in order of title, so the place since the title's first row is the billing
    place = pl.int_range(pl.len()) - pl.int_range(pl.len()).filter(_first()).gather(_first().cum_sum() - 1) + 1
    is_self, is_writer = pl.col("category") == "self", pl.col("category") == "writer"
    return credits.select(
        tconst=numbered("tt", "title"),
        ordering=place,
        nconst=numbered("nm", "person"),
        category="category",
        job=pl.when(is_writer & (pl.col("person") % 3 == 0)).then(pl.lit("written by")),
        characters=pl.when(is_self).then(pl.lit('["Self"]')),
    )


def _first() -> pl.Expr:
    return (pl.col("title") != pl.col("title").shift()).fill_null(True)


def _crew(credits: pl.DataFrame, title_I: IntArray) -> pl.DataFrame:
    crew = pl.DataFrame({"title": title_I})
    for column in ("directors", "writers"):
        named = credits.filter(pl.col("category") == column[:-1]).select("title", name=numbered("nm", "person"))
        joined = named.group_by("title", maintain_order=True).agg(
            pl.col("name").unique(maintain_order=True).str.join(",")
        )
        crew = crew.join(joined.rename({"name": column}), on="title", how="left", maintain_order="left")
    return crew.select(tconst=numbered("tt", "title"), directors="directors", writers="writers")


def _basics(catalogue: Catalogue, ids: Ids, titles: Titles, size: Size, seed: int) -> Frames:
    films = pl.DataFrame(
        {
            "film": np.arange(catalogue.num_movies),
            "name": titles.plain,
            "year": catalogue.year_M,
            "genres": _joined_genres(catalogue, ",", None),
        }
    )
    for first in range(0, len(ids.title_I), _BLOCK):
        block = slice(first, first + _BLOCK)
        rng = np.random.default_rng([seed, 0xBA51C, first])
        num_titles = len(ids.title_I[block])
        kinds = np.repeat(_OTHER_TYPES, _OTHER_TYPE_PERCENT)[rng.integers(100, size=num_titles)]
        off = rng.choice((-1, 0, 1), size=num_titles, p=(_OFF_BY_ONE / 2, 1 - _OFF_BY_ONE, _OFF_BY_ONE / 2))
        frame = pl.DataFrame(
            {
                "title": ids.title_I[block],
                "film": ids.film_I[block],
                "kind": kinds,
                "season": rng.integers(1, 15, num_titles),
                "episode": rng.integers(1, 60, num_titles),
                "aired": rng.integers(1950, size.last_day.year + 1, num_titles),
                "off": off if size.as_published else np.zeros(num_titles, dtype=np.int64),
                "minutes": rng.integers(20, 190, num_titles),
            }
        ).join(films, on="film", how="left", maintain_order="left")
        ours = pl.col("film") >= 0
        name = pl.coalesce("name", pl.format("Episode #{}.{}", "season", "episode"))
        year = pl.when(~ours).then("aired").when(pl.col("year") > 0).then(pl.col("year") + pl.col("off"))
        yield frame.select(
            tconst=numbered("tt", "title"),
            titleType=pl.when(ours).then(pl.lit("movie")).otherwise("kind"),
            primaryTitle=name,
            originalTitle=name,
            isAdult=pl.lit("0"),
            startYear=year,
            endYear=pl.lit(None, pl.String),
            runtimeMinutes="minutes",
            genres="genres",
        )


def _joined_genres(catalogue: Catalogue, separator: str, none: str | None) -> list[str | None]:
    names = np.array(GENRES)
    return [separator.join(names[row]) or none for row in catalogue.genres_MG]


def _people(catalogue: Catalogue, ids: Ids, size: Size, seed: int) -> Frames:
    """All people except the nameless; a few repeated under a second name."""
    kept = _named_for_sure(catalogue, ids, size)
    total = ids.num_people + ids.others
    for first in range(0, total, _PEOPLE_BLOCK):
        rng = np.random.default_rng([seed, 0x9A3E, first])
        number = np.arange(first, min(first + _PEOPLE_BLOCK, total))
        times = np.ones(len(number), dtype=np.int64)
        if size.as_published:
            chance = rng.random(len(number))
            times = np.where(chance < _NAMELESS, 0, np.where(chance > 1.0 - _REPEATED, 2, 1))
            times[kept[(kept >= first) & (kept < first + _PEOPLE_BLOCK)] - first] = 1
        elif not first:
            times[_one_nameless(catalogue, ids, kept)] = 0
        people = pl.DataFrame({"number": np.repeat(number, times)}).with_columns(person=pl.col("number") + FIRST_PERSON)
        is_repeated = pl.col("number") == pl.col("number").shift()
        yield people.select(
            nconst=numbered("nm", "person"),
            primaryName=person_names("number") + pl.when(is_repeated).then(pl.lit(" Jr.")).otherwise(pl.lit("")),
            birthYear=pl.when(pl.col("number") % 3 > 0).then(1920 + pl.col("number") % 80),
            deathYear=pl.lit(None, pl.String),
            primaryProfession=pl.lit(None, pl.String),
            knownForTitles=pl.lit(None, pl.String),
        )


def _named_for_sure(catalogue: Catalogue, ids: Ids, size: Size) -> IntArray:
    people = [entity for entity in planted_entities(catalogue, size) if entity.kind in ids.first_person]
    return np.array([ids.first_person[entity.kind] + entity.index - FIRST_PERSON for entity in people], dtype=np.int64)


def _one_nameless(catalogue: Catalogue, ids: Ids, kept: IntArray) -> int:
    credited = np.unique(catalogue.cast["actor"][catalogue.cast["actor"] >= 0])
    return int(np.setdiff1d(ids.first_person["actor"] - FIRST_PERSON + credited, kept)[0])
