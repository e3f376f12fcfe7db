"""Add the hint of the guide, the most liked candidates, to a copy of the checkout: ``python -m docs.example_hint``.

Prints a prompt's new section, the new column, the audit's findings on two forgeries, and the existing lines changed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import polars as pl

from docs.checkout import TINY, UP_TO_GENERATE, with_example

HINT = "popular"
SETTINGS = f"""{TINY}
[retrieve]
retriever = "ease"
[prompt]
template = "popular.txt"
"""


def main() -> str:
    """The new section and column, the audit's findings, and the existing lines changed."""
    with with_example("hint") as checkout:
        shards = checkout.stages(*UP_TO_GENERATE, settings=SETTINGS)
        example = pl.read_parquet(sorted(shards.glob("test/shard-*.parquet"))[0]).row(0, named=True)
        prompt = example["prompt"][1]["content"]
        section = next(part for part in prompt.split("\n\n") if part.startswith("Hint 3"))
        return "\n".join(
            [
                section,
                f"column {HINT} of {example['example_id']}: {example[HINT]}",
                checkout.run("-m", "docs.example_hint", "forge", str(shards.parents[1])),
                checkout.changed_lines(),
            ]
        )


def forge(stages: Path) -> str:
    """The audit's findings on the finished shards, on a film put into the column, and on two exchanged in the text.

    Args:
        stages: folder of the dataset, with a folder for each stage; the shards are forged in a copy.
    """
    from tripletune.audit.audit import audit_shards
    from tripletune.audit.leaks import format_leaks

    (generate,), (split,), (retrieve,), (rgat,), (lightgcn,) = (
        [path.parent for path in stages.glob(f"{stage}/*/manifest.json")]
        for stage in ("generate", "split", "retrieve", "rgat", "lightgcn")
    )
    said = []
    for column in ("", HINT, "prompt"):
        forged = stages / "forged"
        shutil.copytree(generate, forged, ignore=shutil.ignore_patterns("manifest.json", "audit"))
        path = sorted(forged.glob("test/shard-*.parquet"))[0]
        examples = pl.read_parquet(path)
        rows = examples.to_dicts()
        if column == HINT:
            rows[0][HINT][0] = min(elsewhere(rows))
        elif column:
            rows[0]["prompt"][1]["content"] = exchange_films(rows[0]["prompt"][1]["content"])
        pl.DataFrame(rows, schema=examples.schema).write_parquet(path)
        leaks = audit_shards(forged, split, retrieve, {"rgat": rgat, "lightgcn": lightgcn})
        said.append(f"{column or 'nothing'} forged: {format_leaks(leaks)}")
        shutil.rmtree(forged)
    return "\n".join(said)


def elsewhere(rows: list[dict[str, Any]]) -> set[int]:
    """Candidates of other examples that are neither candidates nor likes of the first example."""
    first = rows[0]
    return {film for row in rows for film in row["candidates"]} - {*first["candidates"], *first["liked"]}


def exchange_films(prompt: str) -> str:
    """The prompt with the first two films of the new section swapped."""
    before, section = prompt.split("Hint 3", 1)
    heading, first, second, *rest = section.split("\n")
    lines = [heading, f"1. {second[3:]}", f"2. {first[3:]}", *rest]
    return f"{before}Hint 3" + "\n".join(lines)


if __name__ == "__main__":
    print(forge(Path(sys.argv[2])) if sys.argv[1:2] == ["forge"] else main())
