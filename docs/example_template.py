"""Write prompts with the template of the guide, which lies outside the package: ``python -m docs.example_template``."""

from __future__ import annotations

import shutil

import polars as pl

from docs.checkout import EXAMPLES, TINY, UP_TO_GENERATE, with_example

SETTINGS = f"""{TINY}
[retrieve]
retriever = "ease"
num_candidates = 10
[prompt]
template = "{{template}}"
max_liked = 5
"""


def main() -> str:
    """A prompt and its completion of the new template, its id and hash, and the existing lines changed: none."""
    with with_example("template") as checkout:
        anywhere = checkout.folder.parent / "elsewhere"
        anywhere.mkdir()
        mine = shutil.copy(EXAMPLES / "template" / "brief.txt", anywhere)
        shards = checkout.stages(*UP_TO_GENERATE, settings=SETTINGS.format(template=mine))
        example = pl.read_parquet(sorted(shards.glob("test/shard-*.parquet"))[0]).row(0, named=True)
        parts = [
            *(message["content"] for message in (*example["prompt"], *example["completion"])),
            f"template {example['template_id']} {example['template_sha256'][:10]}",
            f"existing lines changed: {checkout.changed_lines() or 'none'}",
        ]
        return "\n\n".join(parts)


if __name__ == "__main__":
    print(main())
