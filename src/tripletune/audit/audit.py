"""Leak audit of the written files: no leak from the answers into the prompts, or from test into training.

``leaks.Leak`` and docs/splits.md list the five rules. The audit reads shards, split and the ``trained_on`` lists of all
fits, and shares no code with the stages that wrote them. It runs on a work folder before it is published, and on
finished folders, where it also compares every file with its manifest. Before publishing it skips examples that its own
record of an earlier run covers (``audit.record``); on finished folders it checks everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import polars as pl

from tripletune.audit.leaks import MAX_PER_KIND, Leak, to_leaks
from tripletune.audit.popularity import popularity_findings
from tripletune.audit.record import read_record
from tripletune.audit.requeried import requeried_findings
from tripletune.audit.rules import Finding, fit_findings, liked_films, pinned_findings, read_findings
from tripletune.audit.shard import ShardAudit
from tripletune.audit.split_rows import AT_ONCE, SplitRows
from tripletune.audit.worked import read_worked
from tripletune.errors import InputError
from tripletune.schemas.answers import TITLES, AnswerStyle, answer_style
from tripletune.schemas.generate import PROVEN
from tripletune.schemas.hints import HINTS
from tripletune.schemas.inline import NO_INLINE, Inline
from tripletune.schemas.training import READ_BY, READ_BY_NAME, TRAINED_ON
from tripletune.store.parquet import parquet_files, scan
from tripletune.store.paths import MANIFEST, damaged_files, read_manifest
from tripletune.store.request_time import reading_request_time
from tripletune.threads import map_in_threads

PURPOSES = ("train", "valid", "test")
LIKED_IN = sorted({hint.specialist.stage for hint in HINTS if hint.liked_in_fit})
"""Stages whose ``trained_on.parquet`` limits the films that their specialist's hints may name."""
TOGETHER = 8
"""Shards of a group; one of MovieLens 32M's size is some 80 MB in memory."""


class Audit(NamedTuple):
    """Result of the audit of a run.

    ``proven`` is ``PROVEN`` of all examples, valid if ``leaks`` is empty; ``newly_audited`` is the number of examples
    that the earlier run's record did not cover and that were checked.
    """

    leaks: list[Leak]
    proven: pl.DataFrame
    newly_audited: int


def audit_shards(
    shards: Path,
    split: Path,
    retrieve: Path,
    trained: Mapping[str, Path],
    *,
    style: AnswerStyle = TITLES,
    inline: Inline = NO_INLINE,
    limit: int | None = MAX_PER_KIND,
) -> list[Leak]:
    """Check the five rules: on every example of every shard, on every fit, and on a sample of the ranked lists.

    A fit on another split than this run's, such as a pinned specialist, must not have been trained on this run's
    answers; its rows of its own split were audited in its own run.

    Args:
        shards: generate's folder, or its work folder, with ``train``, ``valid``, ``test``.
        split: folder of the split.
        retrieve: folder of the retrieve stage.
        trained: folders of the training stages, by stage.
        style: answer style of the completions; an example in another style is a leak.
        inline: what candidates' lines say after the title; a line that says anything else is a leak.
        limit: leaks of one kind per batch of examples (``shard.AT_A_TIME``); None: all.

    Returns:
        The leaks, purpose by purpose and group of shards by group. Empty: no leak.

    Raises:
        InputError: there are no shards, or a file has other columns than its schema.
    """
    return _audit(shards, split, retrieve, trained, style, inline, limit, record=None).leaks


def stated_style(shards: Path) -> AnswerStyle | None:
    """Answer style in the manifest of finished shards; None if there is none, as in an older version.

    Raises:
        ConfigError: the style does not exist in this version.
    """
    manifest = read_manifest(shards)
    stated = manifest["facts"].get("answer_style") if manifest else None
    return answer_style(stated) if stated else None


def stated_inline(shards: Path) -> Inline:
    """Inline hints in the manifest of finished shards; nothing is inline where there are none."""
    manifest = read_manifest(shards)
    stated = manifest["facts"].get("inline") if manifest else None
    return Inline.from_json(stated) if stated else NO_INLINE


def audit_work_folder(
    shards: Path,
    split: Path,
    retrieve: Path,
    trained: Mapping[str, Path],
    *,
    style: AnswerStyle = TITLES,
    inline: Inline = NO_INLINE,
    earlier: Path | None,
) -> Audit:
    """``audit_shards`` of a run's work folder, except for examples in an earlier run's record; see ``audit.record``.

    Args:
        shards, split, retrieve, trained, style, inline: as in ``audit_shards``.
        earlier: finished generate folder of an earlier run with the same code and settings; None: all are checked.

    Raises:
        InputError: as in ``audit_shards``.
    """
    record = read_record(earlier, trained)
    return _audit(shards, split, retrieve, trained, style, inline, MAX_PER_KIND, record=record)


