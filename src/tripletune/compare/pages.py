"""A comparison as JSON, Markdown and HTML; the three say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from tripletune.compare.compare import Comparison, Line
from tripletune.compare.differences import difference_tables
from tripletune.html.pages import write_result
from tripletune.html.pictures import Dot, draw_dots

FILES = ("comparison.json", "comparison.md", "comparison.html")
COLUMNS = (
    "metric",
    "baseline",
    "run",
    "difference",
    "interval",
    "p",
    "p adjusted",
    "Wilcoxon",
    "detectable",
    "the run is",
)
EVIDENCE = (
    "Differences are means over users of the run's value minus the baseline's, with a percentile bootstrap over users "
    "at {confidence:g} %, and p is of a paired randomisation test (random signs), each with {resamples:,} resamples. "
    "Wilcoxon's signed-rank test drops users without a difference and takes ranks: it asks whether differences lean "
    "to one side, not about the mean. p adjusted is after Holm-Bonferroni over the family, and decides the last "
    "column; intervals, Wilcoxon and the detectable difference are of one test alone. Detectable is the true "
    "difference that so many users show in {power:.0f} of 100 samples, from the spread of their differences."
)


def write_comparison(folder: Path, found: Comparison) -> list[Path]:
    """Write comparison.json, comparison.md and comparison.html.

    Raises:
        InputError: the folder cannot be made.
    """
    return write_result(
        folder,
        "--out",
        FILES,
        plain=asdict(found),
        markdown=_markdown(found),
        template="templates/compare.html.j2",
        found=found,
        about=about(found),
        verdict=verdict(found),
        groups=[(name, lines, _picture(name, lines)) for name, lines in by_run(found)],
        differing=differing(found),
        p_value=p_value,
        signed=signed,
    )


def by_run(found: Comparison) -> list[tuple[str, list[Line]]]:
    """Lines of each run that is compared with the baseline."""
    return [(name, list(lines)) for name, lines in groupby(found.lines, key=lambda line: line.run)]


def about(found: Comparison) -> list[str]:
    """What the numbers are, in sentences: users, family, tests."""
    shared = [
        f"{one.purpose}: {one.num_users:,} users with {one.num_questions:,} questions, of "
        f"{', '.join(f'{number:,}' for number in one.users_of_runs)} users of the runs."
        for one in found.shared
    ]
    evidence = EVIDENCE.format(confidence=100 * found.confidence, resamples=found.resamples, power=100 * found.power)
    return [
        f"Shared by all runs, {' '.join(shared)}",
        f"Family: {found.family['said']}.",
        evidence,
    ]


def verdict(found: Comparison) -> list[str]:
    """The result first: for each run what is shown, and how many of its tests."""
    said = []
    for name, lines in by_run(found):
        counts = {word: [line for line in lines if line.verdict == word] for word in ("better", "worse")}
        shown = [
            f"{word} in {len(of_word)} of {len(lines)} tests ({', '.join(_named(line) for line in of_word)})"
            for word, of_word in counts.items()
            if of_word
        ]
        said.append(
            f"{name} against {found.baseline}: {' and '.join(shown) or f'no difference shown in {len(lines)} tests'}."
        )
    return said


def _named(line: Line) -> str:
    return f"{line.metric} on {line.purpose} {signed(line.difference)}"


def differing(found: Comparison) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Tables of what differs between the runs."""
    return difference_tables(found.settings, found.inputs, found.stages)


def p_value(value: float) -> str:
    """Three decimals, or a bound."""
    return "<.001" if value < 0.001 else f"{value:.3f}"


def signed(value: float) -> str:
    """Four decimals with their sign; nothing is +0.0000 whichever run is first."""
    return f"{value:+z.4f}"


def cells(line: Line) -> list[str]:
    """A line's cells under ``COLUMNS``."""
    interval = "-" if line.low is None or line.high is None else f"{signed(line.low)} to {signed(line.high)}"
    return [
        f"{line.metric}, {line.purpose}",
        f"{line.baseline_mean:.4f}",
        f"{line.mean:.4f}",
        signed(line.difference),
        interval,
        p_value(line.p_value),
        p_value(line.p_adjusted),
        p_value(line.p_wilcoxon),
        "-" if line.detectable is None else f"{line.detectable:.4f}",
        line.verdict,
    ]


def _picture(name: str, lines: Sequence[Line]) -> str:
    dots = [Dot(line.metric, line.purpose, line.difference, line.low, line.high) for line in lines]
    return draw_dots(dots, title=f"Differences of {name}, with intervals", xlabel="difference", limit=0.0)


def _markdown(found: Comparison) -> list[str]:
    lines = [f"# {' and '.join(name for name, _ in by_run(found))} against {found.baseline}", ""]
    lines += [f"**{sentence}**" for sentence in verdict(found)] + [""]
    for sentence in about(found):
        lines += [sentence, ""]
    for name, of_run in by_run(found):
        lines += [f"## {name}", "", *markdown_table(COLUMNS, [cells(line) for line in of_run]), ""]
    names = [run["name"] for run in found.runs]
    lines += [
        "## Runs",
        "",
        *markdown_table(list(found.runs[0]), [list(map(str, run.values())) for run in found.runs]),
        "",
    ]
    for title, rows in differing(found):
        heads = ["", *names, *(["because"] if title == "Stages" else [])]
        lines += [f"## {title} that differ", "", *(markdown_table(heads, rows) if rows else ["None."]), ""]
    return lines[:-1]


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; bars and line breaks in cells are escaped."""
    escaped = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (heads, *rows)]
    return [f"| {' | '.join(row)} |" for row in (escaped[0], ["---"] * len(heads), *escaped[1:])]
