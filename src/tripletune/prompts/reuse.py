"""Check whether the prompts of an earlier run can be reused: the titles they show must be unchanged."""

from __future__ import annotations

from pathlib import Path

from tripletune.prompts.sanitise import display_titles
from tripletune.store.increments import same_files
from tripletune.store.read import read_parquet


def same_titles(before: Path, now: Path) -> bool:
    """Whether the new catalogue shows every film of an earlier one under the same title; it may have further films.

    Args:
        before, now: finished outputs of the ingest stage.
    """
    if same_files(before, now, ("movies.parquet",)):
        return True
    catalogues = [read_parquet(folder / "movies.parquet", columns=["movie_id", "title"]) for folder in (before, now)]
    shown = [display_titles(movies) for movies in catalogues]
    return shown[0].join(shown[1], on=["movie_id", "display"], how="anti").is_empty()