def _audit(
    shards: Path,
    split: Path,
    retrieve: Path,
    trained: Mapping[str, Path],
    style: AnswerStyle,
    inline: Inline,
    limit: int | None,
    record: pl.DataFrame | None,
) -> Audit:
    """Run the audit. ``record``: ``PROVEN`` of the examples to skip; None: check all examples and write no record."""
    leaks: list[Leak] = []
    damaged: set[Path] = set()
    sources = (split, retrieve, *trained.values())
    for folder in (shards, *sources):
        for name, reason in _damage(folder) if (folder / MANIFEST).is_file() else ():
            damaged.add(folder / name)
            leaks.append(Leak(0, "damaged", f"{folder.name}/{name}", reason))
    if shards / MANIFEST in damaged or any(path.is_relative_to(folder) for path in damaged for folder in sources):
        return Audit(leaks, PROVEN.to_frame(), 0)  # damaged files prove nothing
    leaks += _strays(shards)
    rows = SplitRows(split)
    pinned = {name: folder for name, folder in trained.items() if _split_of(folder) not in (None, split.name)}
    for name, folder in trained.items():
        _require_columns(name, folder)
        if name not in pinned:
            leaks += _audit_fits(name, folder, rows, limit)
    leaks += to_leaks(requeried_findings(retrieve, reading_request_time(trained)), limit=limit)
    leaks += to_leaks(popularity_findings(split, retrieve, trained["lightgcn"]), limit=limit)
    audit = ShardAudit(
        shards=shards,
        rows=rows,
        films={stage: liked_films(scan(trained[stage] / "trained_on.parquet")) for stage in LIKED_IN},
        style=style,
        inline=inline,
        worked=read_worked(shards),
        limit=limit,
        viewers=None if record is None else rows.digests(),
        record={} if record is None else {str(group): part for (group,), part in record.group_by("group")},
    )
    leaks += audit.prove_worked()
    groups: list[tuple[str, list[Path]]] = []
    for purpose in PURPOSES:
        paths = [path for path in parquet_files(shards, purpose) if path not in damaged]
        groups += [(purpose, paths[start : start + TOGETHER]) for start in range(0, len(paths), TOGETHER)]
    found = map_in_threads(lambda group: audit.prove(*group), groups, most=AT_ONCE)
    leaks += [leak for one in found for leak in one.leaks]
    if found:
        whole = pl.concat([one.seen for one in found])
        leaks += to_leaks([_repeated(whole)], limit=limit)
        asked = whole.rename({"answers": "movie_id"}).explode("movie_id")
        for name, folder in pinned.items():
            leaks += to_leaks(pinned_findings(name, scan(folder / "trained_on.parquet"), asked), limit=limit)
    notes = pl.concat([PROVEN.to_frame(), *(one.notes for one in found)])
    return Audit(leaks, notes, sum(one.newly_audited for one in found))


def _split_of(trained: Path) -> str | None:
    """Fingerprint of the split that a stage was trained on; None for a folder without a manifest."""
    manifest = read_manifest(trained)
    return manifest["parents"].get("split") if manifest else None


def _damage(folder: Path) -> Iterator[tuple[str, str]]:
    """Names of the files that differ from the manifest, each with the difference."""
    try:
        stated = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        names = damaged_files(folder)
    except (ValueError, KeyError, TypeError):
        yield MANIFEST, "it is no JSON with 'files'"
        return
    for name in names:
        path = folder / name
        if not path.is_file():
            yield name, "it is not there"
        elif path.stat().st_size != stated[name]["bytes"]:
            yield name, f"it has {path.stat().st_size:,} bytes, the manifest states {stated[name]['bytes']:,}"
        else:
            yield name, "its bytes differ from the manifest"


def _strays(shards: Path) -> Iterator[Leak]:
    """Shards that the manifest does not name: a reader of the folder would train on them, but they are not audited."""
    if (shards / MANIFEST).is_file():
        named = set(parquet_files(shards))
        for path in sorted(set(shards.rglob("*.parquet")) - named):
            name = f"{shards.name}/{path.relative_to(shards).as_posix()}"
            yield Leak(0, "shard that the manifest does not name", name, "remove it, or run generate again")


def _repeated(example_ids: pl.DataFrame) -> Finding:
    twice = example_ids.group_by("example_id", maintain_order=True).len().filter(pl.col("len") > 1)
    return Finding(0, "example written twice", twice.select("example_id", detail=pl.format("{} rows", "len")))


def _require_columns(name: str, folder: Path) -> None:
    missing = set(TRAINED_ON) - set(scan(folder / "trained_on.parquet").collect_schema())
    if missing:
        raise InputError(f"{folder / 'trained_on.parquet'}: no column {', '.join(sorted(missing))}; run {name} again")


def _audit_fits(name: str, folder: Path, rows: SplitRows, limit: int | None) -> list[Leak]:
    """Rule 1, for the users of some split files at a time, so that memory does not grow with the release."""
    trained = scan(folder / "trained_on.parquet").select(list(TRAINED_ON))
    read = scan(folder / READ_BY_NAME).select(list(READ_BY)) if (folder / READ_BY_NAME).is_file() else None
    leaks: list[Leak] = []
    for viewers in rows.users_by_files():
        group = trained.join(viewers.lazy(), on="user_id", how="inner", maintain_order="left").collect()
        # file by file: a lookup among few rows is several times as fast
        for part in group.partition_by("file", include_key=False):
            leaks += to_leaks(fit_findings(name, part, rows.of(part["user_id"])), limit=limit)
        if read is not None:
            mine = read.join(viewers.lazy(), on="user_id", how="inner").collect()
            found = read_findings(name, mine.drop("file"), group.drop("file"), rows.of(mine["user_id"]))
            leaks += to_leaks(found, limit=limit)
    strangers = trained.join(rows.viewers.lazy(), on="user_id", how="anti").slice(0, limit).collect()
    leaks += to_leaks(fit_findings(name, strangers, rows.of(strangers["user_id"])), limit=limit)
    return leaks
