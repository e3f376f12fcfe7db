"""Proof on the written files that nothing leaks from the answers into the prompts, or from test into training.

The four rules are those of the design. The audit reads shards, split and the ``trained_on`` lists of all that was
fitted, and shares no code with what wrote them. It runs on a work folder before it is published, and on finished
folders, where it also compares every file with its manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.errors import InputError
from tripletune.paths import MANIFEST, damaged_files
from tripletune.rank.audit_rules import Finding, column_findings, fit_findings, liked_films
from tripletune.rank.audit_text import text_findings
from tripletune.rank.shards import parquet_files, scan
from tripletune.schemas import EXAMPLES, SPLIT, TRAINED_ON, conform

MAX_PER_KIND = 1000
"""Leaks of one kind reported per file; a broken split would otherwise name every example."""
SHOWN = 20
PURPOSES = ("train", "valid", "test")


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


def audit_shards(shards: Path, split: Path, retrieve: Path, trained: Mapping[str, Path]) -> list[Leak]:
    """Check the four rules on every example of every shard and on everything that was fitted to likes.

    Args:
        shards: generate's folder, or its work folder, with ``train``, ``valid``, ``test``.
        split: the split's folder.
        retrieve: the folder that says what EASE was fitted to, where it was.
        trained: folders of the stages that learn from likes, by stage.

    Returns:
        Every leak, rule by rule within a file; at most ``MAX_PER_KIND`` of one kind per file. Empty: proven.

    Raises:
        InputError: there are no shards, or a file has other columns than its schema.
    """
    leaks: list[Leak] = []
    damaged: set[Path] = set()
    sources = (split, retrieve, *trained.values())
    for folder in (shards, *sources):
        for name in damaged_files(folder) if (folder / MANIFEST).is_file() else ():
            damaged.add(folder / name)
            leaks.append(Leak(0, "damaged", f"{folder.name}/{name}", "its bytes differ from the manifest"))
    if any(path.is_relative_to(folder) for path in damaged for folder in sources):
        return leaks  # nothing can be proven against files that are not what their stage wrote
    rows = _SplitRows(split)
    fitted = dict(trained)
    if (retrieve / "trained_on.parquet").is_file():
        fitted["ease"] = retrieve
    for name, folder in fitted.items():
        leaks += _audit_fits(name, folder, rows)
    films = liked_films(rows.all())
    seen: list[pl.DataFrame] = []
    for purpose in PURPOSES:
        for path in parquet_files(shards, purpose):
            if path in damaged:
                continue
            examples = _read(path, EXAMPLES)
            seen.append(examples.select("example_id"))
            if examples.height:
                known = rows.of(examples["user_id"])
                leaks += _leaks(column_findings(examples, known, films, purpose))
                leaks += _leaks(text_findings(examples, purpose))
    leaks += _leaks([_repeated(pl.concat(seen))] if seen else [])
    return leaks


def _repeated(example_ids: pl.DataFrame) -> Finding:
    twice = example_ids.group_by("example_id", maintain_order=True).len().filter(pl.col("len") > 1)
    return Finding(0, "example written twice", twice.select("example_id", detail=pl.format("{} rows", "len")))


def _leaks(findings: Sequence[Finding] | Iterator[Finding]) -> list[Leak]:
    return [
        Leak(finding.rule, finding.kind, subject, detail)
        for finding in findings
        for subject, detail in finding.rows.head(MAX_PER_KIND).select("example_id", "detail").iter_rows()
    ]


def _read(path: Path, schema: pl.Schema) -> pl.DataFrame:
    try:
        return conform(pl.read_parquet(path, hive_partitioning=False), schema)
    except (pl.exceptions.PolarsError, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as {', '.join(list(schema)[:3])}, ...: {first_line}; run its stage again"
        ) from None


def _audit_fits(name: str, folder: Path, rows: _SplitRows) -> list[Leak]:
    """Rule 1, viewers of one split file at a time, so that memory does not grow with the release."""
    trained = scan(folder / "trained_on.parquet")
    missing = set(TRAINED_ON) - set(trained.collect_schema())
    if missing:
        stage = "retrieve" if name == "ease" else name
        raise InputError(f"{folder / 'trained_on.parquet'}: no column {', '.join(sorted(missing))}; run {stage} again")
    leaks: list[Leak] = []
    for viewers in rows.viewers_by_file():
        part = trained.join(viewers.lazy(), on="user_id", how="semi").collect()
        leaks += _leaks(fit_findings(name, part, rows.of(viewers["user_id"])))
    strangers = trained.join(rows.viewers.lazy(), on="user_id", how="anti").head(MAX_PER_KIND).collect()
    leaks += _leaks(fit_findings(name, strangers, rows.of(strangers["user_id"])))
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

    def all(self) -> pl.LazyFrame:
        return scan(self._files)

    def viewers_by_file(self) -> Iterator[pl.DataFrame]:
        """Every viewer once, in groups that share a file."""
        first = self.viewers.unique("user_id", keep="first", maintain_order=True)
        for number in range(len(self._files)):
            yield first.filter(pl.col("file") == number).select("user_id")

    def of(self, users: pl.Series) -> pl.DataFrame:
        """All rows of these viewers, from just the files that hold them."""
        wanted = users.unique().to_frame("user_id")
        numbers = self.viewers.join(wanted, on="user_id", how="semi")["file"].unique().sort().to_list()
        if not numbers:
            return pl.DataFrame(schema=SPLIT)
        rows = scan([self._files[number] for number in numbers]).join(wanted.lazy(), on="user_id", how="semi")
        return conform(rows.collect(), SPLIT)


def format_leaks(leaks: Sequence[Leak]) -> str:
    """What the command line prints: counts by rule and kind, then the first leaks, one a line."""
    if not leaks:
        return "no leak found: all four rules hold"
    counts = Counter((leak.rule, leak.kind) for leak in leaks)
    lines = [f"{len(leaks)} leaks found"]
    lines += [f"  {_rule(rule)}: {kind}: {count}" for (rule, kind), count in sorted(counts.items())]
    lines.append(f"the first {min(SHOWN, len(leaks))}:")
    lines += [f"  {_rule(leak.rule)}: {leak.kind}: {leak.subject}: {leak.detail}" for leak in leaks[:SHOWN]]
    return "\n".join(lines)


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
