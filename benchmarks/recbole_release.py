"""Turn the ml-100k that the package RecBole ships (atomic files) into a release folder in GroupLens's layout.

    python benchmarks/recbole_release.py SITE_PACKAGES/recbole/dataset_example/ml-100k --out downloads/ml-100k

The atomic files hold every rating with its time, titles, years, genres, and the users' ages, genders and occupations;
release dates and addresses are left empty. Nothing is downloaded, and RecBole itself is not imported.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from tripletune.data.release.layouts import GENRES_100K


def convert(folder: Path, out: Path) -> None:
    """Write ``u.data``, ``u.item`` and ``u.user``.

    Args:
        folder: with ``ml-100k.inter``, ``ml-100k.item`` and ``ml-100k.user``, tab-separated with typed headers.
        out: folder of the release; made if it does not exist.
    """
    ratings, films, users = (_read(folder / f"ml-100k.{kind}") for kind in ("inter", "item", "user"))
    out.mkdir(parents=True, exist_ok=True)
    columns = ratings.select("user_id", "item_id", pl.col("rating").cast(pl.Float64).cast(pl.Int64), "timestamp")
    columns = columns.with_columns(pl.col("timestamp").cast(pl.Float64).cast(pl.Int64))
    columns.write_csv(out / "u.data", separator="\t", include_header=False)
    genres = pl.col("class").str.split(" ")
    year = pl.col("release_year").fill_null("")
    titled = pl.when(year.str.contains(r"^\d{4}$")).then(pl.format("{} ({})", "movie_title", year))
    items = films.select(
        "item_id",
        titled.otherwise("movie_title").alias("title"),
        *(pl.lit("").alias(name) for name in ("released", "released_video", "url")),
        *(genres.list.contains(genre).cast(pl.Int8).fill_null(0).alias(genre) for genre in GENRES_100K),
    )
    lines = ["|".join(str(value) for value in row) for row in items.iter_rows()]
    (out / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1", errors="replace")
    people = users.select("user_id", "age", "gender", "occupation", "zip_code")
    people.write_csv(out / "u.user", separator="|", include_header=False)


def _read(path: Path) -> pl.DataFrame:
    frame = pl.read_csv(path, separator="\t", infer_schema=False, quote_char=None)
    return frame.rename(lambda name: name.split(":")[0])


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="RecBole's dataset_example/ml-100k")
    parser.add_argument("--out", type=Path, required=True, help="folder of the release")
    arguments = parser.parse_args()
    convert(arguments.folder, arguments.out)


if __name__ == "__main__":
    main()
