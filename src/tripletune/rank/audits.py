"""Proof on the written files that nothing leaks from the answers into the prompts, or from test into training.

The four rules are those of the design. The audit reads shards, split and the ``trained_on`` lists of all that was
fitted, and shares no code with what wrote them. It runs on a work folder before it is published, and on finished
folders, where it also compares every file with its manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import polars as pl

from tripletune.errors import InputError
from tripletune.paths import MANIFEST, damaged_files, read_manifest, write_atomically
from tripletune.rank.audit_rules import FIT_OF, Finding, column_findings, fit_findings, liked_films, pinned_findings
from tripletune.rank.audit_text import text_findings
from tripletune.rank.shards import parquet_files, read_rows, scan
from tripletune.schemas import EXAMPLES, SPLIT, TRAINED_ON, conform

MAX_PER_KIND = 1000
"""Leaks of one kind reported per file; a broken split would otherwise name every example."""
SHOWN = 5
"""Leaks of one kind on the screen."""
PURPOSES = ("train", "valid", "test")
READ = pl.Schema({name: SPLIT[name] for name in ("user_id", "movie_id", "position", "label", "unseen")})
"""Columns of the split that the rules ask for."""
FILES_AT_ONCE = 16
"""Of the split, to whose viewers what was fitted is held at a time; it is read anew for every group. Of 64 files of the
largest release some 4 to 8 million likes."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing that must not be.

    ``rule`` is 1 to 4 as in the design: (1) what the fits were trained on, (2) evidence precedes the answers, (3) no
    answer in the evidence, (4) no test like in training; 0 stands for files that prove nothing: damaged, or columns
    that contradict each other. ``subject`` is an example id, a viewer of a fit, or a file.
    """

    rule: int
    kind: str
    subject: str
    detail: str


def audit_shards(
    shards: Path, split: Path, retrieve: Path, trained: Mapping[str, Path], *, limit: int | None = MAX_PER_KIND
) -> list[Leak]:
    """Check the four rules on every example of every shard and on everything that was fitted to likes.

    What was fitted to another split than tonight's, as a pinned specialist is, must not know what tonight asks; what it
    knew of its own night was proven then.

    Args:
        shards: generate's folder, or its work folder, with ``train``, ``valid``, ``test``.
        split: the split's folder.
        retrieve: what was found for every example.
        trained: folders of the stages that learn from likes, by stage.
        limit: leaks of one kind per file; None: all.

    Returns:
        The leaks, rule by rule within a file. Empty: proven.

    Raises:
        InputError: there are no shards, or a file has other columns than its schema.
    """
    leaks: list[Leak] = []
    damaged: set[Path] = set()
    sources = (split, retrieve, *trained.values())
    for folder in (shards, *sources):
        for name, reason in _damage(folder) if (folder / MANIFEST).is_file() else ():
            damaged.add(folder / name)
            leaks.append(Leak(0, "damaged", f"{folder.name}/{name}", reason))
    if shards / MANIFEST in damaged or any(path.is_relative_to(folder) for path in damaged for folder in sources):
        return leaks  # nothing can be proven against files that are not what their stage wrote
    leaks += _strays(shards)
    to_leaks = partial(_leaks, limit=limit)
    rows = _SplitRows(split)
    pinned = {name: folder for name, folder in trained.items() if _split_of(folder) not in (None, split.name)}
    for name, folder in trained.items():
        _require_columns(name, folder)
        if name not in pinned:
            leaks += _audit_fits(name, folder, rows, limit)
    films = liked_films(scan(trained["lightgcn"] / "trained_on.parquet"))
    seen: list[pl.DataFrame] = []
    for purpose in PURPOSES:
        for path in parquet_files(shards, purpose):
            if path in damaged:
                continue
            examples = read_rows(path, EXAMPLES)
            seen.append(examples.select("example_id", "user_id", "unseen", "answers", fit=pl.lit(FIT_OF[purpose])))
            if examples.height:
                known = rows.of(examples["user_id"])
                leaks += to_leaks(column_findings(examples, known, films, purpose))
                leaks += to_leaks(text_findings(examples, purpose))
    if seen:
        whole = pl.concat(seen)
        leaks += to_leaks([_repeated(whole)])
        asked = whole.rename({"answers": "movie_id"}).explode("movie_id")
        for name, folder in pinned.items():
            leaks += to_leaks(pinned_findings(name, scan(folder / "trained_on.parquet"), asked))
    return leaks


def _split_of(trained: Path) -> str | None:
    """Fingerprint of the split that a stage was trained on; None for a folder without a manifest."""
    manifest = read_manifest(trained)
    return manifest["parents"].get("split") if manifest else None


def _damage(folder: Path) -> Iterator[tuple[str, str]]:
    """Names of the files that are not what their stage wrote, each with what is wrong."""
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
    """Shards that the manifest does not name: what reads the folder learns from them, and no rule was proven."""
    if (shards / MANIFEST).is_file():
        named = set(parquet_files(shards))
        for path in sorted(set(shards.rglob("*.parquet")) - named):
            name = f"{shards.name}/{path.relative_to(shards).as_posix()}"
            yield Leak(0, "shard that the manifest does not name", name, "remove it, or run generate again")


def _repeated(example_ids: pl.DataFrame) -> Finding:
    twice = example_ids.group_by("example_id", maintain_order=True).len().filter(pl.col("len") > 1)
    return Finding(0, "example written twice", twice.select("example_id", detail=pl.format("{} rows", "len")))


def _leaks(findings: Sequence[Finding] | Iterator[Finding], *, limit: int | None) -> list[Leak]:
    return [
        Leak(finding.rule, finding.kind, subject, detail)
        for finding in findings
        for subject, detail in finding.rows.select("example_id", "detail").slice(0, limit).iter_rows()
    ]


def _require_columns(name: str, folder: Path) -> None:
    missing = set(TRAINED_ON) - set(scan(folder / "trained_on.parquet").collect_schema())
    if missing:
        raise InputError(f"{folder / 'trained_on.parquet'}: no column {', '.join(sorted(missing))}; run {name} again")


def _audit_fits(name: str, folder: Path, rows: _SplitRows, limit: int | None) -> list[Leak]:
    """Rule 1, viewers of some split files at a time, so that memory does not grow with the release."""
    trained = scan(folder / "trained_on.parquet").select(list(TRAINED_ON))
    leaks: list[Leak] = []
    for viewers in rows.viewers_by_files():
        group = trained.join(viewers.lazy(), on="user_id", how="inner", maintain_order="left").collect()
        # file by file: what is looked up among few rows is several times as fast
        for part in group.partition_by("file", include_key=False):
            leaks += _leaks(fit_findings(name, part, rows.of(part["user_id"])), limit=limit)
    strangers = trained.join(rows.viewers.lazy(), on="user_id", how="anti").slice(0, limit).collect()
    leaks += _leaks(fit_findings(name, strangers, rows.of(strangers["user_id"])), limit=limit)
    return leaks


class _SplitRows:
    """The split's rows of some viewers at a time; knows in which files a viewer's rows lie."""

    def __init__(self, split: Path) -> None:
        self._files = parquet_files(split)
        for path in self._files:
            missing = set(SPLIT) - set(scan(path).collect_schema())
            if missing:
                raise InputError(f"{path}: no column {', '.join(sorted(missing))}; run split again")
        parts = [
            scan(path).select("user_id").unique().with_columns(file=pl.lit(number, pl.Int32)).collect()
            for number, path in enumerate(self._files)
        ]
        self.viewers = pl.concat(parts).sort("user_id", "file")

    def viewers_by_files(self) -> Iterator[pl.DataFrame]:
        """Every viewer once, with the first file that holds rows of the viewer, in groups of ``FILES_AT_ONCE`` files:
        ``user_id, file``."""
        first = self.viewers.unique("user_id", keep="first", maintain_order=True)
        for number in range(0, len(self._files), FILES_AT_ONCE):
            yield first.filter(pl.col("file").is_between(number, number + FILES_AT_ONCE - 1))

    def of(self, users: pl.Series) -> pl.DataFrame:
        """All rows of these viewers, from just the files that hold them."""
        wanted = users.unique().to_frame("user_id")
        numbers = self.viewers.join(wanted, on="user_id", how="semi")["file"].unique().sort().to_list()
        if not numbers:
            return pl.DataFrame(schema=READ)
        rows = scan([self._files[number] for number in numbers]).select(list(READ))
        return conform(rows.join(wanted.lazy(), on="user_id", how="semi").collect(), READ)


def format_leaks(leaks: Sequence[Leak]) -> str:
    """What the command line prints: by rule and kind, their number and the first of them."""
    if not leaks:
        return "no leak found: all four rules hold"
    lines = ["1 leak found" if len(leaks) == 1 else f"{len(leaks)} leaks found"]
    by_kind: dict[tuple[int, str], list[Leak]] = {}
    for leak in leaks:
        by_kind.setdefault((leak.rule, leak.kind), []).append(leak)
    for (rule, kind), found in sorted(by_kind.items()):
        lines.append(f"  {_rule(rule)}: {kind}: {len(found)}")
        lines += [f"    {leak.subject}: {leak.detail}" for leak in found[:SHOWN]]
        lines += [f"    and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "\n".join(lines)


def write_leaks(path: Path, leaks: Sequence[Leak]) -> None:
    """All leaks as CSV: ``rule, kind, subject, detail``; a file with no rows says that there are none."""
    schema = {"rule": pl.Int64, "kind": pl.String, "subject": pl.String, "detail": pl.String}
    write_atomically(path, pl.DataFrame([asdict(leak) for leak in leaks], schema=schema).write_csv)


def _rule(rule: int) -> str:
    return f"rule {rule}" if rule else "no proof"


def refuse_leaks(leaks: Sequence[Leak]) -> None:
    """Stop a stage before it publishes.

    Raises:
        InputError: there is a leak; the line counts them and names the first.
    """
    if leaks:
        first = leaks[0]
        raise InputError(
            f"the audit found {len(leaks)} leaks, first {_rule(first.rule)}: {first.kind}: {first.subject}: "
            f"{first.detail}; nothing was published. A pinned specialist of another split is the usual cause: "
            "remove the pin, or report a bug"
        )
