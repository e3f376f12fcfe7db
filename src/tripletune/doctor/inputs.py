"""Checks of a run's data: there, whole as far as a look at each file tells, and from a source whose terms are known."""

from __future__ import annotations

import glob
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tripletune.config import RunConfig, SourceConfig
from tripletune.config.base import is_path
from tripletune.data.feed.remote import list_files
from tripletune.data.release.layouts import LAYOUTS, find_layout
from tripletune.doctor.check import Check
from tripletune.errors import UserError

DUMPS = ("title.crew", "title.principals", "name.basics")
"""Without ``title.basics`` years are not compared, and credits are read all the same."""
IMDB_TERMS = "IMDb's non-commercial terms (developer.imdb.com/non-commercial-datasets)"
TERMS = ("README*", "LICEN[CS]E*", "TERMS*", "COPYING*")
"""Files in which the terms of data stand, in their folder."""
TRUTH = "truth.parquet"
"""Made by ``tripletune synth``."""


def check_inputs(settings: RunConfig) -> Check:
    """Whether every file that the settings name is there, can be read, and is of the kind that is expected."""
    problems = list(_problems(settings))
    if problems:
        return Check("inputs", "fail", "; ".join(problems), "tripletune download fetches releases (docs/data.md)")
    source = settings.source
    if not source.movielens:
        return Check("inputs", "ok", "a synthetic release is made")
    found = [source.movielens, *source.feed.ratings, *filter(None, [source.imdb]), *source.extra_triples]
    return Check("inputs", "ok", ", ".join(found))


def _problems(settings: RunConfig) -> Iterator[str]:
    source = settings.source
    if source.movielens:
        yield from _of_release(Path(source.movielens), "movies" if source.feed.ratings else "ratings")
    if source.imdb:
        yield from _of_dumps(Path(source.imdb))
    for pattern in source.feed.ratings:
        yield from _of_feed(pattern)
    files = {
        **{f"source.extra_triples[{place}]": name for place, name in enumerate(source.extra_triples)},
        "split.frozen": settings.split.frozen,
        "finetune.accelerate_config": settings.finetune.accelerate_config,
        "prompt.template": settings.prompt.template if is_path(settings.prompt.template) else "",
        "text.model": settings.text.model if settings.text.names_a_folder else "",
    }
    for key, name in files.items():
        if name and not os.access(name, os.R_OK):
            yield f"{key}: {name} {_why_not(Path(name))}"


def _why_not(path: Path) -> str:
    return "cannot be read" if path.exists() else "is not there"


def _of_release(release: Path, told_by: str) -> Iterator[str]:
    wanted = {layout.tables[told_by].file for layout in LAYOUTS}
    if not os.access(release, os.R_OK):
        yield f"source.movielens: {release} {_why_not(release)}"
    elif release.is_dir():
        try:
            find_layout(release, release, told_by=told_by)
        except UserError as error:
            yield f"source.movielens: {error}"
    else:
        try:
            with zipfile.ZipFile(release) as members:
                names = {PurePosixPath(name).name for name in members.namelist()}
        except (OSError, zipfile.BadZipFile):
            yield f"source.movielens: {release} is no zip, or its end is missing"
        else:
            if not names & wanted:
                yield f"source.movielens: {release} holds none of {', '.join(sorted(wanted))}"


def _of_dumps(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"source.imdb: {folder} is {'no folder' if folder.exists() else 'not there'}"
        return
    for name in DUMPS:
        file = folder / f"{name}.tsv.gz"
        try:
            with file.open("rb") as opened:
                if opened.read(2) != b"\x1f\x8b":
                    yield f"source.imdb: {file} is not gzip"
        except OSError:
            yield f"source.imdb: {file} {_why_not(file)}"


def _of_feed(pattern: str) -> Iterator[str]:
    if "://" in pattern and not pattern.startswith(("file://", "local://")):
        try:
            list_files([pattern])  # lists, and reads no file
        except UserError as error:
            yield str(error)
        return
    path = Path(pattern.removeprefix("file://").removeprefix("local://")).expanduser()
    found = [path] if path.exists() else [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207
    if not found:
        yield f"source.feed.ratings: {pattern} matches no file"
    for one in found:
        if not os.access(one, os.R_OK):
            yield f"source.feed.ratings: {one} cannot be read"


def check_licences(settings: RunConfig) -> Check:
    """Whether each source comes with its terms; what may be done with the data is for people to judge."""
    found = _terms(settings.source)
    if settings.finetune.names_a_folder:
        found[settings.finetune.model] = _file_with_terms(Path(settings.finetune.model))
    known = {what: terms for what, terms in found.items() if terms}
    # of what is not there, ``check_inputs`` speaks
    unknown = [what for what in found if what not in known and ("://" in what or Path(what).exists())]
    if unknown:
        advice = "find out whether you may use it, and keep its README or LICENSE next to it"
        return Check("licences", "warn", f"no terms next to {', '.join(unknown)}", advice)
    said = ", ".join(f"{what}: {terms}" for what, terms in known.items())
    return Check("licences", "ok", said or "no data from elsewhere")


def _terms(source: SourceConfig) -> dict[str, str]:
    """Where the terms of each source stand; empty: not known."""
    found: dict[str, str] = {}
    if source.movielens:
        found[source.movielens] = _terms_of_release(Path(source.movielens))
    if source.imdb:
        is_made = (Path(source.imdb).parent / TRUTH).is_file()
        found[source.imdb] = "synthetic" if is_made else IMDB_TERMS
    for name in (*source.feed.ratings, *source.extra_triples):
        is_remote = "://" in name
        found[name] = "" if is_remote else _file_with_terms(Path(name) if Path(name).is_dir() else Path(name).parent)
    return found


def _terms_of_release(release: Path) -> str:
    if release.is_dir():
        return "synthetic" if (release / TRUTH).is_file() else _file_with_terms(release)
    try:
        with zipfile.ZipFile(release) as members:
            names = [name for name in members.namelist() if any(PurePosixPath(name).match(terms) for terms in TERMS)]
    except (OSError, zipfile.BadZipFile):
        return ""
    return min(names, default="")


def _file_with_terms(folder: Path) -> str:
    found = (path.name for terms in TERMS for path in folder.glob(terms))
    return next(found, "")
